//! The storage of the cache.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{KubeSchema, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ObjectStore, rules, schema};

/// The storage of the cache: a union with the discriminator `type`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'PersistentVolumeClaim' || has(self.persistentVolumeClaim)")
        .message("is what type PersistentVolumeClaim needs: give it a size or an existingClaim")
        .field_path(".persistentVolumeClaim")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.type == 'PersistentVolumeClaim' || !has(self.persistentVolumeClaim)")
        .message("goes with type PersistentVolumeClaim only: remove it, or use that type")
        .field_path(".persistentVolumeClaim")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type == 'Ephemeral' || !has(self.ephemeral)")
        .message("goes with type Ephemeral only: remove it, or use that type")
        .field_path(".ephemeral")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type != 'ObjectStore' || has(self.objectStore)")
        .message("must be set with type ObjectStore: the bucket, and the credentials for it")
        .field_path(".objectStore")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.type == 'ObjectStore' || !has(self.objectStore)")
        .message("goes with type ObjectStore only: remove it, or use that type")
        .field_path(".objectStore")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type == 'ObjectStore' || !has(self.localTier)")
        .message("goes with type ObjectStore only: remove it, or use that type")
        .field_path(".localTier")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type == oldSelf.type")
        .message("can't be changed: make another RegistryMirror")
        .field_path(".type"),
    validation = same_local_tier()
)]
pub struct Storage {
    /// `PersistentVolumeClaim` (the cache survives the Pod), `Ephemeral` (it goes with the Pod) or `ObjectStore` (a bucket
    /// keeps it, behind a local tier in each Pod). Can't be changed.
    pub r#type: StorageType,

    /// With type PersistentVolumeClaim: the claim. Each replica has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimStorage>,

    /// With type Ephemeral: an emptyDir volume. May be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralStorage>,

    /// With type ObjectStore: the bucket. All replicas, and all Pods that follow them, share its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,

    /// With type ObjectStore: the cache of each replica in front of the bucket. Absent: an emptyDir volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_tier: Option<LocalTier>,
}

/// The cache of a replica in front of a bucket: a union with the discriminator `type`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'PersistentVolumeClaim' || has(self.persistentVolumeClaim)")
        .message("must be set with type PersistentVolumeClaim: set its size or existingClaim")
        .field_path(".persistentVolumeClaim")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.type == 'PersistentVolumeClaim' || !has(self.persistentVolumeClaim)")
        .message("goes with type PersistentVolumeClaim only: remove it, or use that type")
        .field_path(".persistentVolumeClaim")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type == 'Ephemeral' || !has(self.ephemeral)")
        .message("goes with type Ephemeral only: remove it, or use that type")
        .field_path(".ephemeral")
        .reason(Reason::FieldValueForbidden)
)]
pub struct LocalTier {
    /// `Ephemeral` (the Pods of a Deployment begin with an empty cache) or `PersistentVolumeClaim` (a StatefulSet, whose
    /// replicas keep theirs). Can't be changed.
    #[serde(default)]
    pub r#type: LocalTierType,

    /// With type PersistentVolumeClaim: the claim. Each replica has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimStorage>,

    /// With type Ephemeral: an emptyDir volume. May be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralStorage>,
}

/// The type of a local tier.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalTierType {
    /// A volume that goes with its Pod.
    #[default]
    Ephemeral,
    /// A claim for each replica.
    PersistentVolumeClaim,
}

/// Returns the rule that the type of the local tier, and by it the kind of the workload, stays.
fn same_local_tier() -> Rule {
    let tier = |object: &str| format!("(has({object}.localTier) ? {object}.localTier.type : 'Ephemeral')");
    Rule::new(format!("{} == {}", tier("self"), tier("oldSelf")))
        .message("can't be changed: make another RegistryMirror")
        .field_path(".localTier")
}

impl Storage {
    /// Returns the volume of the union; `None` for an invalid union, which admission rejects.
    pub fn volume(&self) -> Option<Volume<'_>> {
        if self.is_ephemeral() {
            let ephemeral = match &self.local_tier {
                Some(tier) => &tier.ephemeral,
                None => &self.ephemeral,
            };
            return Some(Volume::Ephemeral(ephemeral.clone().unwrap_or_default()));
        }
        let claim = match &self.local_tier {
            Some(tier) => &tier.persistent_volume_claim,
            None => &self.persistent_volume_claim,
        };
        let claim = claim.as_ref()?;
        match (&claim.size, &claim.existing_claim) {
            (Some(size), None) => Some(Volume::Claims { size, claim }),
            (None, Some(name)) => Some(Volume::ExistingClaim { name }),
            _ => None,
        }
    }

    /// Returns whether the volume goes with its Pod, so that the workload is a Deployment. The type never changes.
    pub fn is_ephemeral(&self) -> bool {
        match self.r#type {
            StorageType::Ephemeral => true,
            StorageType::PersistentVolumeClaim => false,
            StorageType::ObjectStore => {
                let tier = self.local_tier.as_ref();
                tier.is_none_or(|tier| tier.r#type == LocalTierType::Ephemeral)
            }
        }
    }

    /// Returns the field that holds the fields of the volume.
    pub fn volume_field(&self) -> &'static str {
        match self.r#type {
            StorageType::ObjectStore => "spec.storage.localTier",
            StorageType::PersistentVolumeClaim | StorageType::Ephemeral => "spec.storage",
        }
    }
}

/// The effective volume of a `Storage`.
#[derive(Clone, Debug, PartialEq)]
pub enum Volume<'a> {
    /// Claims that the operator makes, one a replica.
    Claims {
        /// The size of each.
        size: &'a Quantity,
        /// Class and retention.
        claim: &'a ClaimStorage,
    },
    /// A claim that an admin made.
    ExistingClaim {
        /// Its name.
        name: &'a str,
    },
    /// An emptyDir.
    Ephemeral(EphemeralStorage),
}

/// The type of storage.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageType {
    /// A claim for each replica.
    PersistentVolumeClaim,
    /// A volume that goes with its Pod.
    Ephemeral,
    /// A bucket behind a local tier.
    ObjectStore,
}

/// A claim, made by the operator (`size`) or by an admin (`existingClaim`).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.size) != has(self.existingClaim)")
        .message("set either size (claims are made) or existingClaim (a claim that is there), not both"),
    validation = Rule::new("!has(self.storageClassName) || has(self.size)")
        .message("goes with size only: an existing claim has its class already")
        .field_path(".storageClassName")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new(unchanged("existingClaim"))
        .message("can't be changed, nor replaced by a size: make another RegistryMirror")
        .field_path(".existingClaim"),
    validation = Rule::new(unchanged("storageClassName"))
        .message("can't be changed: make another RegistryMirror")
        .field_path(".storageClassName")
)]
pub struct ClaimStorage {
    /// The size of each replica's PersistentVolumeClaim, such as `50Gi`. It can grow if the storage class allows it; it
    /// can't shrink below the bound size. Either this or existingClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity())]
    #[schemars(schema_with = "schema::quantity")]
    pub size: Option<Quantity>,

    /// Name of an existing PersistentVolumeClaim in the mirror's namespace; at most one replica then. By the operator's
    /// policy it needs the annotation `registrymirror.io/allow-mirror`: the mirror's name, or `*`. It is never changed or
    /// deleted. Can't be changed. Either this or size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub existing_claim: Option<String>,

    /// Storage class of the claims that are made. Absent: the cluster's default. Can't be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub storage_class_name: Option<String>,

    /// The retention of PersistentVolumeClaims when the mirror is deleted: `Delete` or `Retain`. Scaling in never
    /// deletes one.
    #[serde(default)]
    pub retention_policy: RetentionPolicy,
}

/// Holds as long as an optional field is not set, unset or changed. A rule of the field itself would be skipped where
/// it is set or unset.
fn unchanged(field: &str) -> String {
    format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    )
}

/// The retention of PersistentVolumeClaims when their mirror is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetentionPolicy {
    /// They are deleted, too.
    #[default]
    Delete,
    /// They stay, and a mirror of the same name takes them up again.
    Retain,
}

/// An emptyDir volume.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralStorage {
    /// The maximum space on the node's disk for a replica. The cache stays below it, because the kubelet evicts a Pod
    /// that exceeds it.
    #[serde(default = "ten_gibibytes")]
    #[x_kube(validation = rules::quantity())]
    #[schemars(schema_with = "schema::quantity", extend("default" = "10Gi"))]
    pub size_limit: Quantity,
}

impl Default for EphemeralStorage {
    fn default() -> Self {
        Self {
            size_limit: ten_gibibytes(),
        }
    }
}

fn ten_gibibytes() -> Quantity {
    Quantity("10Gi".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn storage(value: Value) -> Storage {
        serde_json::from_value(value).unwrap()
    }

    /// A size in the storage means that the operator creates `PersistentVolumeClaims`.
    #[test]
    fn storage_size_creates_pvcs() {
        let storage =
            storage(json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "5Gi"}}));
        let Some(Volume::Claims { size, claim }) = storage.volume() else {
            panic!("{storage:?}")
        };
        assert_eq!(
            (size.0.as_str(), claim.retention_policy),
            ("5Gi", RetentionPolicy::Delete)
        );
    }

    /// The storage uses an existing PersistentVolumeClaim by its name.
    #[test]
    fn storage_existing_pvc_is_used_by_name() {
        let storage = storage(
            json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"existingClaim": "a"}}),
        );
        assert_eq!(storage.volume(), Some(Volume::ExistingClaim { name: "a" }));
    }

    #[test]
    fn omitted_ephemeral_volume_has_its_default() {
        for value in [
            json!({"type": "Ephemeral"}),
            json!({"type": "Ephemeral", "ephemeral": {}}),
        ] {
            let limit = EphemeralStorage {
                size_limit: Quantity("10Gi".to_owned()),
            };
            assert_eq!(storage(value).volume(), Some(Volume::Ephemeral(limit)));
        }
    }

    /// A union that admission refuses gives no volume.
    #[test_case(json!({"type": "PersistentVolumeClaim"}); "no claim")]
    #[test_case(json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {}}); "an empty claim")]
    #[test_case(json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "1", "existingClaim": "a"}}); "both")]
    fn invalid_storage_union_is_no_volume(value: Value) {
        assert_eq!(storage(value).volume(), None);
    }
}
