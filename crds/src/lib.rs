//! The `RegistryMirror` API: the types that the operator uses, and the only source of the `CustomResourceDefinition`.
//!
//! Every field is documented for the admin who writes it, because these comments become the descriptions that `kubectl
//! explain` prints. The schema and serde have the same defaults, so that an object reads the same from an API server
//! and from a file.
//!
//! ```
//! use serde_json::json;
//!
//! let mut document = json!({
//!     "apiVersion": "registrymirror.io/v1alpha1",
//!     "kind": "RegistryMirror",
//!     "metadata": {"name": "hub"},
//!     "spec": {"storage": {"type": "Ephemeral"}, "upstreams": [{"host": "docker.io"}]},
//! });
//! let mirror = crds::validate::created(&document).unwrap();
//! assert_eq!(mirror.spec.upstreams[0].host, "docker.io");
//!
//! document["spec"]["upstreams"] = json!([]);
//! assert!(crds::validate::created(&document).is_err());
//! ```
#![expect(
    unreachable_pub,
    reason = "kube's KubeSchema repeats each type inside a function"
)]
#![allow(
    clippy::doc_markdown,
    reason = "these comments are read in `kubectl explain`, too"
)]

pub mod access;
mod advice;
pub mod cache;
pub mod conditions;
pub mod definition;
pub mod node_configuration;
pub mod object_store;
pub mod observability;
pub mod peers;
pub mod pod;
pub mod rules;
pub mod service;
pub mod spec;
pub mod status;
pub mod storage;
pub mod tls;
pub mod upstream;
pub mod validate;

pub use access::Access;
pub use cache::Cache;
pub use definition::crd;
pub use node_configuration::NodeConfiguration;
pub use object_store::ObjectStore;
pub use observability::Observability;
pub use peers::Peers;
pub use pod::{Pod, PodIdentity};
pub use service::Service;
pub use spec::{RegistryMirror, RegistryMirrorSpec};
pub use status::RegistryMirrorStatus;
pub use storage::Storage;
pub use tls::Tls;
pub use upstream::Upstream;

mod names;
mod schema;
