//! The protocol's words: the names of the fields and the paths that are deferd's own.
//!
//! Owns each name once; what it means is decided by the module that reads or writes it. Depends on nothing
//! else of deferd, so that the server and a client can both build on it. Invariant: no other code spells one of
//! these names; only messages, tests and `api/openapi.json` do.

use http::{HeaderName, HeaderValue};

/// The name of deferd and its version: `user-agent` (RFC 9110 section 10.1.5), and `SERVER_SOFTWARE` of a script.
pub const PRODUCT: &str = concat!("deferd/", env!("CARGO_PKG_VERSION"));

/// Asks for a request to be deferred: `store` or `true`.
pub const ASYNC: HeaderName = HeaderName::from_static("x-arango-async");

/// The id of a job, on the `202` and on its result.
pub const ASYNC_ID: HeaderName = HeaderName::from_static("x-arango-async-id");

/// The same on a result, under the name that the prose of ArangoDB's documentation gives it.
pub const ASYNC_JOB_ID: HeaderName = HeaderName::from_static("x-arango-async-job-id");

/// The last line that a running job has written to stderr.
pub const PROGRESS: HeaderName = HeaderName::from_static("x-progress");

/// How far a pending job is: `waiting`, `delayed` or `running`.
pub const JOB_STATE: HeaderName = HeaderName::from_static("x-job-state");

/// The number of attempts that a job's result took, if its route tries again.
pub const ATTEMPTS: HeaderName = HeaderName::from_static("x-attempts");

/// The exit code of a program that failed.
pub const EXIT_CODE: HeaderName = HeaderName::from_static("x-exit-code");

/// The signal that ended a program.
pub const EXIT_SIGNAL: HeaderName = HeaderName::from_static("x-exit-signal");

/// The last line that a program wrote to stderr which failed as a job.
pub const STDERR: HeaderName = HeaderName::from_static("x-stderr");

/// The status code of a job's result, on its status (OData 4.01 section 8.3.1).
pub const ASYNC_RESULT: HeaderName = HeaderName::from_static("asyncresult");

/// `yes` on the record of a job whose request had no content and whose target the record has whole, so that it can be
/// sent again.
pub const REPEATABLE: HeaderName = HeaderName::from_static("x-repeatable");

/// What a client may do about an answer whose body says no more than ArangoDB's.
pub const HINT: HeaderName = HeaderName::from_static("x-hint");

/// A client's name for its submission (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Where a client wants to be told that its job is done; the preference `callback` says the same.
pub const CALLBACK_URL: HeaderName = HeaderName::from_static("x-callback-url");

/// How a client wants its request to be treated (RFC 7240).
pub const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Which preferences were heeded (RFC 7240 section 3).
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Give a POST the method that it stands for; in the order in which they count.
pub const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// The fields of an answer that a page may read, beside those that it always may.
pub const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-arango-async-id, x-arango-async-job-id, x-progress, location, retry-after, \
     preference-applied, x-attempts, x-exit-code, x-exit-signal, x-stderr, asyncresult, x-hint, \
     x-job-state, x-repeatable, link",
);

/// The prefix of a path that names its database.
pub const DATABASE: &str = "/_db/";

/// The prefixes below which the built-in endpoints stand, as ArangoDB has them.
pub const API: &str = "/_api/";

/// The other one.
pub const ADMIN: &str = "/_admin/";

/// The server itself, which can only be asked for its options (RFC 9112 section 3.2.4).
pub const SERVER: &str = "*";

/// The job resource: below it stand the jobs, each by its id.
pub const JOB: &str = "/_api/job";

/// Its other name.
pub const ADMIN_JOB: &str = "/_admin/job";

/// The records of the jobs.
pub const JOB_RECORDS: &str = "/_admin/jobs";

/// The page that shows the jobs.
pub const UI: &str = "/_admin/ui";

/// What is counted, for Prometheus.
pub const METRICS: &str = "/_admin/metrics";

/// The version.
pub const VERSION: &str = "/_api/version";

/// Its other name.
pub const ADMIN_VERSION: &str = "/_admin/version";

/// The collections.
pub const COLLECTION: &str = "/_api/collection";

/// The description of all endpoints.
pub const DESCRIPTION: &str = "/_api/openapi.json";

/// The server's clock.
pub const TIME: &str = "/_admin/time";

/// Takes its time.
pub const SLEEP: &str = "/_admin/sleep";

/// Shows a request to its client.
pub const ECHO: &str = "/_admin/echo";

/// Whether new requests are welcome.
pub const AVAILABILITY: &str = "/_admin/server/availability";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_own_field_of_answers_is_exposed() {
        let exposed = EXPOSED;
        let exposed: Vec<_> = exposed.to_str().unwrap().split(", ").collect();
        let own = [ASYNC_ID, ASYNC_JOB_ID, PROGRESS, PREFERENCE_APPLIED, ATTEMPTS, EXIT_CODE];
        for name in
            own.iter().chain(&[EXIT_SIGNAL, STDERR, ASYNC_RESULT, HINT, JOB_STATE, REPEATABLE])
        {
            assert!(exposed.contains(&name.as_str()), "{name}");
        }
    }
}
