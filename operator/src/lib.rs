//! The operator of `RegistryMirror` resources.
//!
//! A reconcile is a pipeline of modules, none of which reaches back: [`dereference`] reads what a spec points to,
//! [`validate`] decides whether it can be acted on, [`issue`] makes its own certificates where it has any, [`desired`] works out the objects, [`apply`] writes what is not
//! there yet, [`status`] says what came of it. [`controller`] wires them to the API server; [`cli`] also runs the same
//! pipeline without one.

pub mod apply;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod dereference;
pub mod desired;
pub mod health;
pub mod index;
pub mod issue;
pub mod kind;
pub mod lease;
pub mod metrics;
pub mod observed;
pub mod owners;
pub mod pace;
mod quantity;
pub mod replicas;
pub mod retry;
pub mod rights;
pub mod risks;
pub mod run;
pub mod stages;
pub mod status;
mod unparsable;
pub mod validate;
