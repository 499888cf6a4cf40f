//! ureq as deferd uses it: it speaks HTTP, and nothing more.
//!
//! Owns the settings that an upstream, the receiver of a callback and another deferd have in common. Opens no
//! connection: `handler/upstream/socket` and `client/transport` do. Invariant: a request has no field, no proxy and no
//! repetition that its caller did not ask for, and its answer comes as it was sent, whatever its status code.

use ureq::Agent;
use ureq::config::{Config, ConfigBuilder};
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Returns the common settings.
pub fn config() -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .allow_non_standard_methods(true)
        .user_agent("")
        .accept("")
        .accept_encoding("")
        // None from the environment.
        .proxy(None)
}

/// Leaves names to the connector: ureq would look them up for kept connections too.
#[derive(Debug)]
pub struct AtConnect;

impl Resolver for AtConnect {
    fn resolve(
        &self,
        _: &http::Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}
