//! One operator manages a mirror: the one that the mirror's status names.
//!
//! An operator has the name of its Lease, `NAMESPACE/NAME`: replicas, restarts and upgrades of one installation share it, and
//! no two installations do. An operator that finds another's name writes nothing of the mirror but a condition. It takes
//! the mirror once the other's Lease has not been renewed for [`ABANDONED`].

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crds::{
    RegistryMirror,
    conditions::{ConditionType, Reason, Truth},
};
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{Timestamp, Unit},
};
use kube::{Api, Client, Resource, ResourceExt, runtime::reflector::Store};
use tokio::time::Instant;

use super::{Context, Error};
use crate::{
    cluster::watch::Stored,
    status::{events, write},
};

/// The time after which another operator's mirrors are taken if its Lease stays as it is: four Lease durations.
pub const ABANDONED: Duration = Duration::from_mins(1);
/// The interval at which an operator that stands by checks.
pub(super) const CHECK: Duration = Duration::from_secs(10);
/// The delay before a claim is tried again after a conflict: the watch has seen the other write by then.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// The time for which a Lease that was read is not read again, as each mirror asks for it.
const FRESH: Duration = Duration::from_secs(5);
/// After this time a Lease that no mirror asks for is forgotten.
const FORGOTTEN: Duration = Duration::from_mins(10);
/// The age at which the managing operator drops the condition of one that stood by, as that one may be gone.
const STALE: Duration = Duration::from_hours(1);
/// The number of mirrors that are written at a time when the operator stops.
const AT_A_TIME: usize = 16;

/// The operator that manages a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    /// This operator.
    This,
    /// Another one, by its name.
    Other(String),
    /// Another user wrote the status at the same moment.
    Unclear,
}

/// Finds the operator that manages a mirror, and claims the mirror where there is none.
///
/// # Errors
/// Those of the API server.
pub(super) async fn find(mirror: &RegistryMirror, context: &Context) -> Result<Manager, Error> {
    let own = &context.settings.name;
    if own.is_empty() {
        return Ok(Manager::This);
    }
    let client = context.cluster.client();
    let mut status = context.written.latest(mirror);
    match status.managed_by.take() {
        Some(name) if name == *own => {
            if conflict(mirror).is_some_and(|condition| is_stale(condition, context.settings.clock.now())) {
                withdraw(mirror, context).await?;
            }
            return Ok(Manager::This);
        }
        Some(other) if !context.leases.is_abandoned(&client, &other).await => {
            return Ok(Manager::Other(other));
        }
        Some(other) => tracing::warn!(
            other,
            mirror = mirror.name_any(),
            "another operator is gone; taking its mirror"
        ),
        None => {}
    }
    status.managed_by = Some(own.clone());
    let claimed = write::claim(client, &context.written, mirror, &status).await;
    if !claimed.map_err(Error::Status)? {
        return Ok(Manager::Unclear);
    }
    if conflict(mirror).is_some() {
        withdraw(mirror, context).await?;
    }
    Ok(Manager::This)
}

/// Reports, once, that another operator manages the mirror.
///
/// # Errors
/// Those of the API server.
pub(super) async fn stand_by(mirror: &RegistryMirror, other: &str, context: &Context) -> Result<(), Error> {
    let subject = format!("operator {other} manages this mirror");
    if conflict(mirror).is_some_and(|condition| condition.message.starts_with(&subject)) {
        return Ok(());
    }
    let own = &context.settings.name;
    let message = format!(
        "{subject}; operator {own} covers this namespace, too, and changes nothing: uninstall one of them, or give each its \
         own namespaces (watchNamespaces). To have {own} manage the mirror, remove status.managedBy"
    );
    let now = context.settings.clock.now();
    let condition = Condition {
        type_: ConditionType::OperatorConflict.to_string(),
        status: Truth::True.to_string(),
        reason: Reason::ManagedByAnother.to_string(),
        message,
        observed_generation: mirror.metadata.generation,
        // Conditions carry whole seconds.
        last_transition_time: Time(now.round(Unit::Second).unwrap_or(now)),
    };
    let conditions = [condition];
    write::stand_by(context.cluster.client(), mirror, &conditions)
        .await
        .map_err(Error::Status)?;
    let story = events::transitions(&[], &conditions);
    events::publish(&context.recorder, &mirror.object_ref(&()), &story).await;
    Ok(())
}

/// Drops the conditions of mirrors that other operators manage: this one is about to stop.
pub(super) async fn withdraw_all(mirrors: &Store<Stored>, context: &Context) {
    let own = &context.settings.name;
    let is_theirs = |mirror: &RegistryMirror| {
        let managed_by = mirror
            .status
            .as_ref()
            .and_then(|status| status.managed_by.as_ref());
        managed_by.is_some_and(|name| name != own) && conflict(mirror).is_some()
    };
    let stored = mirrors.state().into_iter();
    let theirs = stored.filter_map(|stored| stored.0.as_ref().ok().filter(|one| is_theirs(one)).cloned());
    stream::iter(theirs.collect::<Vec<_>>())
        .for_each_concurrent(AT_A_TIME, async |mirror| {
            if let Err(error) = withdraw(&mirror, context).await {
                tracing::warn!(%error, mirror = mirror.name_any(), "the condition of a conflict stays");
            }
        })
        .await;
}

async fn withdraw(mirror: &RegistryMirror, context: &Context) -> Result<(), Error> {
    let done = write::stand_by(context.cluster.client(), mirror, &[]).await;
    done.map_err(Error::Status)
}

/// Returns the condition of an operator that stands by.
fn conflict(mirror: &RegistryMirror) -> Option<&Condition> {
    let mut conditions = mirror.status.as_ref()?.conditions.iter();
    conditions.find(|condition| condition.type_ == ConditionType::OperatorConflict.as_str())
}

fn is_stale(condition: &Condition, now: Timestamp) -> bool {
    let age = now.duration_since(condition.last_transition_time.0);
    Duration::try_from(age).is_ok_and(|age| age > STALE)
}

/// Other operators' Leases, as they were last read.
#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<String, LastSeen>>);

/// A Lease that was read.
#[derive(Clone)]
struct LastSeen {
    /// Its version; `None` where there is no such Lease.
    version: Option<String>,
    /// The time since which the version is the same.
    since: Instant,
    at: Instant,
}

impl Leases {
    /// Returns whether an operator has not renewed its Lease for [`ABANDONED`]. Of a Lease that can't be read nothing is
    /// known.
    async fn is_abandoned(&self, client: &Client, operator: &str) -> bool {
        let Some((namespace, name)) = operator.split_once('/') else {
            return true;
        };
        let now = Instant::now();
        let last = self.lock().get(operator).cloned();
        if let Some(last) = last.filter(|last| now.duration_since(last.at) < FRESH) {
            return now.duration_since(last.since) >= ABANDONED;
        }
        match Api::<Lease>::namespaced(client.clone(), namespace)
            .get_opt(name)
            .await
        {
            Ok(lease) => self.record(operator, lease.and_then(|lease| lease.resource_version()), now),
            Err(error) => {
                tracing::debug!(operator, %error, "the Lease of another operator can't be read");
                self.lock().remove(operator);
                false
            }
        }
    }

    /// Records a Lease that was read; returns whether the Lease is abandoned.
    fn record(&self, operator: &str, version: Option<String>, now: Instant) -> bool {
        let mut leases = self.lock();
        leases.retain(|_, read| now.duration_since(read.at) < FORGOTTEN);
        let same = leases.get(operator).filter(|last| last.version == version);
        let since = same.map_or(now, |last| last.since);
        leases.insert(
            operator.to_owned(),
            LastSeen {
                version,
                since,
                at: now,
            },
        );
        now.duration_since(since) >= ABANDONED
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, LastSeen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_abandoned_once_it_stands_still() {
        let (leases, begin) = (Leases::default(), Instant::now());
        let record = |version: Option<&str>, after: Duration| {
            leases.record("a/b", version.map(ToOwned::to_owned), begin + after)
        };
        assert!(!record(Some("1"), Duration::ZERO));
        assert!(!record(Some("2"), ABANDONED));
        assert!(!record(Some("2"), ABANDONED + CHECK));
        assert!(record(Some("2"), ABANDONED * 2));
        assert!(!record(None, ABANDONED * 2), "deleted");
        assert!(record(None, ABANDONED * 3));
    }

    #[test]
    fn lease_that_no_mirror_asks_for_is_forgotten() {
        let (leases, begin) = (Leases::default(), Instant::now());
        leases.record("a/b", None, begin);
        leases.record("c/d", None, begin + FORGOTTEN);
        assert_eq!(leases.lock().len(), 1);
    }
}
