//! The options of an upstream besides its configuration.

use std::time::Duration;

use crate::clock::Clock;
use crate::metrics::Metrics;

/// The options of an upstream besides its configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The clock for cooldowns and tokens.
    pub clock: Clock,
    /// The counters of responses.
    pub metrics: Metrics,
    /// Timeouts for upstream requests.
    pub timeouts: Timeouts,
    /// Concurrency limits.
    pub limits: Limits,
}

/// Timeouts for upstream requests.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For connecting, with name resolution and TLS.
    pub connect: Duration,
    /// For the header of a response.
    pub header: Duration,
    /// For the next bytes of a body, and for a minimum throughput.
    pub idle: Duration,
    /// For a whole body that is read into memory.
    pub body: Duration,
    /// For a free place among concurrent requests (see [`Limits`]).
    pub queue: Duration,
    /// For a free place if a client waits that got no header yet: clients give up after 30 s.
    pub patience: Duration,
    /// The time without a response after which a probe starts.
    pub suspect: Duration,
    /// For the response to a probe.
    pub probe: Duration,
    /// The first pause between probes of an upstream that is down; doubles up to `probe_most`.
    pub probe_first: Duration,
    /// The longest pause between probes.
    pub probe_most: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            header: Duration::from_secs(20),
            idle: Duration::from_secs(30),
            body: Duration::from_mins(1),
            queue: Duration::from_secs(10),
            patience: Duration::from_secs(25),
            suspect: Duration::from_secs(1),
            probe: Duration::from_secs(3),
            probe_first: Duration::from_secs(1),
            probe_most: Duration::from_secs(30),
        }
    }
}

/// Concurrency limits of one upstream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Blobs being downloaded into the cache.
    pub blobs: usize,
    /// Blobs and parts of them that pass by it, each for one client: as many clients as may be served at a time while
    /// the cache has no room. Each takes up to 1 MiB of memory.
    pub passing: usize,
    /// All other requests.
    pub others: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blobs: 128,
            passing: 256,
            others: 64,
        }
    }
}
