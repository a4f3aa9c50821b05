//! The kinds of objects of a mirror.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::core::ApiResource;
use std::fmt;

/// A kind of object of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The configuration of servers, and files for nodes and clients.
    ConfigMap,
    /// Credentials and certificates.
    Secret,
    /// The identity of the Pods.
    ServiceAccount,
    /// A volume that outlives a Pod.
    PersistentVolumeClaim,
    /// The stable address.
    Service,
    /// The limit of concurrent evictions.
    PodDisruptionBudget,
    /// The workload of servers with PVCs.
    StatefulSet,
    /// The workload of servers without PVCs.
    Deployment,
    /// One server. The workload's controller creates it; the operator watches it and annotates it.
    Pod,
}

impl Kind {
    /// Every kind that is watched.
    pub const ALL: [Self; 9] = [
        Self::ConfigMap,
        Self::Secret,
        Self::ServiceAccount,
        Self::PersistentVolumeClaim,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::StatefulSet,
        Self::Deployment,
        Self::Pod,
    ];

    /// Returns the API resource.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::PersistentVolumeClaim => ApiResource::erase::<PersistentVolumeClaim>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource().kind)
    }
}
