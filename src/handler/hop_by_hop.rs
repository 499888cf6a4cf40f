//! Fields that end at deferd: those of one connection, and those that deferd writes itself.
//!
//! Owns the one table of them, for requests to an upstream and for responses of scripts and upstreams.
//! Invariant: what is not in the table, and not named by `connection`, passes unchanged.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::protocol::{ASYNC, ASYNC_ID, ASYNC_JOB_ID, ATTEMPTS, METHOD_OVERRIDES};

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To an upstream.
    Request,
    /// From a script or an upstream.
    Response,
}

/// In which messages a field ends here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Requests,
    Responses,
    Both,
}

use Ends::{Both, Requests, Responses};

static TABLE: [(HeaderName, Ends); 17] = [
    // Of the connection (RFC 9110 section 7.6.1).
    (CONNECTION, Both),
    (HeaderName::from_static("keep-alive"), Both),
    (HeaderName::from_static("proxy-connection"), Both),
    (TE, Both),
    (TRAILER, Both),
    (TRANSFER_ENCODING, Both),
    (UPGRADE, Both),
    // Between a proxy and its client (section 11.7).
    (PROXY_AUTHENTICATE, Both),
    (HeaderName::from_static("proxy-authentication-info"), Both),
    (PROXY_AUTHORIZATION, Both),
    // The content is whole when it goes on: its length is known, and no client waits for a `100`.
    (CONTENT_LENGTH, Both),
    (EXPECT, Requests),
    // The upstream's own name stands here; the client's is in x-forwarded-host.
    (HOST, Requests),
    // What deferd has done already, with METHOD_OVERRIDES.
    (ASYNC, Requests),
    // Only deferd says whether an answer is a job's result, and how often it was tried.
    (ASYNC_ID, Responses),
    (ASYNC_JOB_ID, Responses),
    (ATTEMPTS, Responses),
];

/// Removes the fields that end here.
pub fn strip(fields: &mut HeaderMap, direction: Direction) {
    // What `connection` names belongs to the connection too, but it cannot take what the content
    // needs to be understood.
    let named: Vec<HeaderName> = fields
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| ![CONTENT_LENGTH, CONTENT_TYPE].contains(name))
        .collect();
    for name in named {
        fields.remove(name);
    }
    let here = match direction {
        Direction::Request => Requests,
        Direction::Response => Responses,
    };
    for (name, ends) in &TABLE {
        if *ends == Both || *ends == here {
            fields.remove(name);
        }
    }
    if here == Requests {
        for name in METHOD_OVERRIDES {
            fields.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn left(direction: Direction, names: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut fields = HeaderMap::new();
        for (name, value) in names {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut fields, direction);
        let mut left: Vec<String> = fields.keys().map(ToString::to_string).collect();
        left.sort();
        left
    }

    #[test]
    fn what_connection_names_ends_here_but_for_what_the_content_needs() {
        let fields = [
            ("connection", "close, X-Hop"),
            ("connection", "content-type"),
            ("x-hop", "1"),
            ("x-end", "1"),
            ("content-type", "a/b"),
        ];
        for direction in [Direction::Request, Direction::Response] {
            assert_eq!(left(direction, &fields), ["content-type", "x-end"]);
        }
    }

    #[test]
    fn a_field_of_one_direction_passes_in_the_other() {
        let fields = [("host", "a"), ("x-attempts", "1"), ("te", "trailers")];
        assert_eq!(left(Direction::Request, &fields), ["x-attempts"]);
        assert_eq!(left(Direction::Response, &fields), ["host"]);
    }
}
