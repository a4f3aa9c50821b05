//! The pure part of a reconcile, from a spec to all objects: `cargo bench -p registry-mirror --bench operations` times it,
//! `make count` counts its instructions and holds them against `budget.txt`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message"
)]

// One counter for all crates: a crate of its own would be more to read than it is.
#[path = "../../../mirror/benches/operations/counted.rs"]
mod counted;

use std::convert::Infallible;
use std::hint::black_box;

use counted::{Counted, Operation};
use crds::RegistryMirror;
use futures::executor::block_on;
use operator::dereference::{self, Contents, Reader, Reference};
use operator::desired::{self, Release};
use operator::observed::Observed;
use operator::validate;

const SMALLEST: &str = include_str!("../../tests/specs/minimal.yaml");
const THREE_REPLICAS: &str = include_str!("../../tests/specs/three-replicas-retained.yaml");

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/operations/budget.txt");

/// The mirrors that are reconciled.
struct Specs {
    smallest: RegistryMirror,
    three_replicas: RegistryMirror,
}

const OPERATIONS: [Operation<Specs>; 2] = [
    Operation {
        name: "reconcile, the smallest mirror",
        run: |specs| reconcile(&specs.smallest),
    },
    Operation {
        name: "reconcile, three replicas that keep their volumes",
        run: |specs| reconcile(&specs.three_replicas),
    },
];

fn main() {
    let counted = Counted {
        operations: &OPERATIONS,
        make: Specs::new,
        times: 20,
        budget: BUDGET,
    };
    counted.main(divan::main);
}

#[divan::bench(args = OPERATIONS.iter().map(|operation| operation.name))]
fn operation(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (specs, operation) = (Specs::new(), counted::named(&OPERATIONS, name));
    bencher.bench_local(|| (operation.run)(&specs));
}

impl Specs {
    fn new() -> Self {
        Self {
            smallest: serde_saphyr::from_str(SMALLEST).unwrap(),
            three_replicas: serde_saphyr::from_str(THREE_REPLICAS).unwrap(),
        }
    }
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
