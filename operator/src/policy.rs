//! The operator's policy: the limits of what a spec may ask for, set by the administrator of the operator. A user who may
//! create a `RegistryMirror`, and no Pod, gets by it no more than a mirror.
//!
//! The policy is pure: a spec, and the `PersistentVolumeClaim` (PVC) of a user that it names, in; a rejection out.

use std::fmt;

use crds::{RegistryMirror, conditions::Reason, storage::Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use crate::{names::ALLOW_MIRROR, observed::ExistingClaim, quantity::amount, validate::Rejection};

mod affinity;
mod looseness;
mod patterns;
mod pod_security;

pub use patterns::PatternList;

/// Keys of Pod annotations that no controller acts on in a way that matters to others. `*` is every key without a prefix.
const ANNOTATIONS: &[&str] = &[
    "*",
    "prometheus.io/*",
    "kubectl.kubernetes.io/*",
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
];
/// Keys of Pod labels that serve people: Services and network policies usually select Pods by others.
const LABELS: &[&str] = &[
    "team",
    "owner",
    "environment",
    "cost-center",
    "*/team",
    "*/owner",
    "*/environment",
    "*/cost-center",
];
/// Taints that say how long a Pod stays on a node that does not answer.
const TOLERATIONS: &[&str] = &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
/// The most replicas of a mirror.
const MAX_REPLICAS: u32 = 50;
/// The largest volume of a replica.
const MAX_STORAGE: &str = "2Ti";
/// Keys and the like that a message names at most.
const NAMED: usize = 3;

/// The PVCs of users that a mirror may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ExistingClaimMode {
    /// Those with the annotation registrymirror.io/allow-mirror
    #[default]
    Annotated,
    /// All of the mirror's namespace
    Any,
}

/// The security contexts that a spec may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PodSecurity {
    /// Those of the Pod Security Standard baseline
    #[default]
    Baseline,
    /// All that the API accepts
    Any,
}

/// The namespaces whose Pods a spec may refer to in `affinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AffinityScope {
    /// The mirror's own namespace
    #[default]
    Own,
    /// Every namespace
    Any,
}

/// The limits of specs.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Images of `spec.pod.image`, next to those of the repository that the operator's own image for mirrors is from.
    pub images: PatternList,
    /// Names of priority classes.
    pub priority_classes: PatternList,
    /// Keys of Pod annotations.
    pub annotations: PatternList,
    /// Keys of Pod labels.
    pub labels: PatternList,
    /// Keys of taints that Pods may tolerate.
    pub tolerations: PatternList,
    /// The most replicas of a mirror.
    pub max_replicas: u32,
    /// The largest volume of a replica.
    pub max_storage: Quantity,
    /// The PVCs of users that mirrors may use.
    pub existing_claims: ExistingClaimMode,
    /// The security contexts that a spec may have.
    pub pod_security: PodSecurity,
    /// The namespaces whose Pods a spec may refer to in `affinity`.
    pub affinity_namespaces: AffinityScope,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            images: PatternList::default(),
            priority_classes: PatternList::default(),
            annotations: PatternList::from_constants(ANNOTATIONS),
            labels: PatternList::from_constants(LABELS),
            tolerations: PatternList::from_constants(TOLERATIONS),
            max_replicas: MAX_REPLICAS,
            max_storage: Quantity(MAX_STORAGE.to_owned()),
            existing_claims: ExistingClaimMode::default(),
            pod_security: PodSecurity::default(),
            affinity_namespaces: AffinityScope::default(),
        }
    }
}

/// A field of a spec that asks for more than the policy allows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    field: String,
    /// The value that the spec asks for.
    asked: String,
    /// The values that the policy allows.
    allowed: String,
    /// The value of the chart that sets the limit.
    value: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            asked,
            allowed,
            value,
        } = self;
        write!(
            f,
            "{field}: the operator's policy does not allow {asked}, but {allowed}; change it, or let an administrator of the \
             operator allow it (value policy.{value})"
        )
    }
}

impl Policy {
    /// Checks a spec. `server_image` is the operator's own image for mirrors, `existing` the PVC of a user that the spec
    /// names, as the cluster has it.
    ///
    /// # Errors
    /// `NotAllowed`, with every field that asks for too much, and the errors of a PVC.
    pub fn check(
        &self,
        mirror: &RegistryMirror,
        server_image: &str,
        existing: Option<&ExistingClaim>,
    ) -> Result<(), Rejection> {
        let violations = [
            self.image(mirror, server_image),
            self.replicas(mirror),
            self.storage(mirror),
            self.priority_class(mirror),
            self.pod_annotations(mirror),
            self.pod_labels(mirror),
            self.taints(mirror),
            self.affinity(mirror),
            self.security(mirror),
        ];
        let violations: Vec<_> = violations.into_iter().flatten().map(|v| v.to_string()).collect();
        if !violations.is_empty() {
            return Err(Rejection {
                reason: Reason::NotAllowed,
                message: violations.join("; "),
            });
        }
        existing.map_or(Ok(()), |existing| self.claim(mirror, existing))
    }

    /// Checks that a PVC which a user made allows the mirror to use it.
    ///
    /// # Errors
    /// `NotAllowed` without the annotation. `ReferenceNotFound` without the PVC: a Pod that waits for its name would
    /// mount whatever gets that name, before the operator reads its annotations.
    fn claim(&self, mirror: &RegistryMirror, existing: &ExistingClaim) -> Result<(), Rejection> {
        if self.existing_claims == ExistingClaimMode::Any {
            return Ok(());
        }
        let (claim, name) = (&existing.name, mirror.name_any());
        let namespace = mirror.namespace().unwrap_or_default();
        let field = mirror.spec.storage.volume_field();
        let field = format!("{field}.persistentVolumeClaim.existingClaim");
        if existing.claim.is_none() {
            return Err(Rejection {
                reason: Reason::ReferenceNotFound,
                message: format!(
                    "{field}: PersistentVolumeClaim {claim:?} not found in namespace {namespace:?}: create it with the \
                     annotation {ALLOW_MIRROR}: {name}, or correct the name"
                ),
            });
        }
        let allowed = existing.allowed_mirror.as_deref().map(str::trim);
        if allowed.is_some_and(|allowed| allowed == "*" || allowed == name) {
            return Ok(());
        }
        Err(Rejection {
            reason: Reason::NotAllowed,
            message: format!(
                "{field}: PersistentVolumeClaim {claim:?} does not allow this mirror to use it: kubectl annotate \
                 persistentvolumeclaim {claim} --namespace {namespace} --overwrite {ALLOW_MIRROR}={name}, or let an \
                 administrator of the operator allow every claim (value policy.existingClaims)"
            ),
        })
    }

    fn image(&self, mirror: &RegistryMirror, server_image: &str) -> Option<Violation> {
        let image = mirror.spec.pod.image.as_deref()?;
        let (repository, own) = (repository_of(image), repository_of(server_image));
        let is_allowed = repository == own || self.images.matches(repository) || self.images.matches(image);
        (!is_allowed).then(|| Violation {
            field: "spec.pod.image".to_owned(),
            asked: format!("image {image:?}"),
            allowed: match self.images.as_written() {
                [] => format!("those of {own}"),
                _ => format!("those of {own} and {}", self.images),
            },
            value: "images",
        })
    }

    fn replicas(&self, mirror: &RegistryMirror) -> Option<Violation> {
        let replicas = mirror.spec.replicas;
        (i64::from(replicas) > i64::from(self.max_replicas)).then(|| Violation {
            field: "spec.replicas".to_owned(),
            asked: format!("{replicas} replicas"),
            allowed: format!("at most {}", self.max_replicas),
            value: "maxReplicas",
        })
    }

    fn storage(&self, mirror: &RegistryMirror) -> Option<Violation> {
        let volume = mirror.spec.storage.volume()?;
        let (name, size) = match &volume {
            Volume::Claims { size, .. } => ("persistentVolumeClaim.size", *size),
            Volume::Ephemeral(ephemeral) => ("ephemeral.sizeLimit", &ephemeral.size_limit),
            Volume::ExistingClaim { .. } => return None,
        };
        // A size that can't be read is validation's.
        let is_more = amount(&size.0)? > amount(&self.max_storage.0)?;
        is_more.then(|| Violation {
            field: format!("{}.{name}", mirror.spec.storage.volume_field()),
            asked: format!("a volume of {}", size.0),
            allowed: format!("at most {}", self.max_storage.0),
            value: "maxStorage",
        })
    }

    fn priority_class(&self, mirror: &RegistryMirror) -> Option<Violation> {
        let class = mirror.spec.pod.priority_class_name.as_deref()?;
        (!self.priority_classes.matches(class)).then(|| Violation {
            field: "spec.pod.priorityClassName".to_owned(),
            asked: format!("priority class {class:?}"),
            allowed: self.priority_classes.to_string(),
            value: "priorityClasses",
        })
    }

    fn pod_annotations(&self, mirror: &RegistryMirror) -> Option<Violation> {
        let keys = mirror.spec.pod.annotations.keys().map(String::as_str);
        beyond(
            "annotation",
            keys,
            &self.annotations,
            ("spec.pod.annotations", "podAnnotations"),
        )
    }

    fn pod_labels(&self, mirror: &RegistryMirror) -> Option<Violation> {
        let keys = mirror.spec.pod.labels.keys().map(String::as_str);
        beyond("label", keys, &self.labels, ("spec.pod.labels", "podLabels"))
    }

    /// A toleration without a key tolerates every taint: only `**` allows it.
    fn taints(&self, mirror: &RegistryMirror) -> Option<Violation> {
        let place = ("spec.pod.tolerations", "tolerations");
        let every = self
            .tolerations
            .as_written()
            .iter()
            .any(|pattern| pattern == "**");
        let keys = mirror
            .spec
            .pod
            .tolerations
            .iter()
            .map(|one| one.key.as_deref().unwrap_or_default());
        if !every && keys.clone().any(str::is_empty) {
            return Some(Violation {
                field: place.0.to_owned(),
                asked: "a toleration of every taint".to_owned(),
                allowed: self.tolerations.to_string(),
                value: place.1,
            });
        }
        beyond(
            "taint",
            keys.filter(|key| !key.is_empty()),
            &self.tolerations,
            place,
        )
    }

    fn affinity(&self, mirror: &RegistryMirror) -> Option<Violation> {
        if self.affinity_namespaces == AffinityScope::Any {
            return None;
        }
        let namespace = mirror.namespace().unwrap_or_default();
        let (field, asked) = affinity::beyond_namespace(mirror.spec.pod.affinity.as_ref()?, &namespace)?;
        Some(Violation {
            field: format!("spec.pod.affinity.{field}"),
            asked,
            allowed: "Pods of the mirror's own namespace".to_owned(),
            value: "affinityNamespaces",
        })
    }

    fn security(&self, mirror: &RegistryMirror) -> Option<Violation> {
        if self.pod_security == PodSecurity::Any {
            return None;
        }
        let (field, asked) = pod_security::beyond_baseline(&mirror.spec.pod)?;
        Some(Violation {
            field: field.to_owned(),
            asked,
            allowed: "the Pod Security Standard baseline".to_owned(),
            value: "podSecurity",
        })
    }
}

/// Returns the repository of an image: its reference without tag and digest.
fn repository_of(image: &str) -> &str {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    let last = named.rfind('/').map_or(0, |slash| slash + 1);
    match named[last..].find(':') {
        Some(colon) => &named[..last + colon],
        None => named,
    }
}

/// Returns the keys that no pattern allows.
fn beyond<'a>(
    what: &str,
    keys: impl Iterator<Item = &'a str>,
    allowed: &PatternList,
    (field, value): (&'static str, &'static str),
) -> Option<Violation> {
    let mut keys: Vec<_> = keys
        .filter(|key| !allowed.matches(key))
        .map(|key| format!("{key:?}"))
        .collect();
    if keys.is_empty() {
        return None;
    }
    let more = keys.len().saturating_sub(NAMED);
    keys.truncate(NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Some(Violation {
        field: field.to_owned(),
        asked: format!("{what} {}{more}", keys.join(", ")),
        allowed: allowed.to_string(),
        value,
    })
}

#[cfg(test)]
mod tests;
