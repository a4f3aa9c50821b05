//! What is known about an upstream being there at all, so that nobody waits for one that is down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Error;
use super::wire::Wire;

/// The last that was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Contact {
    /// Nothing was asked yet.
    #[default]
    None,
    /// An answer, whatever it said.
    Up,
    /// No answer to a request, nor to the probe after it.
    Down {
        /// What went wrong.
        what: String,
    },
}

#[derive(Debug, Default)]
pub(super) struct Health {
    contact: Mutex<Contact>,
    probing: AtomicBool,
}

impl Health {
    pub(super) fn contact(&self) -> Contact {
        self.contact
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set(&self, contact: Contact) {
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner) = contact;
    }

    /// A request failed or hangs, and nothing was heard since.
    pub(super) fn is_doubted(&self) -> bool {
        self.probing.load(Ordering::Acquire)
    }

    /// Fails at once while the upstream is known to be down.
    pub(super) fn admit(&self) -> Result<(), Error> {
        match self.contact() {
            Contact::Down { what } => Err(Error::unavailable(format!("it is down: {what}"))),
            Contact::None | Contact::Up => Ok(()),
        }
    }
}

impl Wire {
    /// A request failed, or hangs: has a probe find out whether the upstream is down, and, if so,
    /// when it is back. One failed request alone proves nothing: requests fail for their own reasons.
    pub(super) fn suspect(self: &Arc<Self>) {
        if self.health.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let wire = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = None;
            // Ends with the upstream that it probes.
            while let Some(wire) = wire.upgrade() {
                let Err(what) = wire.probe().await else {
                    wire.health.set(Contact::Up);
                    wire.health.probing.store(false, Ordering::Release);
                    return;
                };
                tracing::warn!(host = %wire.host, %what, "upstream is down");
                wire.health.set(Contact::Down { what });
                let (first, most) = (wire.timeouts.probe_first, wire.timeouts.probe_most);
                let now = pause.map_or(first, |last: std::time::Duration| {
                    last.saturating_mul(2).min(most)
                });
                pause = Some(now);
                drop(wire);
                tokio::time::sleep(now).await;
            }
        });
    }
}
