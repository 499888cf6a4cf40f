//! Checks that concern more than one option.
//!
//! Owns the rules for which options go together. Reads nothing. Invariant: an error names the option to change, its
//! place, and the remedy.

use super::{
    Address, Config, Durability, Exposure, FrontKind, Invalid, Listen, RouteConfig, Socket,
};

impl Config {
    /// Checks whether deferd may listen on `address`, which was requested at `place`: a service manager can hand over
    /// an address that is not the configured one.
    ///
    /// # Errors
    /// [`Invalid`], with the remedy.
    pub fn check_exposure(&self, address: &Address, place: &str) -> Result<(), Invalid> {
        if address.is_local() {
            return Ok(());
        }
        if self.exposure == Exposure::Loopback && self.auth.is_none() {
            let what = "not a loopback address: every host that reaches it could run the routes; \
                        say --auth FILE, or --insecure if that is meant";
            return Err(Invalid::new(place, &address.as_option(), what));
        }
        if self.front != FrontKind::Strict {
            let what = "not a loopback address, and --front tiny_http is for trusted callers only; \
                        use --front strict";
            return Err(Invalid::new(place, &address.as_option(), what));
        }
        Ok(())
    }

    /// Checks that no route has programs for the end of its jobs: a shared store has no notices.
    fn check_no_notices(&self) -> Result<(), Invalid> {
        let what = "not available with --store: use --data DIR, or wait with prefer: wait=N";
        if let Some(url) = self.allow_callback.last() {
            let (place, url) = (self.place("allow-callback"), url.uri().to_string());
            return Err(Invalid::new(&place, &url, what));
        }
        let tells =
            |route: &&RouteConfig| route.hook.on_done.is_some() || route.hook.on_failure.is_some();
        match self.routes.iter().find(tells) {
            Some(RouteConfig { place, prefix, .. }) => {
                Err(Invalid::new(place, prefix, format!("on-done, on-failure: {what}")))
            }
            None => Ok(()),
        }
    }

    /// Checks what concerns more than one option.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for Listen { socket, place, .. } in &self.listen {
            if let Socket::Tcp(address) = socket {
                self.check_exposure(&Address::Tcp(*address), place)?;
            }
        }
        self.check_sizes()?;
        if let (Some(store), Some(_)) = (&self.store, &self.data) {
            let what = "jobs are kept there or in --data DIR, not in both";
            return Err(Invalid::new(&self.place("store"), &store.to_string(), what));
        }
        if self.store.is_none() && self.lease != Self::default().lease {
            let what = "has no effect without --store";
            return Err(Invalid::new(&self.place("lease"), &format!("{:?}", self.lease), what));
        }
        if !self.is_stored_elsewhere() && self.durability != Durability::Commit {
            let what = "has no effect without --data DIR or --store";
            return Err(Invalid::new(&self.place("durability"), "relaxed", what));
        }
        if self.store.is_some() {
            self.check_no_notices()?;
        }
        match (self.allow_callback.last(), &self.callback_secret) {
            (Some(url), None) => {
                let what = "callbacks are signed: say --callback-secret FILE";
                return Err(Invalid::new(
                    &self.place("allow-callback"),
                    &url.uri().to_string(),
                    what,
                ));
            }
            (None, Some(file)) => {
                let what = "no callback is allowed: say --allow-callback URL";
                let file = file.display().to_string();
                return Err(Invalid::new(&self.place("callback-secret"), &file, what));
            }
            _ => {}
        }
        for (n, route) in self.routes.iter().enumerate() {
            if self.routes[..n].iter().any(|other| other.prefix == route.prefix) {
                let what = "this prefix has a route already";
                return Err(Invalid::new(&route.place, &route.prefix, what));
            }
            let has_owner = route.hook.check_owner(self.auth.is_some());
            has_owner.map_err(|what| Invalid::new(&route.place, &route.prefix, what))?;
        }
        Ok(())
    }
}
