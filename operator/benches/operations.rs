//! The pure part of a reconcile, from a spec to all objects: `cargo bench -p registry-mirror --bench operations`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message"
)]

use std::convert::Infallible;
use std::hint::black_box;

use crds::RegistryMirror;
use futures::executor::block_on;
use operator::dereference::{self, Contents, Reader, Reference};
use operator::desired::{self, Release};
use operator::observed::Observed;
use operator::validate;

const SMALLEST: &str = include_str!("../tests/specs/minimal.yaml");
const THREE_REPLICAS: &str = include_str!("../tests/specs/three-replicas-retained.yaml");

fn main() {
    divan::main();
}

#[divan::bench]
fn the_smallest_mirror(bencher: divan::Bencher<'_, '_>) {
    let mirror = serde_saphyr::from_str(SMALLEST).unwrap();
    bencher.bench_local(|| reconcile(&mirror));
}

#[divan::bench]
fn a_mirror_of_three_replicas(bencher: divan::Bencher<'_, '_>) {
    let mirror = serde_saphyr::from_str(THREE_REPLICAS).unwrap();
    bencher.bench_local(|| reconcile(&mirror));
}

/// A cluster that holds nothing that a spec could point to.
struct Empty;

impl Reader for Empty {
    type Error = Infallible;

    async fn read(&self, _: &str, _: &Reference) -> Result<Option<Contents>, Infallible> {
        Ok(None)
    }
}

fn reconcile(mirror: &RegistryMirror) {
    let references = block_on(dereference::read(mirror, &Empty)).unwrap();
    let accepted = validate::accept(mirror, &references).unwrap();
    let (observed, release) = (Observed::default(), Release::default());
    black_box(desired::objects(&accepted, &references, &observed, &release)).unwrap();
}
