//! Requests to a deferd, and what its refusals say.
//!
//! Owns the URL, the token, and the words for a deferd that cannot be reached or refuses. Does not know what an answer
//! means for a job. Invariant: the token is sent to that deferd alone, and appears in no message.

use std::io::Read;
use std::path::PathBuf;

use http::header::{AUTHORIZATION, HOST};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use ureq::{Agent, Body, SendBody};

use super::Trouble;
use super::transport::{self, Place};
use crate::allowed_hosts::name_and_port;
use crate::protocol::HINT;

/// How much of a refusal is read, in bytes.
const MAX_REFUSAL: u64 = 64 << 10;

/// A deferd.
pub struct Server {
    agent: Agent,
    /// Its URL, for messages.
    url: String,
    /// Host and port, the value of `host`.
    authority: String,
    /// The prefix of each path.
    prefix: String,
    credentials: Option<HeaderValue>,
}

/// How long an answer may stay silent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The limit for any answer.
    Bounded,
    /// No limit.
    Endless,
}

/// A request without its content.
pub struct Question {
    pub method: Method,
    pub path: String,
    pub fields: HeaderMap,
}

impl Question {
    /// Returns the request with this method and path.
    pub fn new(method: Method, path: String) -> Self {
        Self { method, path, fields: HeaderMap::new() }
    }
}

/// An answer, its content unread.
pub struct Answer {
    pub response: Response<Body>,
    /// The request, for messages.
    asked: String,
}

impl Server {
    /// Returns the deferd at this URL. Does not connect.
    ///
    /// # Errors
    /// [`Trouble::Usage`].
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, Trouble> {
        let usage = |what: &str| Trouble::Usage(format!("the URL {url:?}: {what}"));
        let credentials = match token.map(|token| HeaderValue::try_from(format!("Bearer {token}")))
        {
            None => None,
            Some(Ok(mut value)) => {
                value.set_sensitive(true);
                Some(value)
            }
            Some(Err(_)) => {
                return Err(Trouble::Usage("the token is not a valid field value".into()));
            }
        };
        if !url.starts_with("unix:") && url.contains('@') {
            // The URL is not repeated: it may contain a token.
            let what = "the URL has credentials; put the token into DEFERD_TOKEN or --token-file";
            return Err(Trouble::Usage(what.into()));
        }
        let (place, authority, prefix) = if let Some(path) = url.strip_prefix("unix:") {
            (Place::Unix(PathBuf::from(path)), "localhost", "")
        } else if let Some(rest) = url.strip_prefix("http://") {
            let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let (name, port) = name_and_port(authority).ok_or_else(|| usage("no host"))?;
            let name = name.trim_start_matches('[').trim_end_matches(']');
            (Place::Tcp(name.into(), port.unwrap_or(80)), authority, prefix.trim_end_matches('/'))
        } else {
            return Err(usage("neither http://HOST:PORT nor unix:/path"));
        };
        if prefix.contains(['?', '#']) || authority.parse::<Authority>().is_err() {
            return Err(usage("not a host, a port and a path"));
        }
        Ok(Self {
            agent: transport::agent(place),
            url: url.to_owned(),
            authority: authority.to_owned(),
            prefix: prefix.to_owned(),
            credentials,
        })
    }

    /// Sends a request without content.
    ///
    /// # Errors
    /// [`Trouble::Refused`] if there is no answer.
    pub fn ask(&self, question: Question) -> Result<Answer, Trouble> {
        self.ask_for(question, Patience::Bounded)
    }

    /// Sends a request without content; its answer may be silent for this long.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_for(&self, question: Question, patience: Patience) -> Result<Answer, Trouble> {
        self.send(question, SendBody::none(), patience)
    }

    /// Sends a request with content, whose length may be among the fields.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), and [`Trouble::Usage`] if the path is invalid.
    pub fn send(
        &self,
        question: Question,
        content: SendBody<'_>,
        patience: Patience,
    ) -> Result<Answer, Trouble> {
        let asked = format!("{} {}", question.method, question.path);
        let url = format!("http://{}{}{}", self.authority, self.prefix, escaped(&question.path));
        let request = Request::builder().method(question.method).uri(url).body(content);
        let mut request = request.map_err(|error| Trouble::Usage(format!("{asked}: {error}")))?;
        *request.headers_mut() = question.fields;
        if let Some(credentials) = &self.credentials {
            request.headers_mut().insert(AUTHORIZATION, credentials.clone());
        }
        if let Ok(host) = HeaderValue::try_from(&self.authority) {
            request.headers_mut().entry(HOST).or_insert(host);
        }
        let sent = if patience == Patience::Endless {
            let patient = self.agent.configure_request(request).timeout_per_read(None);
            self.agent.run(patient.build())
        } else {
            self.agent.run(request)
        };
        match sent {
            Ok(response) => Ok(Answer { response, asked }),
            Err(error) => Err(Trouble::Refused(format!("{}: {}", self.url, words(error)))),
        }
    }
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub fn has(&self, name: &HeaderName) -> bool {
        self.response.headers().contains_key(name)
    }

    /// Returns a field as text; `None` if it is absent.
    pub fn field(&self, name: &HeaderName) -> Option<String> {
        let value = self.response.headers().get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// Returns a field as a number.
    pub fn number<T: std::str::FromStr>(&self, name: &HeaderName) -> Option<T> {
        self.field(name)?.parse().ok()
    }

    /// Reads the content of an answer that deferd itself made.
    ///
    /// # Errors
    /// [`Trouble::Refused`] if the content breaks off.
    pub fn content(&mut self) -> Result<Vec<u8>, Trouble> {
        let mut content = Vec::new();
        let read = self.response.body_mut().as_reader().read_to_end(&mut content);
        read.map_err(|error| Trouble::Refused(format!("{}: {error}", self.asked)))?;
        Ok(content)
    }

    /// Returns the request that was refused, and why: the message of deferd's error, and a hint for people.
    pub fn refusal(mut self) -> Trouble {
        let hint = self.field(&HINT);
        let mut content = Vec::new();
        let _ = self.response.body_mut().as_reader().take(MAX_REFUSAL).read_to_end(&mut content);
        let json: Option<serde_json::Value> = serde_json::from_slice(&content).ok();
        let message = json.as_ref().and_then(|json| json["errorMessage"].as_str());
        let mut text = format!("{}: status {}", self.asked, self.status());
        for more in [message, hint.as_deref()].into_iter().flatten() {
            text.push_str(": ");
            text.push_str(more);
        }
        Trouble::Refused(text)
    }
}

/// Returns the message of an error of ureq.
fn words(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Returns a path with its query as a valid target: bytes that a target must not contain are percent-encoded.
fn escaped(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (url, authority, prefix) in [
            ("http://127.0.0.1:8529", "127.0.0.1:8529", ""),
            ("http://[::1]:1/", "[::1]:1", ""),
            ("http://nas", "nas", ""),
            ("http://nas/jobs/", "nas", "/jobs"),
            ("unix:/run/deferd.sock", "localhost", ""),
        ] {
            let server = Server::new(url, Some("secret")).unwrap();
            assert_eq!((server.authority.as_str(), server.prefix.as_str()), (authority, prefix));
        }
        for (url, what) in [
            ("https://nas", "neither http://"),
            ("nas:8529", "neither http://"),
            ("http://", "no host"),
            ("http://nas:x", "no host"),
            ("http://nas/?x", "not a host, a port and a path"),
            ("http://me:secret@nas", "has credentials"),
            ("https://me:secret@nas", "has credentials"),
            ("me:secret@nas:8529", "has credentials"),
        ] {
            let Err(trouble) = Server::new(url, None) else { panic!("{url} is accepted") };
            let text = trouble.to_string();
            assert!(text.contains(what) && !text.contains("secret"), "{url}: {text}");
        }
    }

    #[test]
    fn targets_are_percent_encoded_where_needed() {
        assert_eq!(escaped("/run/x?a=1&b=%20"), "/run/x?a=1&b=%20");
        assert_eq!(escaped("/run/my \u{fc}#\n"), "/run/my%20%C3%BC%23%0A");
    }
}
