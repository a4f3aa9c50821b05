//! Computes the status.

use crds::{
    RegistryMirror, RegistryMirrorStatus,
    conditions::{ConditionType, Truth},
    status::{Endpoint, StorageStatus, UpstreamStatus},
};
use k8s_openapi::{apimachinery::pkg::api::resource::Quantity, jiff::Timestamp};
use kube::ResourceExt;

use crate::{
    apply::Applied,
    desired::Desired,
    names,
    observed::{Claim, Observed},
    quantity::amount,
    validate::{Accepted, Rejection, bucket},
};

mod certificate;
pub mod conditions;
mod credentials;
pub mod events;
mod nodes;
mod progress;
mod storage;
mod upstreams;
pub mod write;

pub use certificate::{CertificateStatus, next_validity_change};
pub use credentials::{UpstreamCredentials, Verdict};

/// The outcome of a reconcile.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The spec is paused.
    Paused,
    /// The spec was rejected.
    Rejected(Rejection),
    /// The apply failed and is retried. The message of a failure that persists.
    Failed(Option<String>),
    /// The spec was applied, with the exceptions in `applied`.
    Acted(Acted),
}

/// The result of an applied spec.
#[derive(Clone, Debug, Default)]
pub struct Acted {
    /// The credentials of upstreams, in the order of the spec.
    pub credentials: Vec<UpstreamCredentials>,
    /// The serving certificate, if clients are served over TLS.
    pub certificate: Option<CertificateStatus>,
    /// The objects that the API server rejected.
    pub applied: Applied,
    /// The SHA-256 of the servers' configuration.
    pub configuration: String,
    /// The state of the rollout of a new version.
    pub upgrade: Upgrade,
    /// A server has not read its issued files yet.
    pub needs_reload: bool,
    /// The servers have other credentials than the last status reports.
    pub has_new_credentials: bool,
}

/// The state of a mirror in the rollout of a new version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// The mirror has the version, or rolls it out.
    #[default]
    Fine,
    /// The mirror waits for admission, for this reason.
    Waiting(String),
    /// The mirror did not become ready within this number of seconds.
    Failed(u64),
}

impl Acted {
    /// Returns the result of an accepted spec.
    pub fn new(accepted: &Accepted<'_>, desired: &Desired, observed: &Observed, applied: Applied) -> Self {
        let reported = accepted.mirror.status.iter().flat_map(|status| &status.upstreams);
        let reported: Vec<_> = reported
            .filter_map(|u| Some((u.host.as_str(), u.credentials.as_ref()?)))
            .collect();
        let credentials = credentials::upstream_credentials(accepted, desired, observed);
        let same = |now: &UpstreamCredentials| {
            let mut reported = reported.iter();
            reported.any(|(host, before)| {
                *host == now.host && before.secret == now.secret && before.version == version(now)
            })
        };
        Self {
            has_new_credentials: !credentials.iter().all(same),
            credentials,
            certificate: accepted.serving.as_ref().map(CertificateStatus::new),
            applied,
            configuration: desired.configuration_version.clone(),
            upgrade: Upgrade::Fine,
            needs_reload: observed.servers.iter().any(|server| desired.needs_reload(server)),
        }
    }
}

impl Outcome {
    /// Returns whether all files are issued to servers.
    pub fn is_fully_applied(&self) -> bool {
        matches!(self, Self::Acted(acted) if acted.applied.is_whole())
    }

    /// Returns the message of the API server's persistent rejection, if there is one.
    pub fn rejection_message(&self) -> Option<&str> {
        match self {
            Self::Failed(why) => why.as_deref(),
            Self::Acted(acted) => acted.applied.forbidden.as_deref(),
            Self::Paused | Self::Rejected(_) => None,
        }
    }

    /// Returns whether a server has not read its issued files yet.
    pub fn is_reload_pending(&self) -> bool {
        matches!(
            self,
            Self::Acted(Acted {
                needs_reload: true,
                ..
            })
        )
    }
}

/// Returns whether a change is pending in servers, or the verdict of an upstream or of the bucket's store on it.
pub fn is_pending(status: &RegistryMirrorStatus, observed: &Observed) -> bool {
    let pending = |kind: ConditionType, truth: Truth| {
        let mut conditions = status.conditions.iter();
        conditions.any(|condition| condition.type_ == kind.as_str() && condition.status == truth.as_str())
    };
    pending(ConditionType::Progressing, Truth::True)
        || pending(ConditionType::CredentialsValid, Truth::Unknown)
        || observed.awaits_bucket()
}

/// Computes the status. Pure; unknown values stay as they were.
pub fn compute(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> RegistryMirrorStatus {
    let workload = observed.workload.as_ref();
    let generation = match outcome {
        // The objects are those of the previous generation.
        Outcome::Failed(_) => before.observed_generation,
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Acted(_) => mirror.metadata.generation,
    };
    RegistryMirrorStatus {
        observed_generation: generation,
        managed_by: before.managed_by.clone(),
        replicas: workload.map_or(0, |workload| workload.replicas),
        ready_replicas: workload.map_or(0, |workload| workload.ready),
        selector: Some(selector(&mirror.name_any())),
        endpoint: endpoint(mirror, before, outcome, observed),
        upstreams: upstream_statuses(mirror, before, outcome, observed),
        storage: storage_status(mirror, before, outcome, observed),
        nodes: nodes::counts(mirror, before, observed),
        server_version: server_version(before, observed),
        conditions: conditions::compute(mirror, generation, &before.conditions, outcome, observed, now),
    }
}

fn selector(mirror: &str) -> String {
    names::selector(mirror)
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Returns whether there is a `ConfigMap` with CA certificates for clients.
fn has_ca(before: &RegistryMirrorStatus, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Acted(acted) => acted.certificate.as_ref().is_some_and(|c| c.has_ca),
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed(_) => {
            let before = before.endpoint.as_ref();
            before.is_some_and(|endpoint| endpoint.ca_config_map.is_some())
        }
    }
}

/// Returns the endpoint. Without a Service it stays: nodes use it, and the Service is created again with it.
fn endpoint(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    outcome: &Outcome,
    observed: &Observed,
) -> Option<Endpoint> {
    let Some(service) = &observed.service else {
        return before.endpoint.clone();
    };
    let publishes = mirror.spec.node_configuration.mode.is_published();
    Some(Endpoint {
        url: service.url(mirror.spec.tls.mode),
        cluster_ips: observed.allocation.cluster_ips.clone(),
        node_port: observed.allocation.node_port,
        ca_config_map: has_ca(before, outcome).then(|| names::ca_bundle(&mirror.name_any())),
        hosts_config_map: publishes.then(|| names::hosts(&mirror.name_any())),
    })
}

fn upstream_statuses(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    outcome: &Outcome,
    observed: &Observed,
) -> Vec<UpstreamStatus> {
    let of = |upstream: &crds::Upstream| {
        let known = before.upstreams.iter().find(|known| known.host == upstream.host);
        let reported = known.and_then(|known| known.credentials.as_ref());
        UpstreamStatus {
            host: upstream.host.clone(),
            state: match known {
                Some(known) if observed.has_unpolled() => known.state,
                _ => upstreams::state(&upstream.host, observed),
            },
            credentials: match outcome {
                Outcome::Acted(acted) => {
                    let mut all = acted.credentials.iter();
                    let now = all.find(|credentials| credentials.host == upstream.host);
                    now.map(|now| credentials::status(now, observed, reported))
                }
                Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed(_) => reported.cloned(),
            },
        }
    };
    mirror.spec.upstreams.iter().map(of).collect()
}

fn version(credentials: &UpstreamCredentials) -> i64 {
    i64::try_from(credentials.version).unwrap_or(i64::MAX)
}

/// Returns the version of all servers; while they differ, the previous one.
fn server_version(before: &RegistryMirrorStatus, observed: &Observed) -> Option<String> {
    let mut versions = observed
        .servers
        .iter()
        .map(|server| Some(&server.report()?.version));
    let first = versions.next().flatten();
    match first.filter(|first| !first.is_empty() && versions.all(|version| version == Some(first))) {
        Some(version) => Some(version.clone()),
        None => before.known_server_version().map(str::to_owned),
    }
}

/// Returns the state of the storage. The bucket stays the one that the servers have until another is applied.
fn storage_status(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    outcome: &Outcome,
    observed: &Observed,
) -> Option<StorageStatus> {
    let bucket = match outcome {
        Outcome::Acted(_) => {
            bucket::location(mirror).map(|location| storage::bucket_status(location, observed, before))
        }
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed(_) => {
            before.storage.as_ref().and_then(|storage| storage.bucket.clone())
        }
    };
    let capacity = capacity(observed.all_claims());
    (capacity.is_some() || bucket.is_some()).then_some(StorageStatus { capacity, bucket })
}

/// Returns the smallest capacity, which every replica has.
fn capacity<'a>(claims: impl Iterator<Item = &'a Claim>) -> Option<Quantity> {
    let capacities = claims
        .filter(|claim| claim.bound)
        .filter_map(|claim| claim.capacity.as_ref());
    let bytes = |capacity: &Quantity| amount(&capacity.0).unwrap_or_default();
    capacities
        .min_by(|one, other| bytes(one).total_cmp(&bytes(other)))
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(capacity: &str) -> Claim {
        Claim {
            bound: true,
            capacity: Some(Quantity(capacity.to_owned())),
            ..Claim::default()
        }
    }

    /// The capacity is that of the smallest bound PersistentVolumeClaim.
    #[test]
    fn capacity_is_the_smallest_bound_pvc() {
        let pending = Claim {
            bound: false,
            ..claim("1Gi")
        };
        let capacity = capacity([claim("20Gi"), claim("9000Mi"), pending].iter()).unwrap();
        assert_eq!(capacity.0, "9000Mi");
    }

    #[test]
    fn selector_is_a_label_query() {
        assert_eq!(
            selector("hub"),
            "app.kubernetes.io/component=mirror,app.kubernetes.io/instance=hub,app.kubernetes.io/name=registry-mirror"
        );
    }
}
