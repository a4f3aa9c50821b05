//! Step five: say what was found and done.

use crds::{
    RegistryMirror, RegistryMirrorStatus,
    status::{CredentialsStatus, Endpoint, StorageStatus, UpstreamStatus},
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube_quantity::ParsedQuantity;

use crate::{
    apply::Applied,
    desired::{HandedOut, names},
    observed::{Claim, Observed},
    validate::{Accepted, Rejection, credentials::Problem},
};

pub mod conditions;
pub mod events;
pub mod write;

/// What a reconcile came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nothing was looked at.
    Paused,
    /// The spec can't be acted on.
    Rejected(Rejection),
    /// The cluster did not let it be acted on, or not wholly; it is tried again.
    Failed,
    /// It was acted on.
    Acted {
        /// Of the upstreams that have credentials, in the spec's order.
        credentials: Vec<UpstreamCredentials>,
        /// What became of the claims.
        applied: Applied,
    },
}

/// An upstream's credentials, never a value of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCredentials {
    /// The upstream.
    pub host: String,
    /// The Secret that they come from.
    pub secret: String,
    /// The version that servers were handed.
    pub version: u64,
    /// What is wrong with the Secret.
    pub problem: Option<Problem>,
    /// Servers still have what it held before.
    pub kept: bool,
}

/// The credentials that an accepted spec led to.
pub fn credentials(accepted: &Accepted<'_>, handed_out: &HandedOut) -> Vec<UpstreamCredentials> {
    let with = accepted
        .upstreams
        .iter()
        .filter_map(|u| Some((&u.spec.host, u.credentials.as_ref()?)));
    with.map(|(host, credentials)| UpstreamCredentials {
        host: host.clone(),
        secret: credentials.secret.to_owned(),
        version: handed_out.version,
        problem: credentials.found.as_ref().err().cloned(),
        kept: handed_out.kept.contains(host),
    })
    .collect()
}

/// The status that a mirror should have. Pure; what is not known stays as it was.
pub fn of(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> RegistryMirrorStatus {
    let workload = observed.workload.as_ref();
    let generation = match outcome {
        // What is there is not what is asked for now.
        Outcome::Failed => before.observed_generation,
        Outcome::Paused | Outcome::Rejected(_) | Outcome::Acted { .. } => mirror.metadata.generation,
    };
    RegistryMirrorStatus {
        observed_generation: generation,
        replicas: workload.map_or(0, |workload| workload.replicas),
        ready_replicas: workload.map_or(0, |workload| workload.ready),
        selector: Some(selector(&mirror.name_any())),
        endpoint: observed
            .service
            .as_ref()
            .map(|service| endpoint(&service.ip, service.port)),
        upstreams: upstreams(mirror, before, outcome),
        storage: capacity(observed.all_claims()),
        server_version: before.server_version.clone(),
        conditions: conditions::of(mirror, generation, &before.conditions, outcome, observed, now),
    }
}

fn selector(mirror: &str) -> String {
    names::selector(mirror)
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn endpoint(ip: &str, port: i32) -> Endpoint {
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    Endpoint {
        url: format!("http://{host}:{port}"),
    }
}

fn upstreams(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    outcome: &Outcome,
) -> Vec<UpstreamStatus> {
    let of = |upstream: &crds::Upstream| {
        let known = before.upstreams.iter().find(|known| known.host == upstream.host);
        UpstreamStatus {
            host: upstream.host.clone(),
            state: known.map(|known| known.state).unwrap_or_default(),
            credentials: match outcome {
                Outcome::Acted { credentials, .. } => {
                    let now = credentials
                        .iter()
                        .find(|credentials| credentials.host == upstream.host);
                    now.map(|now| credentials_status(now, known.and_then(|known| known.credentials.as_ref())))
                }
                Outcome::Paused | Outcome::Rejected(_) | Outcome::Failed => {
                    known.and_then(|known| known.credentials.clone())
                }
            },
        }
    };
    mirror.spec.upstreams.iter().map(of).collect()
}

fn credentials_status(now: &UpstreamCredentials, before: Option<&CredentialsStatus>) -> CredentialsStatus {
    CredentialsStatus {
        secret: now.secret.clone(),
        version: i64::try_from(now.version).unwrap_or(i64::MAX),
        loaded_replicas: before.and_then(|before| before.loaded_replicas),
        last_rotation_time: before.and_then(|before| before.last_rotation_time.clone()),
    }
}

/// The smallest: what can be relied on.
fn capacity<'a>(claims: impl Iterator<Item = &'a Claim>) -> Option<StorageStatus> {
    let capacities = claims
        .filter(|claim| claim.bound)
        .filter_map(|claim| claim.capacity.as_ref());
    let smallest =
        capacities.min_by_key(|capacity| ParsedQuantity::try_from(*capacity).unwrap_or_default())?;
    Some(StorageStatus {
        capacity: Some(smallest.clone()),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    fn claim(capacity: &str) -> Claim {
        Claim {
            bound: true,
            capacity: Some(Quantity(capacity.to_owned())),
            ..Claim::default()
        }
    }

    #[test]
    fn an_endpoint_is_a_url_for_either_family() {
        assert_eq!(endpoint("10.96.0.7", 5000).url, "http://10.96.0.7:5000");
        assert_eq!(endpoint("fd00::7", 80).url, "http://[fd00::7]:80");
    }

    #[test]
    fn the_capacity_is_the_smallest_of_the_bound_claims() {
        let pending = Claim {
            bound: false,
            ..claim("1Gi")
        };
        let capacity = capacity([claim("20Gi"), claim("9000Mi"), pending].iter())
            .unwrap()
            .capacity
            .unwrap();
        assert_eq!(capacity.0, "9000Mi");
    }

    #[test]
    fn the_selector_is_what_an_autoscaler_can_parse() {
        assert_eq!(
            selector("hub"),
            "app.kubernetes.io/component=mirror,app.kubernetes.io/instance=hub,app.kubernetes.io/name=registry-mirror"
        );
    }
}
