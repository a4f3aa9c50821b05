//! The operations of each hit, one at a time: `cargo bench -p mirror --bench operations` times them, `make count`
//! counts their instructions and compares them with `budget.txt`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for developers: what fails ends it with a message"
)]

mod counted;
mod place;

use std::hint::black_box;

use counted::{Counted, Operation};
use mirror::digest::{Algorithm, Digest};
use mirror::http::route::Route;
use mirror::range::Wanted;
use place::Place;

const OPERATIONS: [Operation<Place>; 9] = [
    Operation {
        name: "hit, blob of 4 KiB",
        run: |place| place.ask(&place.blob),
    },
    Operation {
        name: "hit, part of a blob",
        run: |place| place.ask(&place.part),
    },
    Operation {
        name: "hit, HEAD of a blob",
        run: |place| place.ask(&place.head),
    },
    Operation {
        name: "hit, manifest by digest",
        run: |place| place.ask(&place.manifest),
    },
    Operation {
        name: "hit, manifest by tag",
        run: |place| place.ask(&place.tag),
    },
    Operation {
        name: "look up a manifest",
        run: Place::look_up,
    },
    Operation {
        name: "parse a path",
        run: |place| {
            black_box(Route::parse(black_box(place.blob.uri().path()), ""));
        },
    },
    Operation {
        name: "parse and resolve a range",
        run: |place| {
            black_box(Wanted::parse(black_box(place.part.headers()), "\"e\"").resolve(4096));
        },
    },
    Operation {
        name: "parse a digest",
        run: |place| {
            black_box(black_box(place.digest.as_str()).parse::<Digest>()).unwrap();
        },
    },
];

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/operations/budget.txt");

fn main() {
    let counted = Counted {
        operations: &OPERATIONS,
        make: Place::new,
        times: 500,
        budget: BUDGET,
    };
    counted.main(divan::main);
}

#[divan::bench(args = OPERATIONS.iter().map(|operation| operation.name))]
fn operation(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (place, operation) = (Place::new(), counted::named(&OPERATIONS, name));
    bencher.bench_local(|| (operation.run)(&place));
}

/// Lists the first images of 10,000, in the order of pulls: the work behind the page. It has 200 ms.
#[divan::bench(max_time = 5)]
fn list_ten_thousand_images(bencher: divan::Bencher<'_, '_>) {
    let place = Place::with_images(10_000);
    bencher.bench_local(|| place.list_images());
}

/// Content is hashed as it comes: this bounds what one core can take in.
#[divan::bench(args = [Algorithm::Sha256, Algorithm::Sha512])]
fn hash_a_mebibyte(bencher: divan::Bencher<'_, '_>, algorithm: Algorithm) {
    let bytes = vec![7; 1 << 20];
    bencher
        .counter(divan::counter::BytesCount::of_slice(&bytes))
        .bench_local(|| Digest::compute(algorithm, black_box(&bytes)));
}
