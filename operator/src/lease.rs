//! Leader election by a Lease: only its holder writes.
//!
//! Every write to the Lease is a PUT with the version that was read, so that of two only one succeeds. The monotonic
//! clock of this machine measures times, from before a request is sent; timestamps of other clocks are compared for
//! equality only. A holder that was suspended or can't renew in time starts no write any more: its [`Fence`] closes
//! before another operator may take the Lease.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    client::{Body, ClientBuilder},
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::{BoxError, filter::FilterLayer};

/// The time after the last renewal after which others take the Lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// The time after its last renewal for which the holder writes.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The interval of renewals, and of checks by others.
pub const RETRY: Duration = Duration::from_secs(2);
/// The time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(4);

/// The time until which writes may start.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

/// The error of a write without the Lease.
#[derive(Debug, thiserror::Error)]
#[error("write refused: this operator does not hold the lease, and the holder will repeat it")]
pub struct Closed;

impl Fence {
    fn open_until(&self, end: Instant) {
        *self.0.lock() = Some(end);
    }

    fn close(&self) {
        *self.0.lock() = None;
    }

    /// Returns whether a write may start now.
    pub fn is_open(&self) -> bool {
        let end = *self.0.lock();
        end.is_some_and(|end| Instant::now() < end)
    }

    /// Creates a client that sends writes only while the fence is open.
    ///
    /// # Errors
    /// The configuration is invalid, e.g. for a malformed certificate.
    pub fn client(&self, config: Config) -> kube::Result<Client> {
        let fence = self.clone();
        let guard = FilterLayer::new(move |request: http::Request<Body>| -> Result<_, BoxError> {
            if request.method().is_safe() || fence.is_open() {
                Ok(request)
            } else {
                Err(Closed.into())
            }
        });
        Ok(ClientBuilder::try_from(config)?.with_layer(&guard).build())
    }
}

/// The election of one process.
pub struct Lease {
    api: Api<Object>,
    name: String,
    identity: String,
    fence: Fence,
}

/// The loss of a Lease.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another operator holds the Lease.
    #[error("lease {lease} lost to {holder}")]
    Taken {
        /// The name of the Lease.
        lease: String,
        /// The identity of the holder.
        holder: String,
    },
    /// The Lease was not renewed in time.
    #[error("lease {lease} not renewed within {} s: {why}", DEADLINE.as_secs())]
    Late {
        /// The name of the Lease.
        lease: String,
        /// The error of the last attempt.
        why: String,
    },
}

/// The last observed version of another holder's Lease, and the time since which it is unchanged.
struct Observation {
    version: Option<String>,
    since: Instant,
}

impl Lease {
    /// Creates an election for a Lease in a namespace. No other process has the same identity.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String, fence: Fence) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            fence,
        }
    }

    /// Waits until this process holds the Lease.
    pub async fn acquire(&self) -> Object {
        let mut observation = None;
        let mut is_logged = false;
        loop {
            let sent = Instant::now();
            match timeout(TIMEOUT, self.try_acquire(&mut observation)).await {
                Ok(Ok(Some(held))) => {
                    self.fence.open_until(sent + DEADLINE);
                    tracing::info!(lease = self.name, identity = self.identity, "leading");
                    return held;
                }
                Ok(Ok(None)) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::info!(lease = self.name, "another operator leads, on standby");
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "lease not acquired, retrying");
                }
                Err(_) => tracing::warn!(lease = self.name, "lease not acquired: no response, retrying"),
            }
            sleep(RETRY).await;
        }
    }

    async fn try_acquire(&self, observation: &mut Option<Observation>) -> kube::Result<Option<Object>> {
        let Some(live) = self.api.get_opt(&self.name).await? else {
            let created = self.api.create(&PostParams::default(), &self.claim(None)).await;
            return none_on_conflict(created);
        };
        let version = live.metadata.resource_version.clone();
        let now = Instant::now();
        let seen = match observation.take() {
            Some(seen) if seen.version == version => seen,
            _ => Observation { version, since: now },
        };
        let over = now.duration_since(seen.since) >= duration(&live);
        *observation = Some(seen);
        match holder(&live) {
            Some(holder) if holder != self.identity && !over => Ok(None),
            _ => {
                let claim = self.claim(Some(&live));
                none_on_conflict(self.api.replace(&self.name, &PostParams::default(), &claim).await)
            }
        }
    }

    /// Renews the Lease until it is lost.
    pub async fn keep(&self, mut held: Object) -> Lost {
        let mut end = Instant::now() + DEADLINE;
        let mut why = "no response".to_owned();
        loop {
            let sent = Instant::now();
            match timeout_at(end.min(sent + TIMEOUT), self.renew(&held)).await {
                Ok(Ok(Renewal::Held(renewed))) => {
                    held = *renewed;
                    end = sent + DEADLINE;
                    self.fence.open_until(end);
                }
                Ok(Ok(Renewal::Taken(holder))) => {
                    self.fence.close();
                    return Lost::Taken {
                        lease: self.name.clone(),
                        holder,
                    };
                }
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => "no response".clone_into(&mut why),
            }
            if Instant::now() + RETRY >= end {
                tokio::time::sleep_until(end).await;
                self.fence.close();
                return Lost::Late {
                    lease: self.name.clone(),
                    why,
                };
            }
            sleep(RETRY).await;
        }
    }

    async fn renew(&self, held: &Object) -> kube::Result<Renewal> {
        let mut renewed = held.clone();
        renewed.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        match self
            .api
            .replace(&self.name, &PostParams::default(), &renewed)
            .await
        {
            Ok(renewed) => Ok(Renewal::Held(Box::new(renewed))),
            Err(kube::Error::Api(answer)) if answer.is_conflict() => self.check_holder().await,
            Err(error) => Err(error),
        }
    }

    /// Checks the holder after a conflict, which may be a write of this process with a lost response.
    async fn check_holder(&self) -> kube::Result<Renewal> {
        let live = self.api.get(&self.name).await?;
        let holder = holder(&live).unwrap_or_default().to_owned();
        if holder != self.identity {
            return Ok(Renewal::Taken(holder));
        }
        let claim = self.claim(Some(&live));
        let renewed = self
            .api
            .replace(&self.name, &PostParams::default(), &claim)
            .await?;
        Ok(Renewal::Held(Box::new(renewed)))
    }

    /// Releases the Lease, for others to take it at once. Call it after the last write.
    pub async fn release(&self) {
        self.fence.close();
        let released = async {
            let Some(mut live) = self.api.get_opt(&self.name).await? else {
                return Ok(());
            };
            if holder(&live) != Some(self.identity.as_str()) {
                return Ok(());
            }
            live.spec.get_or_insert_default().holder_identity = None;
            let replaced = self.api.replace(&self.name, &PostParams::default(), &live).await;
            replaced.map(|_| ())
        };
        match timeout(TIMEOUT, released).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "released the lease"),
            Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "lease not released"),
            Err(_) => tracing::warn!(lease = self.name, "lease not released in time"),
        }
    }

    /// Returns the Lease with this process as holder.
    fn claim(&self, live: Option<&Object>) -> Object {
        let mut object = live.cloned().unwrap_or_else(|| Object {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let now = Some(MicroTime(Timestamp::now()));
        let before = object.spec.take().unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(self.identity.as_str());
        object.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if same { before.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(
                before.lease_transitions.unwrap_or(0) + i32::from(live.is_some() && !same),
            ),
            ..LeaseSpec::default()
        });
        object
    }
}

enum Renewal {
    Held(Box<Object>),
    Taken(String),
}

fn holder(lease: &Object) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref();
    holder.filter(|holder| !holder.is_empty())
}

/// Returns the duration of a Lease, and at least ours.
fn duration(lease: &Object) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    let requested = seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    requested.unwrap_or(DURATION).max(DURATION)
}

/// Returns `None` for a write that lost against another one.
fn none_on_conflict(written: kube::Result<Object>) -> kube::Result<Option<Object>> {
    match written {
        Ok(held) => Ok(Some(held)),
        Err(kube::Error::Api(answer)) if answer.is_conflict() || answer.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fence_is_open_only_until_its_time() {
        let fence = Fence::default();
        assert!(!fence.is_open());
        fence.open_until(Instant::now() + DEADLINE);
        assert!(fence.is_open());
        fence.open_until(Instant::now());
        assert!(!fence.is_open());
        fence.open_until(Instant::now() + DEADLINE);
        fence.close();
        assert!(!fence.is_open());
    }

    /// A waiting operator waits for longer than a holder continues.
    #[test]
    fn lease_outlasts_the_holders_deadline() {
        let short = Object {
            spec: Some(LeaseSpec {
                lease_duration_seconds: Some(1),
                ..LeaseSpec::default()
            }),
            ..Object::default()
        };
        assert!(duration(&short) > DEADLINE + TIMEOUT);
    }

    #[test]
    fn an_empty_holder_is_none() {
        let mut lease = Object::default();
        assert_eq!(holder(&lease), None);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(String::new()),
            ..LeaseSpec::default()
        });
        assert_eq!(holder(&lease), None);
    }
}
