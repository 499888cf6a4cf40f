//! The ways in which a client says how its request is to be treated: ArangoDB's field, RFC 7240, `idempotency-key`,
//! callbacks, and the fields that replace the method.
//!
//! Owns their reading. Acts on none of them: `service` does. Invariants: `x-arango-async` wins
//! over `prefer`; OPTIONS is never deferred.

use std::io;
use std::time::Duration;

use hmac_sha256::Hash;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};

use crate::callback_url::CallbackUrl;
use crate::content::Content;
use crate::error::Error;
use crate::fields::{FieldLines, find};
use crate::job::Keep;
use crate::prefer::{self, Applied, Preferences};
use crate::protocol::{ASYNC, CALLBACK_URL, IDEMPOTENCY_KEY, METHOD_OVERRIDES, PREFER};
use crate::store::IdempotencyKey;

/// The fields that say how a request is to be answered.
static NAMES: [HeaderName; 2] = [ASYNC, PREFER];

/// The greatest length of an idempotency key, in bytes.
const MAX_KEY: usize = 255;

/// How much of an invalid field is shown, in characters.
const SHOWN: usize = 40;

/// How a request is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// While the client waits.
    Synchronous,
    /// With a `202`, because of `x-arango-async`.
    Deferred(Keep),
    /// With the status of the route's `accepted=`, because the route defers by itself.
    DeferredByRoute(Keep),
    /// With a `202`, because of `prefer: respond-async`; but with the plain response if it is ready within this time.
    Preferred(Duration),
}

impl Mode {
    /// Returns the mode of a request, and the preferences of its client. The client wins over the route.
    pub fn of(request: &Parts, route: Option<Keep>) -> (Self, Preferences) {
        let [deferral, prefer] = find(&request.headers, &NAMES);
        let preferences = prefer.first.map(|_| Preferences::of(&request.headers));
        let preferences = preferences.unwrap_or_default();
        (Self::chosen(&request.method, deferral, preferences, route), preferences)
    }

    /// Returns the mode by `x-arango-async`, if it is exactly `store` or `true` and sent once; else by `prefer`; else,
    /// if `x-arango-async` was not sent at all, by the route.
    fn chosen(
        method: &Method,
        deferral: FieldLines<'_>,
        preferences: Preferences,
        route: Option<Keep>,
    ) -> Self {
        if *method == Method::OPTIONS {
            return Self::Synchronous;
        }
        match deferral.only().map(|value| value.as_bytes().trim_ascii()) {
            Some(b"store") => Self::Deferred(Keep::Result),
            Some(b"true") => Self::Deferred(Keep::Nothing),
            _ if preferences.respond_async => Self::Preferred(preferences.wait.unwrap_or_default()),
            _ => match route.filter(|_| deferral.first.is_none() && *method != Method::HEAD) {
                Some(keep) => Self::DeferredByRoute(keep),
                None => Self::Synchronous,
            },
        }
    }

    /// Returns what becomes of the result; `None` if there is no job.
    pub const fn keep(self) -> Option<Keep> {
        match self {
            Self::Synchronous => None,
            Self::Deferred(keep) | Self::DeferredByRoute(keep) => Some(keep),
            Self::Preferred(_) => Some(Keep::Result),
        }
    }
}

/// Returns the value of `x-arango-async` as a log shows it, if it has no effect: it is neither `store` nor `true`, or
/// was sent twice.
pub fn without_meaning(request: &Parts) -> Option<String> {
    let [deferral, _] = find(&request.headers, &NAMES);
    let first = deferral.first?;
    let is_known = deferral
        .only()
        .is_some_and(|value| matches!(value.as_bytes().trim_ascii(), b"store" | b"true"));
    if is_known || request.method == Method::OPTIONS {
        return None;
    }
    let value: String = String::from_utf8_lossy(first.as_bytes()).chars().take(SHOWN).collect();
    Some(if deferral.more { "there twice".into() } else { format!("{value:?}") })
}

/// How the requests of a route are deferred if their client does not say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfRoute {
    /// What becomes of the results; `None`: they are not deferred.
    pub keep: Option<Keep>,
    /// The status code of their answer.
    pub accepted: StatusCode,
    /// The field whose value is the idempotency key of a client that sends none.
    pub key_field: Option<HeaderName>,
}

impl Default for OfRoute {
    fn default() -> Self {
        Self { keep: None, accepted: StatusCode::ACCEPTED, key_field: None }
    }
}

/// Replaces the method of a POST by the one that it stands for: not every client can send PUT and DELETE.
///
/// # Errors
/// `400` for an invalid method, `501` for CONNECT.
pub fn override_method(request: &mut Parts) -> Result<(), Error> {
    if request.method != Method::POST {
        return Ok(());
    }
    let mut fields = METHOD_OVERRIDES.into_iter().filter_map(|name| request.headers.get(name));
    let Some(value) = fields.next() else { return Ok(()) };
    let name = value.as_bytes().trim_ascii().to_ascii_uppercase();
    request.method = Method::from_bytes(&name)
        .map_err(|_| Error::bad_parameter("the method that replaces POST is invalid"))?;
    if request.method == Method::CONNECT {
        // As without an override, where the front refuses it.
        return Err(Error::NotImplemented("CONNECT: deferd makes no tunnels".into()));
    }
    Ok(())
}

/// Returns the client's idempotency key: a string as in RFC 9651 section 3.3.3, or, as many clients send it, without
/// quotes. Without one, returns the value of `field` as it is.
///
/// # Errors
/// `400` if it is neither, or too long.
pub fn idempotency_key(
    request: &Parts,
    field: Option<&HeaderName>,
) -> Result<Option<Box<str>>, Error> {
    let mut lines = request.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = lines.next() else {
        return field.map_or(Ok(None), |field| key_of_field(request, field));
    };
    if lines.next().is_some() {
        return Err(Error::bad_parameter("more than one idempotency-key"));
    }
    let key = key(value).ok_or(Error::bad_parameter(
        "idempotency-key is neither a quoted string nor a word of visible ASCII",
    ))?;
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Error::bad_parameter("idempotency-key is not of 1 to 255 bytes"));
    }
    Ok(Some(key.into_boxed_str()))
}

/// Returns the key from the route's own field.
fn key_of_field(request: &Parts, field: &HeaderName) -> Result<Option<Box<str>>, Error> {
    let mut lines = request.headers.get_all(field).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim).filter(|_| lines.next().is_none());
    match key {
        Some("") => Ok(None),
        Some(key) if key.len() <= MAX_KEY => Ok(Some(key.into())),
        _ => Err(Error::bad_parameter(format!(
            "{field} is the idempotency key here: it must be there once, with at most {MAX_KEY} bytes of ASCII"
        ))),
    }
}

/// A URL that a client wants to be told when its job is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// The URL.
    pub url: Box<str>,
    /// Whether the client said so by a preference: then the answer tells that it was applied.
    pub is_preference: bool,
}

/// What a client asks for beside the job that it submits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// By what it names the job.
    pub key: Option<Box<str>>,
    /// The URL that is to be told when the job is done.
    pub callback: Option<Callback>,
    /// What it prefers to see of the job.
    pub content: Option<prefer::Content>,
}

impl Terms {
    /// Returns the preferences that were applied to a job whose result is kept or not.
    pub fn applied(&self, keep: Keep) -> Applied {
        Applied {
            respond_async: false,
            representation: keep == Keep::Result
                && self.content == Some(prefer::Content::Representation),
            callback: self.callback.as_ref().is_some_and(|callback| callback.is_preference),
        }
    }
}

/// Takes the URL that is to be told of a job out of its request: `x-callback-url`, or the preference `callback`. They
/// are for deferd, which has heeded them; no handler gets them.
///
/// # Errors
/// `400` if there is more than one, `403` if none of these allowed URLs covers it.
pub fn take_callback(
    fields: &mut HeaderMap,
    allowed: &[CallbackUrl],
) -> Result<Option<Callback>, Error> {
    let preferred = prefer::take_callback(fields);
    let is_preference = preferred.is_some();
    let field = fields.get_all(CALLBACK_URL).iter().map(|value| value.to_str().map(str::trim));
    let mut urls = Vec::new();
    for url in field {
        urls.push(url.map_err(|_| Error::bad_parameter("x-callback-url is not ASCII"))?.to_owned());
    }
    urls.extend(preferred);
    fields.remove(CALLBACK_URL);
    let url = urls.pop();
    let Some(url) = url else { return Ok(None) };
    if !urls.is_empty() {
        return Err(Error::bad_parameter("more than one callback URL"));
    }
    let forbidden = |what: &str| Error::Forbidden(format!("the callback URL: {what}").into());
    let parsed = CallbackUrl::parse(&url).map_err(forbidden)?;
    if !allowed.iter().any(|allowed| allowed.covers(&parsed)) {
        return Err(forbidden("no --allow-callback covers it"));
    }
    Ok(Some(Callback { url: url.into(), is_preference }))
}

fn key(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?.trim();
    if text.starts_with('"') {
        return quoted(text);
    }
    let plain = |b: u8| b.is_ascii_graphic() && !b"\",;\\".contains(&b);
    text.bytes().all(plain).then(|| text.to_owned())
}

/// Reads a quoted string; parameters after it are ignored.
fn quoted(text: &str) -> Option<String> {
    let mut key = String::new();
    let mut rest = text.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => break,
            '\\' => key.push(rest.next().filter(|c| matches!(c, '"' | '\\'))?),
            c if c == ' ' || c.is_ascii_graphic() => key.push(c),
            _ => return None,
        }
    }
    let behind = rest.as_str().trim_start();
    (behind.is_empty() || behind.starts_with(';')).then_some(key)
}

/// Returns a key together with the request that it stands for from now on, and the URL that is to be told.
///
/// # Errors
/// Those of the file that has the content.
pub fn keyed(
    key: Box<str>,
    request: &Request<Content>,
    keep: Keep,
    callback: Option<&str>,
) -> io::Result<IdempotencyKey> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let keep = match keep {
        Keep::Result => "store",
        Keep::Nothing => "true",
    };
    let mut hash = Hash::new();
    let method = request.method().as_str();
    // One with a callback has two parts more, and begins with a word that no other has.
    let callback = callback.map(|url| ["callback", url]);
    for part in callback.iter().flatten().chain(&[keep, method, target]).map(|part| part.as_bytes())
    {
        // With their lengths, so that no two requests hash the same by moving a boundary.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    request.body().for_each_piece(|piece| hash.update(piece))?;
    Ok(IdempotencyKey { key, fingerprint: hash.finalize() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, fields: &[(HeaderName, &str)]) -> Parts {
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_store_and_true_defer() {
        for (method, values, expected) in [
            ("GET", &["store"][..], Mode::Deferred(Keep::Result)),
            ("PUT", &[" store\t"], Mode::Deferred(Keep::Result)),
            ("HEAD", &["true"], Mode::Deferred(Keep::Nothing)),
            ("OPTIONS", &["store"], Mode::Synchronous),
            ("GET", &["Store"], Mode::Synchronous),
            ("GET", &["TRUE"], Mode::Synchronous),
            ("GET", &["1"], Mode::Synchronous),
            ("GET", &[""], Mode::Synchronous),
            ("GET", &["store", "store"], Mode::Synchronous),
            ("GET", &[], Mode::Synchronous),
        ] {
            let fields: Vec<_> = values.iter().map(|value| (ASYNC, *value)).collect();
            let parts = parts(method, &fields);
            let (mode, preferences) = Mode::of(&parts, None);
            assert_eq!(preferences, Preferences::default());
            assert_eq!(mode, expected, "{method} {values:?}");
            let is_told = method != "OPTIONS" && !values.is_empty() && mode == Mode::Synchronous;
            assert_eq!(without_meaning(&parts).is_some(), is_told, "{method} {values:?}");
        }
    }

    #[test]
    fn arango_s_field_wins_over_the_preference() {
        let wait = Duration::from_secs(3);
        for (method, fields, expected) in [
            ("GET", &[(PREFER, "respond-async, wait=3")][..], Mode::Preferred(wait)),
            (
                "GET",
                &[(PREFER, "respond-async, wait=3"), (ASYNC, "true")],
                Mode::Deferred(Keep::Nothing),
            ),
            ("GET", &[(ASYNC, "1"), (PREFER, "respond-async, wait=3")], Mode::Preferred(wait)),
            ("OPTIONS", &[(PREFER, "respond-async, wait=3")], Mode::Synchronous),
            ("GET", &[(PREFER, "wait=3")], Mode::Synchronous),
        ] {
            let (mode, preferences) = Mode::of(&parts(method, fields), None);
            assert_eq!(mode, expected, "{fields:?}");
            assert_eq!(preferences.wait, Some(wait));
        }
    }

    #[test]
    fn a_route_defers_what_does_not_say_otherwise() {
        let second = Duration::from_secs(1);
        for (method, fields, expected) in [
            ("POST", &[][..], Mode::DeferredByRoute(Keep::Nothing)),
            ("GET", &[(PREFER, "wait=1")], Mode::DeferredByRoute(Keep::Nothing)),
            ("HEAD", &[], Mode::Synchronous),
            ("OPTIONS", &[], Mode::Synchronous),
            ("HEAD", &[(ASYNC, "true")], Mode::Deferred(Keep::Nothing)),
            ("POST", &[(ASYNC, "store")], Mode::Deferred(Keep::Result)),
            ("POST", &[(ASYNC, "no")], Mode::Synchronous),
            ("POST", &[(ASYNC, "")], Mode::Synchronous),
            ("POST", &[(ASYNC, "store"), (ASYNC, "store")], Mode::Synchronous),
            ("POST", &[(PREFER, "respond-async, wait=1")], Mode::Preferred(second)),
        ] {
            let (mode, _) = Mode::of(&parts(method, fields), Some(Keep::Nothing));
            assert_eq!(mode, expected, "{method} {fields:?}");
        }
    }

    #[test]
    fn a_field_of_the_route_s_choice_is_the_key_of_a_client_that_sends_none() {
        let field = HeaderName::from_static("x-github-delivery");
        let (longest, own) = ("k".repeat(255), (IDEMPOTENCY_KEY, "own"));
        let given = |value| (field.clone(), value);
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[given("72d3162e-cc78")], Ok(Some("72d3162e-cc78"))),
            (&[given(" a, \"b\" ")], Ok(Some("a, \"b\""))),
            (&[given("")], Ok(None)),
            (&[given(&longest)], Ok(Some(longest.as_str()))),
            (&[given(&format!("{longest}k"))], Err(())),
            (&[given("a"), given("a")], Err(())),
            (&[given("a"), own.clone()], Ok(Some("own"))),
            (&[given("a"), (IDEMPOTENCY_KEY, "two words")], Err(())),
        ] {
            let found = idempotency_key(&parts("POST", fields), Some(&field));
            assert_eq!(found.as_ref().map(Option::as_deref).map_err(drop), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_callback_is_one_url_that_is_allowed() {
        let allowed = ["http://a/x", "http://b/"].map(|url| CallbackUrl::parse(url).unwrap());
        let by_field = |url| (CALLBACK_URL, url);
        let preferred = || (PREFER, "respond-async, callback; url=\"http://b/y\"");
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[(PREFER, "callback")], Ok(None)),
            (&[by_field(" http://a/x/y?z ")], Ok(Some(("http://a/x/y?z", false)))),
            (&[preferred()], Ok(Some(("http://b/y", true)))),
            (&[by_field("http://a/x"), by_field("http://a/x")], Err(400)),
            (&[by_field("http://a/x"), preferred()], Err(400)),
            (&[by_field("http://a/")], Err(403)),
            (&[by_field("http://a/x/../y")], Err(403)),
            (&[by_field("")], Err(403)),
        ] {
            let mut fields = parts("POST", fields).headers;
            let found = take_callback(&mut fields, &allowed);
            let found = found.map_err(|error| error.status().as_u16());
            let found = found.as_ref().map(|found| {
                found.as_ref().map(|callback| (&*callback.url, callback.is_preference))
            });
            assert_eq!(found, expected.as_ref().copied(), "{fields:?}");
            let left = fields.get(PREFER).map(HeaderValue::as_bytes);
            assert!(
                !fields.contains_key(CALLBACK_URL)
                    && left.is_none_or(|left| left == b"respond-async")
            );
        }
    }

    #[test]
    fn a_post_can_stand_for_another_method() {
        let [first, second, third] = METHOD_OVERRIDES;
        for (method, fields, expected) in [
            ("POST", &[(first.clone(), "PUT")][..], Some("PUT")),
            ("POST", &[(second.clone(), "delete")], Some("DELETE")),
            ("POST", &[(third, " PATCH ")], Some("PATCH")),
            ("POST", &[(second.clone(), "DELETE"), (first.clone(), "PUT")], Some("PUT")),
            ("POST", &[], Some("POST")),
            ("GET", &[(first.clone(), "PUT")], Some("GET")),
            ("POST", &[(first.clone(), "no method")], None),
            ("POST", &[(first.clone(), "connect")], None),
            ("POST", &[(first, "")], None),
        ] {
            let mut request = parts(method, fields);
            let found = override_method(&mut request).ok().map(|()| request.method.to_string());
            assert_eq!(found.as_deref(), expected, "{fields:?}");
        }
    }

    #[test]
    fn idempotency_keys() {
        let longest = "k".repeat(255);
        let quoted_longest = format!("\"{longest}\"");
        for (value, expected) in [
            ("\"8e03978e\"", Some("8e03978e")),
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", Some("8e03978e-40d5-43dd-bc93-6894a57f9324")),
            ("\"a \\\"b\\\" \\\\\"; x=1", Some("a \"b\" \\")),
            ("\"\"", None),
            ("", None),
            ("\"open", None),
            ("\"a\"b", None),
            ("\"a\\b\"", None),
            ("two words", None),
            ("a,b", None),
            (quoted_longest.as_str(), Some(longest.as_str())),
            (&format!("{longest}k"), None),
        ] {
            let found = idempotency_key(&parts("PUT", &[(IDEMPOTENCY_KEY, value)]), None);
            assert_eq!(found.ok().flatten().as_deref(), expected, "{value}");
        }
        assert_eq!(idempotency_key(&parts("PUT", &[]), None), Ok(None));
        let twice = [(IDEMPOTENCY_KEY, "a"), (IDEMPOTENCY_KEY, "a")];
        assert!(idempotency_key(&parts("PUT", &twice), None).is_err());
    }

    #[test]
    fn a_fingerprint_is_that_of_method_target_content_and_what_becomes_of_the_result() {
        let with = |method: &str, target: &str, body: &'static [u8], keep, callback| {
            let request = Request::builder().method(method).uri(target);
            let request = request.body(body.into()).unwrap();
            keyed("k".into(), &request, keep, callback).unwrap().fingerprint
        };
        let of = |method: &str, target: &str, body: &'static [u8], keep| {
            with(method, target, body, keep, None)
        };
        let first = of("PUT", "/a", b"x", Keep::Result);
        assert_eq!(of("PUT", "/a", b"x", Keep::Result), first);
        for other in [
            of("POST", "/a", b"x", Keep::Result),
            of("PUT", "/a?", b"x", Keep::Result),
            of("PUT", "/ax", b"", Keep::Result),
            of("PUT", "/a", b"y", Keep::Result),
            of("PUT", "/a", b"x", Keep::Nothing),
            with("PUT", "/a", b"x", Keep::Result, Some("http://h/")),
        ] {
            assert_ne!(other, first);
        }
        let called = |url| with("PUT", "/a", b"x", Keep::Result, Some(url));
        assert_eq!(called("http://h/"), called("http://h/"));
        assert_ne!(called("http://h/"), called("http://h/x"));
    }
}
