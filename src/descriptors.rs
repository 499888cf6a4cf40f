//! The limit of descriptors: raised at start, and divided so that connections leave a reserve.
//!
//! Owns the arithmetic and the two calls to the system. Invariants: the limit is never lowered; scripts are
//! told the limit that deferd was started with.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a worker needs: the pipes of a script, its process, its wake-up, or a call to an upstream; and the files of its
/// request and its result.
const PER_WORKER: u64 = 8;

/// What everything else needs: listening sockets, the store, the log, lookups, connections that are refused.
const OTHERS: u64 = 64;

/// What is asked for: for each connection its own, the file of its content, and those of the script or upstream that it
/// waits for.
const PER_CONNECTION: u64 = 4;
const BESIDE_CONNECTIONS: u64 = 1024;

/// With fewer connections deferd would be useless: then the reserve is given up.
const FEWEST_CONNECTIONS: u64 = 16;

/// How the descriptors are divided.
#[derive(Debug)]
pub struct Descriptors {
    /// How many connections there may be at once.
    pub max_connections: usize,
    /// The limit that scripts get; `None`: the one that deferd has.
    pub of_scripts: Option<Rlimit>,
}

impl Descriptors {
    /// Raises the limit as far as `max_connections` needs it and the system allows, and keeps a reserve
    /// for the workers.
    pub fn prepare(max_connections: usize, workers: usize) -> Self {
        let before = getrlimit(Resource::Nofile);
        let wanted = wanted(max_connections);
        let mut limit = before.current;
        let raised = raised(&before, wanted);
        let mut of_scripts = None;
        if let Some(raised) = raised {
            let new = Rlimit { current: Some(raised), maximum: before.maximum };
            match setrlimit(Resource::Nofile, new) {
                Ok(()) => {
                    limit = Some(raised);
                    of_scripts = Some(before);
                }
                Err(error) => {
                    let error = io::Error::from(error);
                    log::warn!("cannot raise the limit of descriptors to {raised}: {error}");
                }
            }
        }
        let share = limit.map_or(Share::Enough, |limit| Share::of(limit, max_connections, workers));
        share.warn(limit.unwrap_or_default(), max_connections, wanted);
        let max_connections = match share {
            Share::Enough | Share::NoReserve => max_connections,
            Share::Fewer(connections) => connections,
        };
        Self { max_connections, of_scripts }
    }
}

fn wanted(max_connections: usize) -> u64 {
    PER_CONNECTION.saturating_mul(max_connections as u64).saturating_add(BESIDE_CONNECTIONS)
}

/// Returns the soft limit to set; `None` if that would not raise it.
fn raised(before: &Rlimit, wanted: u64) -> Option<u64> {
    let most = before.maximum.map_or(wanted, |hard| hard.min(wanted));
    before.current.is_some_and(|soft| soft < most).then_some(most)
}

/// What a limit leaves for connections.
#[derive(Debug, PartialEq, Eq)]
enum Share {
    /// As many as were asked for.
    Enough,
    /// So many, so that the workers have theirs.
    Fewer(usize),
    /// The limit is too small for both.
    NoReserve,
}

impl Share {
    fn of(limit: u64, max_connections: usize, workers: usize) -> Self {
        let reserve = PER_WORKER * workers as u64 + OTHERS;
        let left = limit.saturating_sub(reserve);
        if left >= max_connections as u64 {
            return Self::Enough;
        }
        if left < FEWEST_CONNECTIONS {
            return Self::NoReserve;
        }
        Self::Fewer(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn warn(&self, limit: u64, max_connections: usize, wanted: u64) {
        let what = match self {
            Self::Enough => return,
            Self::Fewer(connections) => {
                format!("only {connections} connections are served at once")
            }
            Self::NoReserve => "scripts and upstreams may find none left".to_owned(),
        };
        log::warn!(
            "the limit of {limit} descriptors is too small for --max-connections {max_connections}: \
             {what}; raise it to {wanted} (LimitNOFILE= of systemd, ulimit -Hn), or lower --max-connections"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_and_never_lowered() {
        for (soft, hard, max_connections, expected) in [
            (Some(1024), Some(524_288), 512, Some(3072)),
            (Some(1024), Some(2000), 512, Some(2000)),
            (Some(1024), Some(1024), 512, None),
            (Some(4096), Some(524_288), 512, None),
            (Some(1024), None, 512, Some(3072)),
            (None, None, 512, None),
        ] {
            let before = Rlimit { current: soft, maximum: hard };
            assert_eq!(raised(&before, wanted(max_connections)), expected, "{before:?}");
        }
    }

    #[test]
    fn connections_leave_a_reserve_for_the_workers() {
        for (limit, max_connections, workers, share) in [
            (3072, 512, 2, Share::Enough),
            (592, 512, 2, Share::Enough),
            (591, 512, 2, Share::Fewer(511)),
            (256, 512, 4, Share::Fewer(160)),
            (96, 512, 2, Share::Fewer(16)),
            (95, 512, 2, Share::NoReserve),
            (64, 512, 2, Share::NoReserve),
            (84, 4, 2, Share::Enough),
        ] {
            assert_eq!(Share::of(limit, max_connections, workers), share, "{limit} {workers}");
        }
    }
}
