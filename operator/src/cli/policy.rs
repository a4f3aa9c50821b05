//! The flags of the operator's policy.

use clap::Parser;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Failure;
use crate::{
    policy::{AffinityScope, ExistingClaimMode, PatternList, PodSecurity, Policy},
    quantity::amount,
};

/// The limits of specs. In patterns, `*` stays between two slashes and `**` does not; an empty pattern matches nothing.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct PolicyArgs {
    /// Images that spec.pod.image may name, next to those of the repository of --server-image: patterns of a repository,
    /// or with tag or digest; may be repeated
    #[arg(long = "allowed-image", env = "ALLOWED_IMAGES", value_delimiter = ',', value_parser = pattern, value_name = "PATTERN")]
    images: Vec<String>,
    /// Priority classes that spec.pod.priorityClassName may name; may be repeated. Absent: none
    #[arg(
        long = "allowed-priority-class",
        env = "ALLOWED_PRIORITY_CLASSES",
        value_delimiter = ',',
        value_parser = pattern,
        value_name = "PATTERN"
    )]
    priority_classes: Vec<String>,
    /// Keys of Pod annotations that a spec may set; may be repeated
    #[arg(
        long = "allowed-pod-annotation",
        env = "ALLOWED_POD_ANNOTATIONS",
        value_delimiter = ',',
        value_parser = pattern,
        default_values_t = Policy::default().annotations.as_written().to_vec(),
        value_name = "PATTERN"
    )]
    annotations: Vec<String>,
    /// Keys of Pod labels that a spec may set; may be repeated
    #[arg(
        long = "allowed-pod-label",
        env = "ALLOWED_POD_LABELS",
        value_delimiter = ',',
        value_parser = pattern,
        default_values_t = Policy::default().labels.as_written().to_vec(),
        value_name = "PATTERN"
    )]
    labels: Vec<String>,
    /// Keys of taints that Pods may tolerate; may be repeated. `**` allows to tolerate every taint
    #[arg(
        long = "allowed-toleration",
        env = "ALLOWED_TOLERATIONS",
        value_delimiter = ',',
        value_parser = pattern,
        default_values_t = Policy::default().tolerations.as_written().to_vec(),
        value_name = "PATTERN"
    )]
    tolerations: Vec<String>,
    /// The most replicas of a mirror
    #[arg(long, env = "MAX_REPLICAS", default_value_t = Policy::default().max_replicas, value_name = "REPLICAS")]
    max_replicas: u32,
    /// The largest volume of a replica, such as 2Ti
    #[arg(long, env = "MAX_STORAGE", default_value_t = Policy::default().max_storage.0, value_parser = size, value_name = "SIZE")]
    max_storage: String,
    /// PersistentVolumeClaims of users that mirrors may use (existingClaim)
    #[arg(
        long,
        env = "EXISTING_CLAIMS",
        value_enum,
        default_value_t,
        value_name = "WHICH"
    )]
    existing_claims: ExistingClaimMode,
    /// Security contexts that a spec may have
    #[arg(
        long,
        env = "POD_SECURITY",
        value_enum,
        default_value_t,
        value_name = "STANDARD"
    )]
    pod_security: PodSecurity,
    /// Namespaces whose Pods spec.pod.affinity may refer to: a mirror that keeps away from Pods of other namespaces keeps
    /// those away from its nodes
    #[arg(
        long,
        env = "AFFINITY_NAMESPACES",
        value_enum,
        default_value_t,
        value_name = "WHICH"
    )]
    affinity_namespaces: AffinityScope,
}

/// A command line with flags of the policy and nothing else.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    args: PolicyArgs,
}

/// The beginnings of the flags.
const FLAGS: &[&str] = &[
    "--allowed-",
    "--max-replicas=",
    "--max-storage=",
    "--existing-claims=",
    "--pod-security=",
    "--affinity-namespaces=",
];

impl PolicyArgs {
    /// Returns the policy.
    ///
    /// # Errors
    /// `Invalid`, where patterns do not compile together.
    pub(super) fn policy(self) -> Result<Policy, Failure> {
        let patterns = |patterns: Vec<String>| {
            let some: Vec<_> = patterns
                .into_iter()
                .filter(|pattern| !pattern.is_empty())
                .collect();
            PatternList::new(&some).map_err(|error| Failure::Invalid(error.to_string()))
        };
        Ok(Policy {
            images: patterns(self.images)?,
            priority_classes: patterns(self.priority_classes)?,
            annotations: patterns(self.annotations)?,
            labels: patterns(self.labels)?,
            tolerations: patterns(self.tolerations)?,
            max_replicas: self.max_replicas,
            max_storage: Quantity(self.max_storage),
            existing_claims: self.existing_claims,
            pod_security: self.pod_security,
            affinity_namespaces: self.affinity_namespaces,
        })
    }
}

/// Returns the policy of an operator with these arguments, the flags of other things among them; `None` if this version
/// can't read them.
pub(super) fn of_arguments(arguments: &[String]) -> Option<Policy> {
    let own = arguments
        .iter()
        .filter(|argument| FLAGS.iter().any(|flag| argument.starts_with(flag)));
    Alone::try_parse_from(own).ok()?.args.policy().ok()
}

fn pattern(text: &str) -> Result<String, String> {
    let compiled = PatternList::new(&[text.to_owned()]);
    compiled
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<String, String> {
    let is_size = amount(text).is_some_and(|amount| amount > 0.0);
    is_size
        .then(|| text.to_owned())
        .ok_or_else(|| "must be a size above zero, such as 2Ti".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(arguments: &[&str]) -> Option<Policy> {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        of_arguments(&arguments)
    }

    #[test]
    fn policy_without_flags_is_the_default() {
        assert_eq!(policy(&["--log-level=info", "operator"]), Some(Policy::default()));
    }

    #[test]
    fn flag_replaces_the_default_list() {
        let changed = policy(&[
            "--allowed-pod-label=a",
            "--allowed-pod-label=b,c",
            "--allowed-toleration=",
        ])
        .unwrap();
        assert_eq!(changed.labels.as_written(), ["a", "b", "c"]);
        assert!(changed.tolerations.as_written().is_empty());
        assert_eq!(changed.annotations, Policy::default().annotations);
    }

    #[test]
    fn limits_are_read_from_flags() {
        let changed = policy(&[
            "--max-replicas=3",
            "--max-storage=1Gi",
            "--existing-claims=any",
            "--pod-security=any",
            "--affinity-namespaces=any",
        ]);
        let changed = changed.unwrap();
        assert_eq!((changed.max_replicas, changed.max_storage.0.as_str()), (3, "1Gi"));
        assert_eq!(changed.existing_claims, ExistingClaimMode::Any);
        assert_eq!(changed.pod_security, PodSecurity::Any);
        assert_eq!(changed.affinity_namespaces, AffinityScope::Any);
    }

    #[test]
    fn malformed_flags_are_refused() {
        for flag in [
            "--allowed-image=[",
            "--max-storage=much",
            "--max-storage=0",
            "--max-replicas=-1",
        ] {
            assert_eq!(policy(&[flag]), None, "{flag}");
        }
    }
}
