//! An upstream connection that breaks at any byte: no client sees a repeated, a missing or a wrong one.

use futures::future::join_all;
use http::StatusCode;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use test_case::test_case;

use crate::hub::{Fault, Hub};
use crate::pattern;
use crate::served::Mirror;

const SIZE: usize = 600_000;
const HELD_BACK: usize = 256 * 1024;

/// Returns the edges of buffers, and random positions.
fn positions() -> Vec<usize> {
    let mut random = StdRng::seed_from_u64(7);
    let edges = [
        0,
        1,
        65_535,
        65_536,
        SIZE - HELD_BACK - 1,
        SIZE - HELD_BACK,
        SIZE - 1,
    ];
    edges
        .into_iter()
        .chain((0..17).map(|_| random.random_range(0..SIZE)))
        .collect()
}

/// Returns a blob that differs from the others in its first bytes.
fn blob(number: usize) -> Vec<u8> {
    let mut bytes = pattern(SIZE);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// At any point where the upstream closes early, the client receives each byte once.
#[test_case(&[]; "then it is resumed")]
#[test_case(&[Fault::IgnoreRange]; "then the whole comes again")]
#[test_case(&[Fault::refuse_range()]; "then no range is served")]
#[test_case(&[Fault::Cut(1000), Fault::status(500), Fault::Reset]; "then it keeps breaking")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_fill_delivers_each_byte_once(then: &[Fault]) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    join_all(positions().into_iter().enumerate().map(|(number, at)| {
        let (hub, mirror) = (&hub, &mirror);
        async move {
            let data = blob(number);
            let digest = hub.push_blob("library/app", &data);
            let path = format!("/v2/app/blobs/{digest}");
            hub.once(&format!("GET {digest}"), Fault::Cut(at));
            for fault in then {
                hub.once(&format!("GET {digest}"), fault.clone());
            }
            let found = mirror.fetch(&path).await;
            assert!(
                found == (200, Some(data.clone().into())),
                "cut at {at}: {found:?}"
            );
            // A client whose download was cut asks for the remainder.
            let rest = mirror
                .request("GET", &path)
                .header("range", format!("bytes={at}-"));
            let rest = rest.send().await.unwrap();
            assert_eq!(rest.status(), 206);
            assert!(
                rest.bytes().await.unwrap() == data[at..],
                "other bytes from {at} on"
            );
        }
    }))
    .await;
}

/// Returns the answer to a resumption that fits none: all headers as given, and a body of that many bytes.
fn part(content_range: &str, length: usize) -> Fault {
    let headers = vec![("content-range", content_range.to_owned())];
    Fault::Answer(StatusCode::PARTIAL_CONTENT, headers, vec![0; length].into())
}

/// A resumed response that does not fit is never appended.
#[test_case(&part("bytes 300000-600000/600001", 300_001); "another total")]
#[test_case(&part("bytes 299999-599999/600000", 300_001); "a start before the one asked for")]
#[test_case(&part("bytes 300001-599999/600000", 299_999); "a start after the one asked for")]
#[test_case(&part("bytes 0-599999/600000", SIZE); "from the start, as a part")]
#[test_case(&part("bytes 300000-599999/600000", 299_000); "fewer bytes than it says")]
#[test_case(&part("bytes 300000-599999/600000", 300_000); "other bytes")]
#[test_case(&part("bytes 599999-300000/600000", 300_000); "backwards")]
#[test_case(&part("", 300_000); "no range at all")]
#[test_case(&Fault::status(200); "an empty 200")]
#[test_case(&Fault::html(200); "a page")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mismatched_resumption_is_not_appended(answer: &Fault) {
    let data = pattern(SIZE);
    let (hub, digest) = Hub::with_blob(&data).await;
    hub.once("GET blobs", Fault::Cut(300_000));
    for _ in 0..8 {
        hub.once("GET blobs", answer.clone());
    }
    let mirror = Mirror::of(&hub).await;
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(mirror.fetch(&path).await, (200, None), "cut short");
    mirror.settled().await;
    assert_eq!(mirror.store.usage().blobs, 0);
    hub.heal();
    mirror.clock.advance(std::time::Duration::from_secs(10));
    assert_eq!(mirror.fetch(&path).await, (200, Some(data.into())));
}
