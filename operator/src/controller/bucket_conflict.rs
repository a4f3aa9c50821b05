//! Two mirrors with one bucket and one prefix.

use std::sync::Arc;

use crds::{RegistryMirror, conditions::Reason};
use kube::ResourceExt;

use crate::{
    cluster::triggers::StoredMirror,
    mirror_key::MirrorKey,
    validate::{Rejection, bucket},
};

/// Checks that no other mirror has the bucket and the prefix of a mirror: a bucket names one upstream for its repositories
/// without a prefix, and each mirror would replace the tags of the other. A prefix that begins with the name of a namespace
/// belongs to the mirrors of that namespace. Among equals, the mirror whose servers use the bucket keeps it, according to its
/// status, then the oldest gets it.
///
/// # Errors
/// `BucketConflict`, with the other mirror where it is in the same namespace: a tenant learns no names of other namespaces.
pub(super) fn check(mirror: &RegistryMirror, all: &[Arc<StoredMirror>]) -> Result<(), Rejection> {
    let Some(location) = bucket::location(mirror) else {
        return Ok(());
    };
    let mut others = all.iter().filter_map(|stored| stored.0.as_ref().ok());
    let Some(other) = others.find(|other| goes_before(other, mirror, &location)) else {
        return Ok(());
    };
    Err(Rejection {
        reason: Reason::BucketConflict,
        message: format!("spec.storage.objectStore: {}", describe(other, mirror, &location)),
    })
}

/// Returns the owner of a location and the action, and logs an owner that the message does not name.
fn describe(other: &RegistryMirror, mirror: &RegistryMirror, location: &str) -> String {
    if other.namespace() == mirror.namespace() {
        let name = other.name_any();
        return format!(
            "RegistryMirror {name:?} has {location} already: set another prefix, or delete that mirror"
        );
    }
    let (owner, mirror) = (MirrorKey::from_object(other), MirrorKey::from_object(mirror));
    tracing::info!(%owner, %mirror, location, "mirror rejected: the owner has its bucket and prefix already");
    format!("another mirror of this cluster has {location} already: set another prefix")
}

/// Returns whether another mirror has a location before this one.
fn goes_before(other: &RegistryMirror, mirror: &RegistryMirror, location: &str) -> bool {
    let (key, own) = (MirrorKey::from_object(other), MirrorKey::from_object(mirror));
    if key == own {
        return false;
    }
    let (theirs, ours) = (uses(other, location), uses(mirror, location));
    if !theirs && bucket::location(other).as_deref() != Some(location) {
        return false;
    }
    let rank = |is_used: bool, mirror: &RegistryMirror, key: MirrorKey| {
        let created = mirror.creation_timestamp().map(|time| time.0);
        (!is_of_namespace(location, &key.namespace), !is_used, created, key)
    };
    rank(theirs, other, key) < rank(ours, mirror, own)
}

/// Returns whether the prefix of a location begins with the name of a namespace, as the default prefix does. A tenant can't keep
/// the mirrors of another namespace from their prefixes by naming them first.
fn is_of_namespace(location: &str, namespace: &str) -> bool {
    let (scheme, path) = location.split_once("://").unwrap_or_default();
    let (path, _) = path.split_once(" at ").unwrap_or((path, ""));
    // The bucket, or the account and the container.
    let bucket = if scheme == "azure" { 2 } else { 1 };
    path.split('/').nth(bucket) == Some(namespace)
}

/// Returns whether the servers of a mirror use a location.
fn uses(mirror: &RegistryMirror, location: &str) -> bool {
    let storage = mirror.status.as_ref().and_then(|status| status.storage.as_ref());
    let bucket = storage.and_then(|storage| storage.bucket.as_ref());
    bucket.is_some_and(|bucket| bucket.location == location)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    /// A tenant learns no name of another namespace.
    #[test]
    fn conflict_names_mirrors_of_one_namespace_only() {
        let (one, mut other) = (mirror("a", 1, "p", None), mirror("b", 2, "p", None));
        let message = |other: &RegistryMirror| {
            let all = [Arc::new(kube::core::DeserializeGuard(Ok(one.clone())))];
            check(other, &all).unwrap_err().message
        };
        assert!(message(&other).contains("RegistryMirror \"a\" has gs://b/p already"));
        other.metadata.namespace = Some("tenant".to_owned());
        let expected = "spec.storage.objectStore: another mirror of this cluster has gs://b/p already: set another prefix";
        assert_eq!(message(&other), expected);
    }

    fn mirror(name: &str, created: u32, prefix: &str, used: Option<&str>) -> RegistryMirror {
        let status =
            used.map(|prefix| json!({"storage": {"bucket": {"location": format!("gs://b/{prefix}")}}}));
        let document = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {
                "name": name, "namespace": "team", "creationTimestamp": format!("2026-01-01T00:00:0{created}Z"),
            },
            "spec": {
                "upstreams": [{"host": "quay.io"}],
                "storage": {
                    "type": "ObjectStore",
                    "objectStore": {
                        "gcs": {"bucket": "b", "prefix": prefix}, "credentials": {"secretRef": {"name": "keys"}},
                    },
                },
            },
            "status": status,
        });
        serde_json::from_value(document).unwrap()
    }

    /// Of two mirrors with one location at most one is rejected: the one whose servers use another or no bucket, else the
    /// younger one.
    #[test_case(&mirror("a", 1, "p", None), &mirror("b", 2, "p", None) => (true, false); "the older one")]
    #[test_case(&mirror("a", 1, "p", None), &mirror("b", 1, "p", None) => (true, false); "the first name")]
    #[test_case(&mirror("a", 1, "p", Some("q")), &mirror("b", 2, "p", Some("p")) => (false, true); "the one that uses it")]
    #[test_case(&mirror("a", 1, "p", None), &mirror("b", 2, "q", Some("p")) => (false, true); "the one that still uses it")]
    #[test_case(&mirror("a", 1, "p", Some("p")), &mirror("b", 2, "p", Some("p")) => (true, false); "both use it")]
    #[test_case(&mirror("a", 1, "p", None), &mirror("b", 2, "q", None) => (true, true); "other prefixes")]
    fn one_of_two_mirrors_has_the_bucket(one: &RegistryMirror, other: &RegistryMirror) -> (bool, bool) {
        let all: Vec<_> = [one, other]
            .map(|mirror| Arc::new(kube::core::DeserializeGuard(Ok(mirror.clone()))))
            .into();
        let verdicts = (check(one, &all), check(other, &all));
        let rejected = verdicts.0.as_ref().err().or(verdicts.1.as_ref().err());
        assert!(rejected.is_none_or(|rejection| rejection.reason == Reason::BucketConflict));
        (verdicts.0.is_ok(), verdicts.1.is_ok())
    }

    /// A prefix that begins with the name of a namespace belongs to its mirrors, also if the servers of another one use it.
    #[test]
    fn prefix_belongs_to_its_namespace() {
        let mut squatter = mirror("a", 1, "team/b", Some("team/b"));
        squatter.metadata.namespace = Some("tenant".to_owned());
        let owner = mirror("b", 2, "team/b", None);
        let all =
            [&squatter, &owner].map(|mirror| Arc::new(kube::core::DeserializeGuard(Ok(mirror.clone()))));
        assert_eq!(check(&owner, &all), Ok(()));
        assert!(check(&squatter, &all).is_err());
    }

    #[test_case("s3://b/team/x at https://s3.example.com/", true)]
    #[test_case("s3://b/team", true)]
    #[test_case("gs://b/team/x", true)]
    #[test_case("azure://account/container/team/x", true)]
    #[test_case("azure://account/team/x", false; "a container")]
    #[test_case("s3://team/x", false; "a bucket")]
    #[test_case("s3://b/team-2/x", false; "another namespace")]
    #[test_case("s3://b/", false; "no prefix")]
    fn prefix_begins_with_the_namespace(location: &str, expected: bool) {
        assert_eq!(is_of_namespace(location, "team"), expected);
    }
}
