//! The allocations of a hit: a bound for each kind, so that more is a decision.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../benches/operations/place.rs"]
#[allow(dead_code, reason = "the benches use more of it")]
mod place;

use http::Request;
use place::Place;
use test_case::test_case;

/// Enough for what happens now and then (a cache puts itself in order) not to count.
const TIMES: u64 = 200;

/// A hit allocates memory at most as often as its bound.
#[test_case(|place| &place.blob => matches 0..=14; "of a blob")]
#[test_case(|place| &place.part => matches 0..=20; "of a part of a blob")]
#[test_case(|place| &place.head => matches 0..=12; "of a HEAD")]
#[test_case(|place| &place.manifest => matches 0..=16; "of a manifest by digest")]
#[test_case(|place| &place.tag => matches 0..=16; "of a manifest by tag")]
fn hit_allocates_within_bound(asked: fn(&Place) -> &Request<()>) -> u64 {
    // Spans without a subscriber: else what other crates ask of `tracing` turns them into records of the `log` crate. It
    // fails where a test beside this one was first.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
    let place = Place::new();
    let requests = |times| {
        (0..times)
            .map(|_| asked(&place).clone().into_parts().0)
            .collect::<Vec<_>>()
    };
    let ask = |requests: Vec<_>| requests.into_iter().for_each(|request| place.answer(request));
    ask(requests(TIMES));
    let requests = requests(TIMES);
    let counted = allocation_counter::measure(|| ask(requests));
    eprintln!(
        "{} allocations of {} bytes",
        counted.count_total / TIMES,
        counted.bytes_total / TIMES
    );
    counted.count_total / TIMES
}
