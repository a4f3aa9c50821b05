//! Computes the limit of a cache.

use crds::{RegistryMirrorSpec, storage::Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use mirror::config::MaxSize;

use super::Rejection;

/// The share of a volume for the cache, in percent. Fills, the index and the file system take the rest.
const PERCENT: u8 = 90;

/// Returns the limit of a cache: bytes or, for an existing PVC of unknown size, a share of its file system.
///
/// # Errors
/// An invalid quantity.
pub fn cache_limit(spec: &RegistryMirrorSpec, volume: &Volume<'_>) -> Result<MaxSize, Rejection> {
    let field = |name: &str| format!("{}.{name}", spec.storage.volume_field());
    let size = match (&spec.cache.max_size, volume) {
        (Some(size), _) => return Ok(MaxSize::Bytes(bytes("spec.cache.maxSize", size)?)),
        (None, Volume::ExistingClaim { .. }) => return Ok(MaxSize::Percent(PERCENT)),
        (None, Volume::Claims { size, .. }) => bytes(&field("persistentVolumeClaim.size"), size)?,
        (None, Volume::Ephemeral(ephemeral)) => bytes(&field("ephemeral.sizeLimit"), &ephemeral.size_limit)?,
    };
    // Servers know no cache of nothing.
    Ok(MaxSize::Bytes((size / 100 * u64::from(PERCENT)).max(1)))
}

fn bytes(path: &str, quantity: &Quantity) -> Result<u64, Rejection> {
    // As the servers read it.
    match quantity.0.parse() {
        Ok(MaxSize::Bytes(bytes)) => Ok(bytes),
        Ok(MaxSize::Percent(_)) | Err(_) => Err(Rejection::invalid(format!(
            "{path}: {} is not a size: write one such as 50Gi",
            quantity.0
        ))),
    }
}

#[cfg(test)]
mod tests {
    use crds::storage::{ClaimStorage, EphemeralStorage};
    use test_case::test_case;

    use super::*;

    fn limit(max_size: Option<&str>, volume: &Volume<'_>) -> Result<MaxSize, Rejection> {
        let max_size = max_size.map(|size| Quantity(size.to_owned()));
        let spec = serde_json::json!({
            "upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}, "cache": {"maxSize": max_size},
        });
        cache_limit(&serde_json::from_value(spec).unwrap(), volume)
    }

    #[test]
    fn default_limit_leaves_a_tenth_of_the_volume() {
        let size = Quantity("10Gi".to_owned());
        let claims = Volume::Claims {
            size: &size,
            claim: &ClaimStorage::default(),
        };
        assert_eq!(limit(None, &claims).unwrap(), MaxSize::Bytes(9_663_676_380));
        assert_eq!(
            limit(None, &Volume::Ephemeral(EphemeralStorage::default())).unwrap(),
            MaxSize::Bytes(9_663_676_380)
        );
    }

    /// The cache limit that a volume of the size has.
    #[test_case("1.5Ti" => Some(1_484_340_697_440); "a half")]
    #[test_case("0.5Gi" => Some(483_183_810); "less than one")]
    #[test_case("999999999999Pi" => None; "more than can be counted")]
    fn cache_limit_of_volume_size(size: &str) -> Option<u64> {
        let size = Quantity(size.to_owned());
        let claim = ClaimStorage::default();
        let limit = limit(
            None,
            &Volume::Claims {
                size: &size,
                claim: &claim,
            },
        );
        match limit {
            Ok(MaxSize::Bytes(bytes)) => Some(bytes),
            Ok(MaxSize::Percent(_)) | Err(_) => None,
        }
    }

    /// The server itself determines the size of an existing PersistentVolumeClaim.
    #[test]
    fn existing_pvc_leaves_size_to_server() {
        assert_eq!(
            limit(None, &Volume::ExistingClaim { name: "mine" }).unwrap(),
            MaxSize::Percent(90)
        );
    }

    /// A limit of the spec overrides the default.
    #[test]
    fn spec_limit_overrides_default() {
        let volume = Volume::ExistingClaim { name: "mine" };
        assert_eq!(limit(Some("1Gi"), &volume).unwrap(), MaxSize::Bytes(1 << 30));
        assert_eq!(
            limit(Some("1500M"), &volume).unwrap(),
            MaxSize::Bytes(1_500_000_000)
        );
        assert_eq!(
            limit(Some("1e9"), &volume).unwrap(),
            MaxSize::Bytes(1_000_000_000)
        );
    }

    #[test]
    fn invalid_quantity_is_named_with_its_path() {
        let error = limit(Some("much"), &Volume::ExistingClaim { name: "mine" }).unwrap_err();
        assert_eq!(
            error.message,
            "spec.cache.maxSize: much is not a size: write one such as 50Gi"
        );
    }
}
