//! The page that shows one's jobs: `/_admin/ui`, one document without external parts.
//!
//! Owns how the page is embedded and guarded. What it shows it asks for itself, from the endpoints beside this one, so
//! it shows nothing that its reader may not see. `page.html.gz` is what `scripts/pack-page` makes of `page.html`.
//! Invariant: the policy (CSP level 3) lets this script and this style act, and nothing else: the hashes are those of
//! the page that is sent.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac_sha256::Hash;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    REFERRER_POLICY, VARY, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response};

use super::Asked;
use super::inflate::inflate;
use crate::content::held;
use crate::error::Error;
use crate::handler::Outcome;

/// The page, compressed.
static PACKED: &[u8] = include_bytes!("page.html.gz");

/// The page.
pub fn answer(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let is_packed = takes_gzip(asked.call.request.headers());
    let body = if is_packed {
        PACKED.into()
    } else {
        let mut charge = asked.memory.nothing();
        let page = unpacked();
        charge.grow(page.len())?;
        held(page.into(), charge)
    };
    let mut response = Response::new(body);
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if is_packed {
        fields.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    fields.insert(VARY, HeaderValue::from(ACCEPT_ENCODING));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    fields.insert(CONTENT_SECURITY_POLICY, policy());
    fields.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    fields.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response.into())
}

fn unpacked() -> Vec<u8> {
    inflate(PACKED).expect("a test unpacks it")
}

/// Whether the client takes gzip, and says so (RFC 9110 section 12.5.3).
fn takes_gzip(fields: &HeaderMap) -> bool {
    let lines = fields.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().trim_start_matches(['q', 'Q']).trim_start_matches('=');
        let is_refused = weight.parse().is_ok_and(|weight: f32| weight <= 0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

/// Returns the policy, whose hashes are made when it is first asked for.
fn policy() -> HeaderValue {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    let policy = || {
        let page = String::from_utf8(unpacked()).expect("a test reads it");
        let hash = |element: &str| {
            let begin = page.split_once(&format!("<{element}>"));
            let text = begin.and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
            STANDARD.encode(Hash::hash(text.map_or("", |(text, _)| text).as_bytes()))
        };
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            hash("script"),
            hash("style"),
        );
        HeaderValue::try_from(policy).expect("base64 is a field value")
    };
    POLICY.get_or_init(policy).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packed_page_is_the_page_and_both_are_small() {
        let page = include_str!("page.html");
        assert!(unpacked() == page.as_bytes(), "page.html has changed: run scripts/pack-page");
        assert!(page.len() <= 40 << 10 && PACKED.len() <= 14 << 10, "{}", PACKED.len());
        for element in ["script", "style"] {
            assert_eq!(page.matches(&format!("<{element}")).count(), 1, "the policy knows one");
            assert_eq!(page.matches(&format!("<{element}>")).count(), 1, "without attributes");
        }
        for part in ["http://", "https://", "src=", "innerHTML", "style=", "insertAdjacentHTML"] {
            let known = if part == "http://" { 1 } else { 0 };
            assert_eq!(page.matches(part).count(), known, "{part}");
        }
    }

    #[test]
    fn only_a_client_that_says_so_gets_gzip() {
        for (lines, takes) in [
            (&[][..], false),
            (&["gzip, deflate, br, zstd"], true),
            (&["br", "x, GZIP;q=0.5"], true),
            (&["gzip;q=0"], false),
            (&["gzip; q=0.0, br"], false),
            (&["identity"], false),
            (&["*"], false),
        ] {
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(ACCEPT_ENCODING, HeaderValue::from_static(line));
            }
            assert_eq!(takes_gzip(&fields), takes, "{lines:?}");
        }
    }
}
