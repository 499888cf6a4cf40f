//! The options of routes for webhooks: methods, deferring, signatures, and programs for the end of a job.
//!
//! Owns their syntax and the rules for which go together. Reads no file. Invariant: an option that would have no
//! effect is refused.

use std::path::PathBuf;

use http::{HeaderName, Method, StatusCode};

use super::route::Setter;
use super::value;
use crate::job::Keep;
use crate::methods;
use crate::signature::Scheme;

/// How a route treats requests whose clients cannot use deferd's own fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookConfig {
    /// The methods that it accepts; `None`: all but TRACE.
    pub methods: Option<Vec<Method>>,
    /// Whether the route defers every request, and what happens to the results.
    pub defer: Option<Keep>,
    /// The status code of the answer to deferred requests, if not `202`.
    pub accepted: Option<StatusCode>,
    /// The field whose value is the idempotency key if a client sends no key.
    pub idempotency: Option<HeaderName>,
    /// The file of the secrets with which its requests are signed.
    pub secret: Option<PathBuf>,
    /// The scheme of the signatures.
    pub signature: Option<Scheme>,
    /// The user who owns the jobs of signed requests.
    pub owner: Option<String>,
    /// The program that runs for each job that is done; a relative path begins at the directory of the route.
    pub on_done: Option<PathBuf>,
    /// The program that runs for each job that failed.
    pub on_failure: Option<PathBuf>,
}

/// The options of hooks by name.
pub const OPTIONS: [(&str, Setter); 9] = [
    ("methods", |r, v| methods::parse(v).map(|v| r.hook.methods = Some(v))),
    ("defer", |r, v| {
        let words = [("store", Keep::Result), ("drop", Keep::Nothing)];
        value::choice(v, words).map(|v| r.hook.defer = Some(v))
    }),
    ("accepted", |r, v| success(v).map(|v| r.hook.accepted = Some(v))),
    ("idempotency", |r, v| field(v).map(|v| r.hook.idempotency = Some(v))),
    ("secret", |r, v| value::path(v).map(|v| r.hook.secret = Some(v))),
    ("signature", |r, v| scheme(v).map(|v| r.hook.signature = Some(v))),
    ("owner", |r, v| user(v).map(|v| r.hook.owner = Some(v))),
    ("on-done", |r, v| value::path(v).map(|v| r.hook.on_done = Some(v))),
    ("on-failure", |r, v| value::path(v).map(|v| r.hook.on_failure = Some(v))),
];

impl HookConfig {
    /// Checks that options that need each other are given together.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), String> {
        if self.accepted.is_some() && self.defer.is_none() {
            return Err("accepted=CODE needs defer=store or defer=drop: it is missing".into());
        }
        match (&self.secret, self.signature) {
            (Some(_), None) => {
                Err("secret=FILE needs signature=github, gitea, gitlab or standard: it is missing"
                    .into())
            }
            (None, Some(_)) => Err("signature=NAME needs secret=FILE: it is missing".into()),
            (None, None) if self.owner.is_some() => {
                Err("owner=USER needs secret=FILE: it is missing".into())
            }
            _ => Ok(()),
        }
    }

    /// Checks that the jobs of signed requests have an owner exactly if deferd has users.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_owner(&self, has_users: bool) -> Result<(), &'static str> {
        match (&self.secret, &self.owner) {
            (Some(_), None) if has_users => {
                Err("with --auth, a route with a secret needs owner=USER, to whom its jobs belong")
            }
            (Some(_), Some(_)) if !has_users => {
                Err("owner=USER without --auth: no client could collect the results")
            }
            _ => Ok(()),
        }
    }
}

fn success(text: &str) -> Result<StatusCode, String> {
    let code = text.parse().ok().filter(StatusCode::is_success);
    code.ok_or_else(|| "not a status code from 200 to 299".into())
}

fn field(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| "not the name of a field".into())
}

fn scheme(text: &str) -> Result<Scheme, String> {
    match text {
        "github" => Ok(Scheme::GitHub),
        "gitea" => Ok(Scheme::Gitea),
        "gitlab" => Ok(Scheme::GitLab),
        "standard" => Ok(Scheme::Standard),
        _ => Err("neither github, gitea, gitlab nor standard".into()),
    }
}

fn user(text: &str) -> Result<String, String> {
    crate::auth::check_name(text)?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::route::parse;
    use super::*;

    #[test]
    fn the_options_of_hooks_are_read() {
        assert_eq!(parse("/=run:x").unwrap().hook, HookConfig::default());
        let route = parse(
            "/hook/=run:x,defer=store,accepted=200,idempotency=X-GitHub-Delivery,methods=POST+GET,\
             secret=/etc/s,signature=github,owner=ann,on-done=.hooks/a,on-failure=/b",
        );
        let expected = HookConfig {
            methods: Some(vec![Method::POST, Method::GET]),
            defer: Some(Keep::Result),
            accepted: Some(StatusCode::OK),
            idempotency: Some(HeaderName::from_static("x-github-delivery")),
            secret: Some("/etc/s".into()),
            signature: Some(Scheme::GitHub),
            owner: Some("ann".into()),
            on_done: Some(".hooks/a".into()),
            on_failure: Some("/b".into()),
        };
        assert_eq!(route.unwrap().hook, expected);
        for (text, scheme) in
            [("gitea", Scheme::Gitea), ("gitlab", Scheme::GitLab), ("standard", Scheme::Standard)]
        {
            let route = parse(&format!("/=http://h,secret=s,signature={text},defer=drop")).unwrap();
            assert_eq!(
                (route.hook.signature, route.hook.defer),
                (Some(scheme), Some(Keep::Nothing))
            );
        }
    }

    #[test]
    fn options_of_hooks_are_refused_by_name() {
        for (options, part) in [
            ("defer=yes", "defer \"yes\": neither store nor drop"),
            ("defer=store,accepted=302", "accepted \"302\": not a status code from 200 to 299"),
            ("accepted=200", "it is missing"),
            ("idempotency=a b", "idempotency \"a b\": not the name of a field"),
            ("methods=get", "methods \"get\": \"get\" is not a method"),
            ("secret=s", "secret=FILE needs signature="),
            ("signature=github", "signature=NAME needs secret=FILE"),
            ("secret=s,signature=sha1", "neither github, gitea, gitlab nor standard"),
            ("secret=,signature=github", "secret \"\": not a path"),
            ("owner=ann", "owner=USER needs secret=FILE"),
            ("on-done=", "on-done \"\": not a path"),
            ("secret=s,signature=github,owner=a b", "owner \"a b\": a user name"),
        ] {
            let error = parse(&format!("/x=run:y,{options}")).unwrap_err();
            assert!(error.contains(part), "{options}: {error}");
        }
    }

    #[test]
    fn signed_jobs_have_an_owner_exactly_if_there_are_users() {
        let hook = |owner| {
            let text = format!("/=run:x,secret=s,signature=github{owner}");
            parse(&text).unwrap().hook
        };
        assert!(
            hook("").check_owner(false).is_ok() && hook(",owner=ann").check_owner(true).is_ok()
        );
        assert!(
            hook("").check_owner(true).is_err() && hook(",owner=ann").check_owner(false).is_err()
        );
        assert!(HookConfig::default().check_owner(true).is_ok());
    }
}
