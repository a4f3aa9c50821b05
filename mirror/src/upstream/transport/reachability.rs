//! Reachability of an upstream, so that no request waits for one that is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::upstream::error::Error;
use crate::upstream::transport::Transport;

/// The last observed reachability.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::upstream) enum Reachability {
    /// No request was sent yet.
    #[default]
    Unknown,
    /// The upstream sent a response, of any status.
    Up,
    /// A request and the probe after it got no response.
    Down {
        /// The problem.
        what: String,
        /// The time of the next probe.
        next_probe: Timestamp,
    },
}

#[derive(Debug, Default)]
pub(in crate::upstream) struct ReachabilityState {
    observed: Mutex<Reachability>,
    probing: AtomicBool,
}

impl ReachabilityState {
    pub(in crate::upstream) fn observed(&self) -> Reachability {
        self.observed.lock().clone()
    }

    pub(in crate::upstream) fn set(&self, observed: Reachability) {
        *self.observed.lock() = observed;
    }

    /// Returns `true` if a request failed or hangs and no response arrived since.
    pub(in crate::upstream) fn is_probing(&self) -> bool {
        self.probing.load(Ordering::Acquire)
    }

    /// Fails while the upstream is down.
    pub(in crate::upstream) fn admit(&self) -> Result<(), Error> {
        match self.observed() {
            Reachability::Down { what, .. } => Err(Error::unavailable(format!("it is down: {what}"))),
            Reachability::Unknown | Reachability::Up => Ok(()),
        }
    }
}

impl Transport {
    /// Starts a probe after a request failed or hangs. The probe decides if the upstream is down, and continues until
    /// it is back: a single failed request proves nothing.
    pub(in crate::upstream) fn start_probe(self: &Arc<Self>) {
        if self.reachability.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let transport = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = None;
            // The task ends when the upstream is dropped.
            while let Some(transport) = transport.upgrade() {
                let Err(what) = transport.probe().await else {
                    transport.reachability.set(Reachability::Up);
                    transport.reachability.probing.store(false, Ordering::Release);
                    return;
                };
                tracing::warn!(host = %transport.host, %what, "upstream is down");
                let error = Error::unavailable(what.as_str());
                transport.errors.record(&error);
                let (first, most) = (transport.timeouts.probe_first, transport.timeouts.probe_most);
                let now = pause.map_or(first, |last: std::time::Duration| {
                    last.saturating_mul(2).min(most)
                });
                pause = Some(now);
                let next_probe = transport.errors.time_after(now);
                transport
                    .reachability
                    .set(Reachability::Down { what, next_probe });
                drop(transport);
                tokio::time::sleep(now).await;
            }
        });
    }
}
