//! Fields that end at deferd: fields of one connection, and fields that deferd writes itself.
//!
//! Owns the one table of them, for requests to scripts and upstreams, and for their responses. Invariant: a field that
//! is not in the table, and not named by `connection`, passes unchanged.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::protocol::{ASYNC, ASYNC_ID, ASYNC_JOB_ID, ATTEMPTS, METHOD_OVERRIDES};

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a script.
    ToScript,
    /// To an upstream.
    ToUpstream,
    /// From a script or an upstream.
    Response,
}

/// The messages in which a field is removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// In all messages.
    All,
    /// In requests to a script or an upstream.
    Requests,
    /// In requests to an upstream.
    ToUpstreams,
    /// In responses from a script or an upstream.
    Responses,
}

use Ends::{All, Requests, Responses, ToUpstreams};

static TABLE: [(HeaderName, Ends); 17] = [
    // Of the connection (RFC 9110 section 7.6.1).
    (CONNECTION, All),
    (HeaderName::from_static("keep-alive"), All),
    (HeaderName::from_static("proxy-connection"), All),
    (TE, All),
    (TRAILER, All),
    // The content is decoded: a script that sees this field would decode it again, and lose it.
    (TRANSFER_ENCODING, All),
    (UPGRADE, All),
    // Between a proxy and its client (section 11.7).
    (PROXY_AUTHENTICATE, All),
    (HeaderName::from_static("proxy-authentication-info"), All),
    (PROXY_AUTHORIZATION, All),
    // The content is forwarded as a whole: its length is known, and no client waits for a `100`.
    (CONTENT_LENGTH, All),
    (EXPECT, Requests),
    // The upstream's own name replaces it; the client's is in x-forwarded-host.
    (HOST, ToUpstreams),
    // deferd has already acted on it, as on METHOD_OVERRIDES. A script may see it: the script is the last recipient.
    (ASYNC, ToUpstreams),
    // Only deferd decides whether an answer is a job's result, and how many attempts it took.
    (ASYNC_ID, Responses),
    (ASYNC_JOB_ID, Responses),
    (ATTEMPTS, Responses),
];

impl Ends {
    /// Returns whether this covers a message of this direction.
    const fn covers(self, direction: Direction) -> bool {
        match self {
            All => true,
            Requests => !matches!(direction, Direction::Response),
            ToUpstreams => matches!(direction, Direction::ToUpstream),
            Responses => matches!(direction, Direction::Response),
        }
    }
}

/// Returns whether a field of this message ends here. `connection` cannot remove a field that is needed to understand
/// the content, or the host.
pub fn ends_here(fields: &HeaderMap, name: &HeaderName, direction: Direction) -> bool {
    TABLE.iter().any(|(field, ends)| field == name && ends.covers(direction))
        || (direction == Direction::ToUpstream && METHOD_OVERRIDES.contains(name))
        || (is_named(fields, name) && ![CONTENT_LENGTH, CONTENT_TYPE, HOST].contains(name))
}

/// Returns whether `connection` names this field, which then belongs to the connection too.
fn is_named(fields: &HeaderMap, name: &HeaderName) -> bool {
    let values = fields.get_all(CONNECTION).iter();
    let mut names = values.flat_map(|value| value.as_bytes().split(|&b| b == b','));
    names.any(|named| named.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
}

/// Removes the fields that end here.
pub fn strip(fields: &mut HeaderMap, direction: Direction) {
    let here = fields.keys().filter(|name| ends_here(fields, name, direction));
    let here: Vec<HeaderName> = here.cloned().collect();
    for name in here {
        fields.remove(name);
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
    fn fields_named_by_connection_end_unless_the_content_needs_them() {
        let fields = [
            ("connection", "close, X-Hop"),
            ("connection", "content-type"),
            ("x-hop", "1"),
            ("x-end", "1"),
            ("content-type", "a/b"),
        ];
        for direction in [Direction::ToScript, Direction::ToUpstream, Direction::Response] {
            assert_eq!(left(direction, &fields), ["content-type", "x-end"]);
        }
        let fields = [("connection", "Host"), ("host", "a")];
        assert_eq!(left(Direction::ToScript, &fields), ["host"]);
    }

    #[test]
    fn a_field_of_one_direction_passes_in_the_others() {
        let fields = [
            ("host", "a"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-arango-async", "store"),
            ("x-attempts", "1"),
            ("x-http-method", "PUT"),
        ];
        assert_eq!(left(Direction::ToUpstream, &fields), ["x-attempts"]);
        assert_eq!(
            left(Direction::ToScript, &fields),
            ["host", "x-arango-async", "x-attempts", "x-http-method"]
        );
        assert_eq!(
            left(Direction::Response, &fields),
            ["expect", "host", "x-arango-async", "x-http-method"]
        );
    }
}
