//! The operator of `RegistryMirror` resources.
//!
//! A reconcile is a pipeline of modules, each of which imports only earlier ones: [`dereference`] reads the objects that a spec
//! names, [`validate`] accepts or rejects the spec, [`certificates`] issues the mirror's own certificates, [`desired`] computes
//! the objects, [`rollout`] limits how many mirrors change at the same time, [`apply`] writes the objects that differ, and
//! [`status`] reports the result. [`controller`] connects them to the API server; [`cli`] also runs the pipeline on files.
//!
//! ```
//! use crds::{RegistryMirror, RegistryMirrorSpec, conditions::Reason};
//! use operator::{dereference::References, validate};
//!
//! let spec: RegistryMirrorSpec = serde_json::from_value(serde_json::json!({
//!     "storage": {"type": "PersistentVolumeClaim"},
//!     "upstreams": [{"host": "docker.io"}],
//! })).unwrap();
//! let mirror = RegistryMirror::new("hub", spec);
//! let rejection = validate::accept(&mirror, &References::default()).err().unwrap();
//! assert_eq!(rejection.reason, Reason::InvalidSpec);
//! ```

pub mod admin_server;
pub mod agent;
pub mod apply;
pub mod backoff;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod dereference;
pub mod desired;
pub mod kind;
pub mod lease;
pub mod metrics;
pub mod mirror_key;
pub mod names;
pub mod node_config;
pub mod node_poller;
pub mod observed;
pub mod owners;
pub mod peer_secret;
pub mod policy;
mod quantity;
pub mod rbac;
pub mod replica_poller;
pub mod rollout;
pub mod run;
pub mod status;
pub mod status_client;
pub mod traffic;
pub mod validate;
pub mod warnings;
