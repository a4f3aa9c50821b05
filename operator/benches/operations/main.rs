//! The pure part of a reconcile, from a spec to all objects: `cargo bench -p registry-mirror --bench operations` times
//! it, `make count` counts its instructions and holds them against `budget.txt`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message"
)]

#[path = "../../../mirror/benches/operations/counted.rs"]
mod counted;

use std::convert::Infallible;
use std::hint::black_box;

use counted::Operation;
use crds::RegistryMirror;
use futures::executor::block_on;
use operator::dereference::{self, Contents, Reader, Reference};
use operator::desired::{self, Release};
use operator::observed::Observed;
use operator::validate;

const OPERATIONS: [Operation<Place>; 2] = [
    Operation {
        name: "reconcile the smallest mirror",
        run: |place| reconcile(&place.smallest),
    },
    Operation {
        name: "reconcile a mirror of three replicas",
        run: |place| reconcile(&place.replicas),
    },
];

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/operations/budget.txt");

fn main() {
    counted::main(&OPERATIONS, Place::new, BUDGET, divan::main);
}

#[divan::bench(args = OPERATIONS.iter().map(|operation| operation.name))]
fn operation(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (place, operation) = (Place::new(), counted::named(&OPERATIONS, name));
    bencher.bench_local(|| (operation.run)(&place));
}

struct Place {
    smallest: RegistryMirror,
    replicas: RegistryMirror,
}

impl Place {
    fn new() -> Self {
        let spec = |text| serde_saphyr::from_str(text).unwrap();
        Self {
            smallest: spec(include_str!("../../tests/specs/minimal.yaml")),
            replicas: spec(include_str!("../../tests/specs/three-replicas-retained.yaml")),
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
