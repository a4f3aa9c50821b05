//! One operator manages a mirror: the one that the mirror's status names.
//!
//! An operator has the name of its Lease, `NAMESPACE/NAME`: replicas, restarts and upgrades of one installation share it, and
//! no two installations do. An operator that finds another's name writes nothing of the mirror but a condition. It takes
//! the mirror once the other's Lease has not been renewed for [`ABANDONED`].

use std::{collections::HashMap, time::Duration};

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
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Context, ReconcileError};
use crate::{
    cluster::triggers::StoredMirror,
    status::{events, write},
};

/// The time after which another operator's mirrors are taken if its Lease stays as it is: four Lease durations.
pub const ABANDONED: Duration = Duration::from_mins(1);
/// The interval at which a standby operator checks.
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
    Other {
        /// The name of its Lease, `NAMESPACE/NAME`.
        name: String,
        /// This operator may read that Lease.
        has_lease_access: bool,
    },
    /// Another user wrote the status at the same moment.
    Unclear,
}

/// Finds the operator that manages a mirror, and claims the mirror where there is none.
///
/// # Errors
/// Those of the API server.
pub(super) async fn find(mirror: &RegistryMirror, context: &Context) -> Result<Manager, ReconcileError> {
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
        Some(name) => match context.leases.check(&client, &name).await {
            LeaseState::Abandoned => tracing::warn!(
                other = name,
                mirror = mirror.name_any(),
                "another operator is gone, adopting its mirror"
            ),
            state => {
                let has_lease_access = state != LeaseState::Forbidden;
                return Ok(Manager::Other {
                    name,
                    has_lease_access,
                });
            }
        },
        None => {}
    }
    status.managed_by = Some(own.clone());
    match write::claim(client, &context.written, mirror, &status).await {
        Ok(true) => {}
        Ok(false) => return Ok(Manager::Unclear),
        Err(error) if is_undeclared(&error) => {
            tracing::warn!(
                mirror = mirror.name_any(),
                "status.managedBy not recorded: the CRD is older than the operator; upgrade the CRD"
            );
        }
        Err(error) => return Err(ReconcileError::Status(error)),
    }
    if conflict(mirror).is_some() {
        withdraw(mirror, context).await?;
    }
    Ok(Manager::This)
}

/// Returns whether the API server refuses a field of the status that its CRD does not have.
fn is_undeclared(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains(".status.managedBy: field not declared in schema"))
}

/// Reports, once, that another operator manages the mirror.
///
/// # Errors
/// Those of the API server.
pub(super) async fn stand_by(
    mirror: &RegistryMirror,
    other: &str,
    has_lease_access: bool,
    context: &Context,
) -> Result<(), ReconcileError> {
    let message = conflict_message(mirror, other, &context.settings.name, has_lease_access);
    if conflict(mirror).is_some_and(|condition| is_same_report(&condition.message, &message)) {
        return Ok(());
    }
    if !has_lease_access {
        tracing::warn!(
            other,
            mirror = mirror.name_any(),
            "no permission to read the Lease of another operator: its mirror is not taken when it is gone"
        );
    }
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
        .map_err(ReconcileError::Status)?;
    let transitions = events::transitions(&[], &conditions);
    events::publish(&context.recorder, &mirror.object_ref(&()), &transitions).await;
    Ok(())
}

/// Returns the message of the condition. It begins with both operators.
fn conflict_message(mirror: &RegistryMirror, other: &str, own: &str, has_lease_access: bool) -> String {
    let subject = format!("operator {other} manages this mirror; operator {own} covers this namespace, too");
    let lease = if has_lease_access {
        format!("If {other} is uninstalled, {own} takes the mirror within two minutes")
    } else {
        format!(
            "{own} may not read the Lease of {other} and does not notice its end. Once {other} is uninstalled, remove its \
             record: kubectl patch rmir {} --namespace {} --subresource=status --type=json \
             -p '[{{\"op\":\"remove\",\"path\":\"/status/managedBy\"}}]'",
            mirror.name_any(),
            mirror.namespace().unwrap_or_default()
        )
    };
    format!(
        "{subject}, and changes nothing: uninstall one of them, or give each its own namespaces (watchNamespaces). {lease}"
    )
}

/// Returns whether a condition need not be written: it has the message, or a third operator reports the same manager.
fn is_same_report(present: &str, message: &str) -> bool {
    let (manager, rest) = message.split_once("; ").unwrap_or_default();
    let (own, _) = rest.split_once(',').unwrap_or_default();
    present == message
        || present.starts_with(&format!("{manager}; ")) && !present.contains(&format!("; {own},"))
}

/// Drops the conditions of mirrors that other operators manage: this one is about to stop.
pub(super) async fn withdraw_all(mirrors: &Store<StoredMirror>, context: &Context) {
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
                tracing::warn!(%error, mirror = mirror.name_any(), "condition OperatorConflict not removed");
            }
        })
        .await;
}

async fn withdraw(mirror: &RegistryMirror, context: &Context) -> Result<(), ReconcileError> {
    let done = write::stand_by(context.cluster.client(), mirror, &[]).await;
    done.map_err(ReconcileError::Status)
}

/// Returns the condition of a standby operator.
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

/// The state of another operator's Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseState {
    /// The Lease was renewed a short time ago, or the API server failed to say.
    Held,
    /// The Lease was not renewed for [`ABANDONED`].
    Abandoned,
    /// This operator has no permission to read the Lease.
    Forbidden,
}

impl LeaseState {
    fn after(unchanged: Duration) -> Self {
        if unchanged >= ABANDONED {
            Self::Abandoned
        } else {
            Self::Held
        }
    }
}

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
    /// Returns the state of an operator's Lease, which it reads at most once in [`FRESH`].
    async fn check(&self, client: &Client, operator: &str) -> LeaseState {
        let Some((namespace, name)) = operator.split_once('/') else {
            return LeaseState::Abandoned;
        };
        let now = Instant::now();
        let last = self.0.lock().get(operator).cloned();
        if let Some(last) = last.filter(|last| now.duration_since(last.at) < FRESH) {
            return LeaseState::after(now.duration_since(last.since));
        }
        match Api::<Lease>::namespaced(client.clone(), namespace)
            .get_opt(name)
            .await
        {
            Ok(lease) => self.record(operator, lease.and_then(|lease| lease.resource_version()), now),
            Err(error) => {
                tracing::debug!(operator, %error, "Lease of another operator not readable");
                self.0.lock().remove(operator);
                match error {
                    kube::Error::Api(status) if status.code == 403 => LeaseState::Forbidden,
                    _ => LeaseState::Held,
                }
            }
        }
    }

    /// Records a Lease that was read, and returns its state.
    fn record(&self, operator: &str, version: Option<String>, now: Instant) -> LeaseState {
        let mut leases = self.0.lock();
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
        LeaseState::after(now.duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Lease counts as abandoned once it was not renewed for the whole period.
    #[test]
    fn stopped_lease_is_abandoned() {
        let (leases, begin) = (Leases::default(), Instant::now());
        let record = |version: Option<&str>, after: Duration| {
            let version = version.map(ToOwned::to_owned);
            leases.record("a/b", version, begin + after) == LeaseState::Abandoned
        };
        assert!(!record(Some("1"), Duration::ZERO));
        assert!(!record(Some("2"), ABANDONED));
        assert!(!record(Some("2"), ABANDONED + CHECK));
        assert!(record(Some("2"), ABANDONED * 2));
        assert!(!record(None, ABANDONED * 2), "deleted");
        assert!(record(None, ABANDONED * 3));
    }

    fn message(own: &str, has_lease_access: bool) -> String {
        let spec = serde_json::json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}});
        let mirror = RegistryMirror::new("hub", serde_json::from_value(spec).unwrap());
        conflict_message(&mirror, "old/op", own, has_lease_access)
    }

    /// The message for a Lease that is not readable has the command for the user.
    #[test]
    fn unreadable_lease_error_has_the_command() {
        assert!(!message("new/op", true).contains("kubectl"));
        let message = message("new/op", false);
        assert!(message.contains("may not read the Lease of old/op"), "{message}");
        assert!(message.contains("kubectl patch rmir hub"), "{message}");
        assert!(
            message.contains(r#"[{"op":"remove","path":"/status/managedBy"}]"#),
            "{message}"
        );
    }

    /// Two operators that stand by do not change each other's report; each corrects its own.
    #[test]
    fn conflict_message_is_written_once() {
        let (first, second) = (message("new/op", true), message("new/op-2", false));
        assert!(is_same_report(&first, &first));
        assert!(is_same_report(&first, &second) && is_same_report(&second, &first));
        assert!(!is_same_report(&first, &message("new/op", false)));
        assert!(!is_same_report(&first.replace("old/op", "third/op"), &first));
    }

    /// The error for a status field that the installed `CustomResourceDefinition` lacks is recognized.
    #[test]
    fn newer_status_field_error_is_recognized() {
        let answer = |message: &str| {
            let (code, message) = (500, message.to_owned());
            kube::Error::Api(Box::new(kube::core::Status {
                code,
                message,
                ..Default::default()
            }))
        };
        let words = "failed to create typed patch object (a/hub; registrymirror.io/v1alpha1, Kind=RegistryMirror): \
                     .status.managedBy: field not declared in schema";
        assert!(is_undeclared(&answer(words)));
        assert!(!is_undeclared(&answer("failed calling webhook")));
    }

    /// The record of a Lease that no mirror needs is removed.
    #[test]
    fn unused_lease_is_removed() {
        let (leases, begin) = (Leases::default(), Instant::now());
        leases.record("a/b", None, begin);
        leases.record("c/d", None, begin + FORGOTTEN);
        assert_eq!(leases.0.lock().len(), 1);
    }
}
