//! The limits of the API server for the size of an object. Its own refusal names neither the value nor the action.

use crds::{RegistryMirror, conditions::Reason};
use kube::ResourceExt;
use serde_json::{Map, Value};

use super::child::Child;
use crate::{kind::Kind, names, validate::Rejection};

/// The largest sum of the values of a Secret or a `ConfigMap`, in bytes (`MaxSecretSize` of Kubernetes).
const MAX_DATA_BYTES: usize = 1024 * 1024;
/// The largest sum of the keys and values of annotations, in bytes (`TotalAnnotationSizeLimitB` of Kubernetes), less the
/// operator's own ones.
const MAX_ANNOTATION_BYTES: usize = 240 * 1024;
/// The number of values that a message names.
const NAMED: usize = 3;

/// Rejects an object that the API server can't store.
///
/// # Errors
/// `ReferenceMalformed` if its values are those of objects that the spec names, else `InvalidSpec`.
pub(super) fn check(mirror: &RegistryMirror, child: &Child) -> Result<(), Rejection> {
    let Child { kind, name, manifest } = child;
    let sizes = sizes(*kind, manifest);
    let total: usize = sizes.iter().map(|(size, _)| size).sum();
    if total > MAX_DATA_BYTES {
        return Err(too_large(mirror, child, sizes, total));
    }
    let annotations = manifest["metadata"]["annotations"].as_object();
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    let total: usize = annotations.into_iter().flatten().map(bytes).sum();
    if total > MAX_ANNOTATION_BYTES {
        return Err(Rejection::invalid(format!(
            "annotations of {kind} {name:?} would have {total} bytes, and at most {MAX_ANNOTATION_BYTES} fit: shorten the \
             annotations or the list of upstreams in the spec"
        )));
    }
    Ok(())
}

/// Returns the size of each value, in bytes, with its key. Values of Secrets are base64.
fn sizes(kind: Kind, manifest: &Value) -> Vec<(usize, &str)> {
    let decoded = |text: &str| {
        (text.len() / 4 * 3).saturating_sub(text.bytes().rev().take_while(|byte| *byte == b'=').count())
    };
    let size = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        if kind == Kind::Secret {
            decoded(text)
        } else {
            text.len()
        }
    };
    if !matches!(kind, Kind::Secret | Kind::ConfigMap) {
        return Vec::new();
    }
    let data = manifest["data"].as_object().into_iter().flat_map(Map::iter);
    data.map(|(key, value)| (size(value), key.as_str())).collect()
}

fn too_large(
    mirror: &RegistryMirror,
    child: &Child,
    mut sizes: Vec<(usize, &str)>,
    total: usize,
) -> Rejection {
    let Child { kind, name, .. } = child;
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    let largest: Vec<_> = sizes
        .iter()
        .take(NAMED)
        .map(|(size, key)| format!("{key} {size}"))
        .collect();
    let mirror = mirror.name_any();
    let (reason, action) = if *name == names::files(&mirror) {
        let action =
            "use smaller CA bundles (caBundleRef, clientCARef), fewer of them, or a smaller htpasswd file";
        (Reason::ReferenceMalformed, action)
    } else if *name == names::credentials(&mirror) {
        (
            Reason::ReferenceMalformed,
            "use shorter credentials, or fewer upstreams",
        )
    } else {
        (
            Reason::InvalidSpec,
            "shorten the spec, such as its list of upstreams",
        )
    };
    Rejection {
        reason,
        message: format!(
            "{kind} {name:?} would have {total} bytes, and the API server stores at most {MAX_DATA_BYTES} (largest: {}): \
             {action}",
            largest.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use crds::RegistryMirrorSpec;
    use k8s_openapi::{
        ByteString,
        api::core::v1::{ConfigMap, Secret},
    };
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    fn checked(child: &Child) -> Result<(), Rejection> {
        let spec = json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}});
        let spec: RegistryMirrorSpec = serde_json::from_value(spec).unwrap();
        check(&RegistryMirror::new("hub", spec), child)
    }

    fn secret(name: &str, sizes: &[usize]) -> Child {
        let data = sizes.iter().enumerate();
        let data = data.map(|(index, size)| (format!("ca-{index}.crt"), ByteString(vec![b'a'; *size])));
        let secret = Secret {
            data: Some(data.collect()),
            ..Secret::default()
        };
        Child::new(Kind::Secret, name.to_owned(), &secret)
    }

    /// The limit counts decoded bytes, with each padding of base64.
    #[test_case(MAX_DATA_BYTES; "no padding of this length")]
    #[test_case(MAX_DATA_BYTES - 1)]
    #[test_case(MAX_DATA_BYTES - 2)]
    fn secret_at_the_limit_is_accepted(size: usize) {
        assert_eq!(checked(&secret("hub-files", &[size])), Ok(()));
        assert!(checked(&secret("hub-files", &[size, 3])).is_err());
    }

    #[test]
    fn oversized_files_are_rejected_with_sizes() {
        let rejection = checked(&secret("hub-files", &[700_000, 10, 20, 400_000])).unwrap_err();
        assert_eq!(rejection.reason, Reason::ReferenceMalformed);
        assert_eq!(
            rejection.message,
            "Secret \"hub-files\" would have 1100030 bytes, and the API server stores at most 1048576 (largest: ca-0.crt \
             700000, ca-3.crt 400000, ca-2.crt 20): use smaller CA bundles (caBundleRef, clientCARef), fewer of them, or a \
             smaller htpasswd file"
        );
    }

    #[test]
    fn oversized_configuration_is_a_fault_of_the_spec() {
        let map = ConfigMap {
            data: Some([("config.yml".to_owned(), "a".repeat(MAX_DATA_BYTES + 1))].into()),
            ..ConfigMap::default()
        };
        let rejection = checked(&Child::new(Kind::ConfigMap, "hub-config".to_owned(), &map)).unwrap_err();
        assert_eq!(rejection.reason, Reason::InvalidSpec);
    }

    #[test]
    fn oversized_annotations_are_rejected() {
        let manifest = json!({"metadata": {"annotations": {"a": "b".repeat(MAX_ANNOTATION_BYTES)}}});
        let service = Child {
            kind: Kind::Service,
            name: "hub".to_owned(),
            manifest,
        };
        let rejection = checked(&service).unwrap_err();
        assert!(
            rejection.message.starts_with("annotations of Service \"hub\""),
            "{}",
            rejection.message
        );
    }
}
