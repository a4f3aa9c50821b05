//! The operator on a real control plane, in this process, with a namespace and a user of its own in each test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]

#[path = "operator/admission.rs"]
mod admission;
#[path = "operator/agent.rs"]
mod agent;
#[path = "operator/autoscaling.rs"]
mod autoscaling;
#[path = "operator/backup.rs"]
mod backup;
#[path = "operator/bench.rs"]
mod bench;
#[path = "operator/canary.rs"]
mod canary;
#[path = "operator/certificates.rs"]
mod certificates;
#[path = "operator/children.rs"]
mod children;
#[path = "operator/conflicts.rs"]
mod conflicts;
#[path = "operator/credentials.rs"]
mod credentials;
#[path = "operator/doctor.rs"]
mod doctor;
#[path = "operator/evictions.rs"]
mod evictions;
#[path = "operator/examples.rs"]
mod examples;
#[path = "operator/faults.rs"]
mod faults;
#[path = "operator/foreign.rs"]
mod foreign;
#[path = "operator/kubectl.rs"]
mod kubectl;
#[path = "operator/lease.rs"]
mod lease;
#[path = "operator/meddling.rs"]
mod meddling;
#[path = "operator/mutual_tls.rs"]
mod mutual_tls;
#[path = "operator/node_files.rs"]
mod node_files;
#[path = "operator/nodes.rs"]
mod nodes;
#[path = "operator/object_store.rs"]
mod object_store;
#[path = "operator/object_store_clouds.rs"]
mod object_store_clouds;
#[path = "operator/pages.rs"]
mod pages;
#[path = "operator/platform.rs"]
mod platform;
#[path = "operator/plugin.rs"]
mod plugin;
#[path = "operator/pods.rs"]
mod pods;
#[path = "operator/policies.rs"]
mod policies;
#[path = "operator/process.rs"]
mod process;
#[path = "operator/protected.rs"]
mod protected;
#[path = "operator/readers.rs"]
mod readers;
#[path = "operator/reasons.rs"]
mod reasons;
#[path = "operator/refusals.rs"]
mod refusals;
#[path = "operator/rest.rs"]
mod rest;
#[path = "operator/rewritten.rs"]
mod rewritten;
#[path = "operator/rights.rs"]
mod rights;
#[path = "operator/rivals.rs"]
mod rivals;
#[path = "operator/rotation.rs"]
mod rotation;
#[path = "operator/scale.rs"]
mod scale;
#[path = "operator/service.rs"]
mod service;
#[path = "operator/serving.rs"]
mod serving;
#[path = "operator/storage.rs"]
mod storage;
#[path = "operator/strangers.rs"]
mod strangers;
#[path = "operator/tenancy.rs"]
mod tenancy;
#[path = "operator/unparsable.rs"]
mod unparsable;
#[path = "operator/upgrades.rs"]
mod upgrades;
