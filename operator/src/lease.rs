//! One operator at a time: who holds the Lease writes.
//!
//! Every write to the Lease is a PUT of the version that was read, so that of two only one succeeds. Times are measured
//! by this machine's own monotonic clock, from before a request is sent; what other clocks wrote is compared for
//! equality only. A holder that was stopped and goes on, or can't renew in time, starts no write any more: its
//! [`Fence`] is closed before anyone else may take the Lease.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::{BoxError, filter::FilterLayer};

/// How long others wait after they saw the holder's last sign of life.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long the holder goes on after it sent its last sign of life.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How often the holder renews, and others look.
pub const RETRY: Duration = Duration::from_secs(2);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Until when writes may start.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

/// A write that came too late.
#[derive(Debug, thiserror::Error)]
#[error("this operator does not hold the lease; the one that does will see to it")]
pub struct Closed;

impl Fence {
    fn open_until(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a write may start now.
    pub fn is_open(&self) -> bool {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_some_and(|end| Instant::now() < end)
    }

    /// A connection through which nothing is written unless this is open.
    ///
    /// # Errors
    /// The configuration can't be used, such as for a certificate that is none.
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

/// A Lease that this process wants.
pub struct Lease {
    api: Api<Object>,
    name: String,
    identity: String,
    fence: Fence,
}

/// It was held, and is not any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Someone else has it.
    #[error("the lease {lease} was taken by {holder}")]
    Taken {
        /// Its name.
        lease: String,
        /// By whom.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error("the lease {lease} could not be renewed within {} s: {why}", DEADLINE.as_secs())]
    Late {
        /// Its name.
        lease: String,
        /// What the last attempt came to.
        why: String,
    },
}

/// What another holder was last seen to write, and since when it stands.
struct Sign {
    version: Option<String>,
    since: Instant,
}

impl Lease {
    /// A Lease in a namespace, for a holder whose identity no other process shares.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String, fence: Fence) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            fence,
        }
    }

    /// Waits until the Lease is this process's.
    pub async fn acquire(&self) -> Object {
        let mut sign = None;
        let mut told = None;
        loop {
            let sent = Instant::now();
            match timeout(PATIENCE, self.try_acquire(&mut sign)).await {
                Ok(Ok(Some(held))) => {
                    self.fence.open_until(sent + DEADLINE);
                    tracing::info!(lease = self.name, identity = self.identity, "leading");
                    return held;
                }
                Ok(Ok(None)) => {
                    if told.replace(()).is_none() {
                        tracing::info!(lease = self.name, "another operator leads; standing by");
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "can't take the lease; trying again");
                }
                Err(_) => tracing::warn!(lease = self.name, "no answer about the lease; trying again"),
            }
            sleep(RETRY).await;
        }
    }

    async fn try_acquire(&self, sign: &mut Option<Sign>) -> kube::Result<Option<Object>> {
        let Some(live) = self.api.get_opt(&self.name).await? else {
            let created = self.api.create(&PostParams::default(), &self.claim(None)).await;
            return lost_the_race(created);
        };
        let version = live.metadata.resource_version.clone();
        let now = Instant::now();
        let seen = match sign.take() {
            Some(seen) if seen.version == version => seen,
            _ => Sign { version, since: now },
        };
        let over = now.duration_since(seen.since) >= lasts(&live);
        *sign = Some(seen);
        match holder(&live) {
            Some(holder) if holder != self.identity && !over => Ok(None),
            _ => {
                let claim = self.claim(Some(&live));
                lost_the_race(self.api.replace(&self.name, &PostParams::default(), &claim).await)
            }
        }
    }

    /// Renews the Lease for as long as it can be held.
    pub async fn keep(&self, mut held: Object) -> Lost {
        let mut end = Instant::now() + DEADLINE;
        let mut why = "no answer".to_owned();
        loop {
            let sent = Instant::now();
            match timeout_at(end.min(sent + PATIENCE), self.renew(&held)).await {
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
                Err(_) => "no answer".clone_into(&mut why),
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
            Err(kube::Error::Api(answer)) if answer.is_conflict() => self.look_again().await,
            Err(error) => Err(error),
        }
    }

    /// Someone wrote in between: it may have been this process, whose answer was lost.
    async fn look_again(&self) -> kube::Result<Renewal> {
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

    /// Lets others take the Lease at once. To be called when nothing is written any more.
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
        match timeout(PATIENCE, released).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "the lease is free"),
            Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "the lease could not be set free"),
            Err(_) => tracing::warn!(lease = self.name, "the lease could not be set free in time"),
        }
    }

    /// The Lease as this process's.
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

/// As long as its holder asked for, and never less than ours would go on.
fn lasts(lease: &Object) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    let asked = seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    asked.unwrap_or(DURATION).max(DURATION)
}

/// Of several that write at once one wins, and the others wait.
fn lost_the_race(written: kube::Result<Object>) -> kube::Result<Option<Object>> {
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
    fn a_fence_is_closed_until_it_is_opened_and_after_its_time() {
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

    #[test]
    fn others_wait_longer_than_a_holder_goes_on() {
        let short = Object {
            spec: Some(LeaseSpec {
                lease_duration_seconds: Some(1),
                ..LeaseSpec::default()
            }),
            ..Object::default()
        };
        assert!(lasts(&short) > DEADLINE + PATIENCE);
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
