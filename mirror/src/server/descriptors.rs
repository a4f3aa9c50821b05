//! File descriptors: the limit of the process, and the part of it that clients may take.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// The most connections without a configured number: idle, they take up to 32 KiB of memory each (docs/adr/0030).
const MOST: u64 = 1_024;
/// The fewest connections, however low the limit is.
const FEWEST: u64 = 16;

/// Raises the soft limit of open files to the hard limit.
///
/// Soft limits are low (1,024, or 256) for programs that use `select`, which fails beyond; this one does not.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => debug!(
            from = limit.current,
            to = limit.maximum,
            "the limit of open files is raised"
        ),
        Err(error) => warn!(%error, "the limit of open files stays at its soft value: raise it (ulimit -n)"),
    }
}

/// Returns the bound on client connections: as configured, or by the limit of open files.
pub(super) fn max_connections(configured: Option<usize>) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let max = bound(configured, limit);
    if let Some(configured) = configured.filter(|configured| *configured > max) {
        warn!(
            key = "http.maxconnections",
            "{configured} connections do not fit into {limit} open files, {max} are allowed: raise the limit (ulimit -n)"
        );
    }
    max
}

/// Returns the bound on client connections under a limit of open files.
///
/// A connection takes two descriptors while it sends a blob, so half of the limit serves a quarter of it in connections.
/// The rest is for blobs that are kept open, upstreams, downloads and the admin port. A configured number may take up to
/// three quarters.
fn bound(configured: Option<usize>, limit: u64) -> usize {
    let bound = match configured {
        Some(configured) => (configured as u64).min(limit / 4 * 3),
        None => (limit / 4).clamp(FEWEST, MOST),
    };
    usize::try_from(bound.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(None, 256 => 64; "a low limit")]
    #[test_case(None, 1 << 20 => 1_024; "a high limit")]
    #[test_case(None, 8 => 16; "a limit that is of no use")]
    #[test_case(Some(200), 256 => 192; "more than fits")]
    #[test_case(Some(20_000), 1 << 20 => 20_000; "as configured")]
    #[test_case(Some(1), 256 => 1; "a single connection")]
    fn connections_leave_descriptors_for_the_rest(configured: Option<usize>, limit: u64) -> usize {
        bound(configured, limit)
    }

    #[test]
    fn soft_limit_becomes_the_hard_one() {
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
