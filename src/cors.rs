//! Cross-origin resource sharing: which web pages of other origins may read an answer.
//!
//! Owns `--allow-origin` and the CORS fields (the Fetch standard, section 3.2). Does not decide which requests
//! are run: `cross_origin` does. Does not write the fields that keep an answer from foreign pages: the front
//! does. Invariant: a page reads an answer with the reader's credentials only if its origin is allowed by name.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, VARY,
};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use crate::content::Content;
use crate::exchange::empty;
use crate::protocol::EXPOSED;

const METHODS: HeaderValue = HeaderValue::from_static("DELETE, GET, HEAD, PATCH, POST, PUT");
/// How long a browser may remember a preflight, in seconds: as ArangoDB.
const MAX_AGE: HeaderValue = HeaderValue::from_static("1800");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const ANY: HeaderValue = HeaderValue::from_static("*");

/// Which pages may read an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Only those of this server.
    Own,
    /// The same, but the answer differs by origin: a cache must not mix them up.
    OwnVaries,
    /// Pages of any origin, without the reader's credentials.
    Anyone,
    /// Those of this origin, with the reader's credentials.
    With(HeaderValue),
}

/// The origins whose pages may send requests and read the answers: `--allow-origin`.
pub struct AllowedOrigins(pub Vec<String>);

impl AllowedOrigins {
    /// Returns who may read an answer to this origin, if it is allowed: by its own name before `*`, which
    /// stands for every origin but `null`, the one of sandboxed and local pages.
    pub fn sharing_with(&self, origin: &HeaderValue) -> Option<Sharing> {
        let name = origin.to_str().ok()?;
        let is_named = |allowed: &String| allowed != "*" && allowed.eq_ignore_ascii_case(name);
        if self.0.iter().any(is_named) {
            return Some(Sharing::With(origin.clone()));
        }
        let is_any = name.contains("://") && self.0.iter().any(|allowed| allowed == "*");
        is_any.then_some(Sharing::Anyone)
    }

    /// Returns which pages may read an answer to this method if no page of another origin is allowed to.
    pub fn unshared(&self, method: &Method) -> Sharing {
        // Caches keep no other answers.
        let is_cached = matches!(*method, Method::GET | Method::HEAD);
        if self.0.is_empty() || !is_cached { Sharing::Own } else { Sharing::OwnVaries }
    }
}

/// Returns the answer to a preflight of an allowed origin; `None` for any other request.
pub fn preflight(request: &Parts, sharing: &Sharing) -> Option<Response<Content>> {
    let is_allowed = matches!(sharing, Sharing::Anyone | Sharing::With(_));
    if request.method != Method::OPTIONS
        || !is_allowed
        || !request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    {
        return None;
    }
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(asked) = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    Some(response)
}

/// Lets the pages that may read the answer do so.
pub fn disclose<T>(response: &mut Response<T>, sharing: Sharing) {
    let headers = response.headers_mut();
    match sharing {
        Sharing::Own => return,
        Sharing::OwnVaries => {}
        Sharing::Anyone => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        Sharing::With(origin) => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
    headers.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_origins_pass_and_named_ones_with_credentials() {
        const UI: &str = "https://ui.example";
        let named = |name| Some(Sharing::With(HeaderValue::from_static(name)));
        let any = Some(Sharing::Anyone);
        for (allow, origin, sharing) in [
            (&[UI][..], UI, named(UI)),
            (&[UI], "https://UI.example", named("https://UI.example")),
            (&[UI], "http://ui.example", None),
            (&[UI], "https://ui.example:444", None),
            (&[UI], "null", None),
            (&["*"], UI, any.clone()),
            (&["*"], "null", None),
            (&["*"], "NULL", None),
            (&["*"], "*", None),
            (&["*"], "", None),
            (&["*", UI], UI, named(UI)),
            (&[UI, "*"], UI, named(UI)),
            (&[UI, "*"], "https://other.example", any),
            (&["null"], "null", named("null")),
            (&["*", "null"], "null", named("null")),
        ] {
            let origins = AllowedOrigins(allow.iter().map(ToString::to_string).collect());
            let found = origins.sharing_with(&HeaderValue::from_static(origin));
            assert_eq!(found, sharing, "{allow:?} {origin}");
        }
    }

    #[test]
    fn only_answers_that_caches_keep_vary_by_origin() {
        let some = AllowedOrigins(vec!["https://ui.example".into()]);
        for (method, sharing) in [
            (Method::GET, Sharing::OwnVaries),
            (Method::HEAD, Sharing::OwnVaries),
            (Method::POST, Sharing::Own),
        ] {
            assert_eq!(some.unshared(&method), sharing, "{method}");
            assert_eq!(AllowedOrigins(Vec::new()).unshared(&method), Sharing::Own, "{method}");
        }
    }
}
