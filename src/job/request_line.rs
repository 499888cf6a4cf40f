//! What a job's record keeps of its request: the method, the beginning of the target, the prefix of the route, and
//! whether the request can be repeated from these.
//!
//! Owns how much is kept. Does not decide which part of a target may be shown: the caller passes only that part.
//! Invariant: it never takes more than [`MAX_TARGET`] bytes besides the method.

use http::Method;

use crate::memory::allocated;

/// How much of a target is kept, in bytes.
pub const MAX_TARGET: usize = 256;

/// Method, target and route of a job's request; all are unknown if an older deferd stored the job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestLine {
    /// The method, a blank, and the beginning of the target; empty if they are unknown.
    text: Box<str>,
    /// How much of the target is the prefix of the route, in bytes.
    prefix: u16,
    /// Whether the request has no content, and its target is complete here.
    repeatable: bool,
}

impl RequestLine {
    /// Returns the line of a request for this target, whose path begins with the prefix of its route.
    pub fn new(method: &Method, target: &str, prefix: &str) -> Self {
        Self::of(method.as_str(), target, prefix.len())
    }

    fn of(method: &str, target: &str, prefix: usize) -> Self {
        let target = beginning(target);
        let prefix = prefix.min(target.len());
        let prefix =
            u16::try_from(prefix).expect("it is at most the length of a target that was cut");
        Self { text: [method, " ", target].concat().into(), prefix, repeatable: false }
    }

    /// Returns the line from its [`parts`](Self::parts); `None` if the target does not begin with the prefix.
    pub fn from_parts(method: &str, target: &str, prefix: &str) -> Option<Self> {
        beginning(target).starts_with(prefix).then(|| Self::of(method, target, prefix.len()))
    }

    /// Returns method, target and prefix; `None` if they are unknown.
    pub fn parts(&self) -> Option<(&str, &str, &str)> {
        let (method, target) = self.text.split_once(' ')?;
        Some((method, target, target.get(..usize::from(self.prefix))?))
    }

    /// Returns the same line for a request that can be repeated from it: the request has no content, and its target is
    /// `whole`.
    pub fn repeatable(mut self, whole: &str) -> Self {
        self.repeatable = self.parts().is_some_and(|(_, target, _)| target.len() == whole.len());
        self
    }

    /// Returns whether the request can be repeated from this line.
    pub const fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// Returns whether the route has this prefix.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.parts().is_some_and(|(_, _, own)| own == beginning(prefix))
    }

    /// Returns its accounted size besides its record, in bytes.
    pub fn footprint(&self) -> usize {
        allocated(self.text.len())
    }
}

/// Returns the part of a target's text that is kept.
pub fn beginning(text: &str) -> &str {
    let mut end = text.len().min(MAX_TARGET);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_the_beginning_of_its_target() {
        let long = format!("/run/{}", "x".repeat(300));
        let prefix = format!("/{}", "p".repeat(400));
        let wide = format!("/{}", "\u{fc}".repeat(200));
        for (target, prefix, kept, kept_prefix) in [
            ("/run/a?b=1", "/run/", "/run/a?b=1", "/run/"),
            ("*", "*", "*", "*"),
            (&long, "/run/", &long[..256], "/run/"),
            (&prefix, &prefix, &prefix[..256], &prefix[..256]),
            (&wide, "/", &wide[..255], "/"),
        ] {
            let line = RequestLine::new(&Method::POST, target, prefix);
            assert_eq!(line.parts(), Some(("POST", kept, kept_prefix)));
            assert!(line.has_prefix(prefix) && !line.has_prefix("/ru"));
            assert_eq!(RequestLine::from_parts("POST", kept, kept_prefix), Some(line));
        }
        assert_eq!(RequestLine::from_parts("GET", "/a", "/b"), None);
        for (target, is_repeatable) in [("/run/a?b=1", true), (&*long, false)] {
            let line = RequestLine::new(&Method::GET, target, "/run/");
            assert!(!line.is_repeatable());
            assert_eq!(line.repeatable(target).is_repeatable(), is_repeatable, "{target}");
        }
        assert_eq!((RequestLine::default().parts(), RequestLine::default().footprint()), (None, 0));
    }
}
