//! The page that shows a user's jobs: `/_admin/ui`, one document without external parts.
//!
//! Owns how the page is embedded and guarded. The page's script asks the other endpoints for what it shows, so it
//! shows nothing that its reader may not see. `scripts/pack-page` makes `page.html.gz` and `page.policy` from
//! `page.html`. Invariant: the policy (CSP level 3) lets this script and this style act, and nothing else.

use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response};

use super::Asked;
use crate::error::Error;
use crate::handler::Outcome;

/// The page, compressed.
static PACKED: &[u8] = include_bytes!("page.html.gz");

/// Its policy, followed by a line feed.
static POLICY: &str = include_str!("page.policy");

/// Returns the page, which is always sent as gzip: every browser accepts that.
pub fn answer(_: &Asked<'_>) -> Result<Outcome, Error> {
    let mut response = Response::new(PACKED.into());
    let fields: [(HeaderName, &'static str); 6] = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_ENCODING, "gzip"),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY.trim_ascii_end()),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response.into())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hmac_sha256::Hash;

    use super::*;

    const PAGE: &str = include_str!("page.html");

    /// Returns the trailer of gzip (RFC 1952 section 2.3.1): a checksum and the length.
    fn checksum(bytes: &[u8]) -> u32 {
        let crc = bytes.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
        });
        !crc
    }

    #[test]
    fn the_packed_page_and_its_policy_are_those_of_the_page() {
        let length = u32::try_from(PAGE.len()).unwrap();
        let trailer = [checksum(PAGE.as_bytes()).to_le_bytes(), length.to_le_bytes()].concat();
        assert!(PACKED.ends_with(&trailer), "page.html has changed: run scripts/pack-page");
        let hash = |element: &str| {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "the policy knows one");
            let (_, rest) = PAGE.split_once(&format!("<{element}>")).expect("no attributes");
            let (text, _) = rest.split_once(&format!("</{element}>")).unwrap();
            STANDARD.encode(Hash::hash(text.as_bytes()))
        };
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'none'\n",
            hash("script"),
            hash("style"),
        );
        assert_eq!(POLICY, policy, "page.html has changed: run scripts/pack-page");
    }

    #[test]
    fn the_page_is_small_and_has_no_external_part() {
        assert!(PAGE.len() <= 40 << 10 && PACKED.len() <= 14 << 10, "{}", PACKED.len());
        for part in ["http://", "https://", "src=", "innerHTML", "style=", "insertAdjacentHTML"] {
            let known = if part == "http://" { 1 } else { 0 };
            assert_eq!(PAGE.matches(part).count(), known, "{part}");
        }
    }
}
