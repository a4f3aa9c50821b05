//! The limits of a policy that are looser than the default ones.

use super::{AffinityScope, ExistingClaimMode, PatternList, PodSecurity, Policy};
use crate::quantity::amount;

impl Policy {
    /// Returns the limits that are looser than the default ones, as the name of the chart's value and what it allows.
    pub fn looser_than_default(&self) -> Vec<(&'static str, String)> {
        let default = Self::default();
        let lists = [
            ("images", &self.images, &default.images),
            (
                "priorityClasses",
                &self.priority_classes,
                &default.priority_classes,
            ),
            ("podAnnotations", &self.annotations, &default.annotations),
            ("podLabels", &self.labels, &default.labels),
            ("tolerations", &self.tolerations, &default.tolerations),
        ];
        let lists = lists
            .into_iter()
            .filter_map(|(value, own, default)| Some((value, added(own, default)?)));
        let more_replicas = self.max_replicas > default.max_replicas;
        let more_storage = amount(&self.max_storage.0) > amount(&default.max_storage.0);
        let limits = [
            more_replicas.then(|| ("maxReplicas", self.max_replicas.to_string())),
            more_storage.then(|| ("maxStorage", self.max_storage.0.clone())),
            (self.existing_claims == ExistingClaimMode::Any).then(|| ("existingClaims", "any".to_owned())),
            (self.pod_security == PodSecurity::Any).then(|| ("podSecurity", "any".to_owned())),
            (self.affinity_namespaces == AffinityScope::Any)
                .then(|| ("affinityNamespaces", "any".to_owned())),
        ];
        lists.chain(limits.into_iter().flatten()).collect()
    }
}

/// Returns the patterns that the default does not have.
fn added(patterns: &PatternList, default: &PatternList) -> Option<String> {
    let mut added = patterns.as_written().to_vec();
    added.retain(|pattern| !default.as_written().contains(pattern));
    (!added.is_empty()).then(|| added.join(", "))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    #[test]
    fn default_and_stricter_policies_are_not_looser() {
        let stricter = Policy {
            annotations: PatternList::default(),
            labels: PatternList::from_constants(&["team"]),
            max_replicas: 1,
            max_storage: Quantity("1Gi".to_owned()),
            ..Policy::default()
        };
        for policy in [Policy::default(), stricter] {
            assert_eq!(policy.looser_than_default(), []);
        }
    }

    #[test]
    fn looser_limits_are_named_by_value() {
        let looser = Policy {
            images: PatternList::from_constants(&["**"]),
            labels: PatternList::from_constants(&["team", "app"]),
            max_replicas: 51,
            max_storage: Quantity("3Ti".to_owned()),
            existing_claims: ExistingClaimMode::Any,
            pod_security: PodSecurity::Any,
            affinity_namespaces: AffinityScope::Any,
            ..Policy::default()
        };
        let expected = [
            ("images", "**"),
            ("podLabels", "app"),
            ("maxReplicas", "51"),
            ("maxStorage", "3Ti"),
            ("existingClaims", "any"),
            ("podSecurity", "any"),
            ("affinityNamespaces", "any"),
        ];
        assert_eq!(
            looser.looser_than_default(),
            expected.map(|(value, allows)| (value, allows.to_owned()))
        );
    }
}
