//! Mirrors in front of a bucket, which the store versitygw has and Distribution uses as well.
#![expect(clippy::expect_used, reason = "a failure here is the test's")]

#[path = "bucket/clouds.rs"]
mod clouds;
#[path = "bucket/crash.rs"]
mod crash;
#[path = "bucket/faults.rs"]
mod faults;
#[path = "bucket/identity.rs"]
mod identity;
#[path = "bucket/identity_clouds.rs"]
mod identity_clouds;
#[path = "bucket/ledger.rs"]
mod ledger;
#[path = "bucket/owners.rs"]
mod owners;
#[path = "bucket/place.rs"]
mod place;
#[path = "bucket/process.rs"]
mod process;
#[path = "bucket/redirects.rs"]
mod redirects;
#[path = "bucket/redirects_clouds.rs"]
mod redirects_clouds;
#[path = "bucket/replicas.rs"]
mod replicas;
#[path = "bucket/takeover.rs"]
mod takeover;
#[path = "bucket/tiers.rs"]
mod tiers;
