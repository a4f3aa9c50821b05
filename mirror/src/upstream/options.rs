//! What an upstream is run with beside its configuration.

use std::time::Duration;

use crate::clock::Clock;
use crate::metrics::Metrics;

/// What an upstream is run with beside its configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What rests and tokens are timed by.
    pub clock: Clock,
    /// Where answers are counted.
    pub metrics: Metrics,
    /// How long is waited for what.
    pub timeouts: Timeouts,
    /// How much is asked at a time.
    pub limits: Limits,
}

/// How long is waited for what.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For a connection, name look-up and TLS included.
    pub connect: Duration,
    /// For an answer's header.
    pub header: Duration,
    /// For the next bytes of a body, and for more than drops of it.
    pub idle: Duration,
    /// For the whole of a body that is read into memory.
    pub body: Duration,
    /// For one of the requests that run (see [`Limits`]) to end.
    pub queue: Duration,
    /// The same where a client waits that got no header yet: they give up after 30 s.
    pub patience: Duration,
    /// After this long without an answer a probe asks whether the upstream is there at all.
    pub suspect: Duration,
    /// For the answer to a probe.
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

/// How much one upstream is asked at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Blobs being downloaded into the cache.
    pub blobs: usize,
    /// Blobs and parts of them that pass by it, each for one client: as many clients as may be served at a time while
    /// the cache has no room. Each takes up to 1 MiB of memory.
    pub passing: usize,
    /// Everything else.
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
