//! The isolation of upstreams from each other: what one sends, or does not send, changes nothing for another's clients.

mod matrix;

use std::time::{Duration, Instant};

use http::StatusCode;
use mirror::digest::Digest;
use test_case::test_case;

use crate::LIMIT;
use crate::hub::{Fault, Gate, Hub};
use crate::pattern;
use crate::served::{Mirror, cache, header};

const MIB: usize = 1024 * 1024;
/// Less than any time-out of an upstream: an innocent request that takes longer waited for the neighbour.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Two upstreams that both have a blob, and a mirror of both.
struct Neighbours {
    bad: Hub,
    good: Hub,
    mirror: Mirror,
    data: Vec<u8>,
    digest: Digest,
}

impl Neighbours {
    async fn new() -> Self {
        let (bad, good) = (Hub::start().await, Hub::start().await);
        let data = pattern(MIB);
        let digest = bad.push_blob("org/app", &data);
        good.push_blob("org/app", &data);
        let mirror = Mirror::with(&[(&bad, "bad.test"), (&good, "good.test")], cache(), None).await;
        Self {
            bad,
            good,
            mirror,
            data,
            digest,
        }
    }

    fn path(&self, host: &str) -> String {
        format!("/v2/{host}/org/app/blobs/{}", self.digest)
    }

    /// Pulls the blob from the good upstream, which has to take no longer than without the bad one.
    async fn pull_from_good(&self) {
        let began = Instant::now();
        let path = self.path("good.test");
        assert_eq!(
            self.mirror.fetch(&path).await,
            (200, Some(self.data.clone().into()))
        );
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
}

/// A digest that one upstream has wrong bytes for is not refused at another.
#[tokio::test]
async fn wrong_bytes_of_one_upstream_refuse_no_other() {
    let hubs = Neighbours::new().await;
    hubs.bad.always("GET blobs", Fault::Corrupt);
    assert_eq!(hubs.mirror.fetch(&hubs.path("bad.test")).await.1, None);
    hubs.mirror.settled().await;
    hubs.pull_from_good().await;
    let refused = hubs.mirror.get(&hubs.path("bad.test")).await;
    assert_eq!(refused.status(), 503, "the bad one is refused as before");
}

/// The fill of an upstream that drips, hangs, stalls or refuses is not joined by the clients of another.
#[test_case(&Fault::Drops(Duration::from_millis(200)); "drips")]
#[test_case(&Fault::Hang; "hangs")]
#[test_case(&Fault::Stall(1000); "stalls")]
#[test_case(&Fault::status(403); "refuses")]
#[test_case(&Fault::Length(99 << 30); "lies about the length")]
#[tokio::test]
async fn fill_of_a_bad_upstream_is_not_joined(fault: &Fault) {
    let hubs = Neighbours::new().await;
    hubs.bad.always("GET blobs", fault.clone());
    let path = hubs.path("bad.test");
    let neighbour = hubs.mirror.request("GET", &path).send();
    let neighbour = tokio::spawn(neighbour);
    until(|| hubs.bad.count("GET blobs") > 0).await;
    hubs.pull_from_good().await;
    neighbour.abort();
}

/// A blob without an end stops at the size that a manifest names, and evicts a share of the cache if none does.
#[test_case(true; "of named size")]
#[test_case(false; "of unknown size")]
#[tokio::test]
async fn endless_blob_leaves_content_of_others(named: bool) {
    let (bad, good) = (Hub::start().await, Hub::start().await);
    let (_, layers) = bad.push_image("org/app", "1", &[&pattern(MIB / 2)]);
    let theirs: Vec<_> = (0..14)
        .map(|size| good.push_blob("org/app", pattern(MIB - size)))
        .collect();
    let hubs = [(&bad, "bad.test"), (&good, "good.test")];
    let mirror = Mirror::with(&hubs, cache(), Some(16 << 20)).await;
    let innocent = |digest: &Digest| format!("/v2/good.test/org/app/blobs/{digest}");
    for digest in &theirs {
        assert_eq!(mirror.fetch(&innocent(digest)).await.0, 200);
        mirror.settled().await;
    }
    if named {
        mirror.get("/v2/bad.test/org/app/manifests/1").await;
    }
    bad.always("GET blobs", Fault::Endless);
    let mut endless = mirror
        .get(&format!("/v2/bad.test/org/app/blobs/{}", layers[0]))
        .await;
    let mut got = 0;
    while got < 24 * MIB
        && let Ok(Some(chunk)) = endless.chunk().await
    {
        got += chunk.len();
    }
    drop(endless);
    mirror.settled().await;
    assert!(if named { got < MIB / 2 } else { got >= 24 * MIB }, "{got} bytes");
    good.forget();
    for digest in &theirs {
        assert_eq!(mirror.fetch(&innocent(digest)).await.0, 200);
    }
    let evicted = good.count("GET blobs");
    assert!(
        evicted <= if named { 0 } else { 2 },
        "{evicted} blobs were evicted"
    );
}

/// Of two fills of one digest, one ends first; the other one ends as well, and the content is stored once.
#[tokio::test]
async fn two_fills_of_one_digest_both_end_well() {
    let hubs = Neighbours::new().await;
    let gate = Gate::shut();
    hubs.bad.once("GET blobs", Fault::Wait(MIB / 2, gate.clone()));
    let (slow, fast) = (hubs.path("bad.test"), hubs.path("good.test"));
    let first = async {
        until(|| hubs.bad.count("GET blobs") > 0).await;
        hubs.pull_from_good().await;
        until(|| hubs.mirror.store.usage().blobs == 1).await;
        gate.open();
    };
    let (answer, ()) = tokio::join!(hubs.mirror.fetch(&slow), first);
    assert_eq!(answer, (200, Some(hubs.data.clone().into())));
    hubs.mirror.settled().await;
    for path in [slow, fast] {
        let hit = hubs.mirror.get(&path).await;
        assert_eq!(header(&hit, "x-cache"), "HIT", "{path}");
        assert!(hit.bytes().await.unwrap() == hubs.data, "other bytes");
    }
    let usage = hubs.mirror.store.usage();
    assert_eq!((usage.blobs, usage.bytes), (1, MIB as u64));
}

/// An upstream that answers 200 to any HEAD opens nothing that another one sent, and learns no size.
#[test_case(false; "while the owner is configured")]
#[test_case(true; "after the owner is excluded")]
#[tokio::test]
async fn head_of_one_upstream_opens_no_content_of_another(excluded: bool) {
    let (liar, owner) = (Hub::start().await, Hub::start().await);
    let digest = owner.push_blob("team/secret", pattern(1000));
    let hubs = [(&liar, "liar.test"), (&owner, "owner.test")];
    let mirror = Mirror::with(&hubs, cache(), None).await;
    let private = format!("/v2/owner.test/team/secret/blobs/{digest}");
    assert_eq!(mirror.fetch(&private).await.0, 200);
    mirror.settled().await;
    if excluded {
        let mut live = crate::served::live(&hubs, cache(), &mirror.clock);
        live.upstreams[1].settings.exclude = mirror::config::Globs::new(&["team/**".into()]).unwrap();
        mirror.pull.reload(live);
        assert_eq!(mirror.fetch(&private).await.0, 404);
    }
    liar.always("HEAD blobs", Fault::status(200));
    let stolen = format!("/v2/liar.test/any/thing/blobs/{digest}");
    for range in ["", "bytes=0-9"] {
        let request = mirror.request("GET", &stolen).header("range", range);
        assert_eq!(request.send().await.unwrap().status(), 404);
    }
    let head = mirror.request("HEAD", &stolen).send().await.unwrap();
    assert_ne!(header(&head, "content-length"), "1000");
}

/// An upstream proves that it has content by sending it; the store keeps one copy.
#[tokio::test]
async fn second_upstream_sends_content_before_it_is_shared() {
    let hubs = Neighbours::new().await;
    assert_eq!(hubs.mirror.fetch(&hubs.path("bad.test")).await.0, 200);
    hubs.mirror.settled().await;
    hubs.pull_from_good().await;
    hubs.mirror.settled().await;
    assert_eq!(hubs.good.count("GET blobs"), 1);
    assert_eq!(hubs.mirror.store.usage().blobs, 1);
    let hit = hubs.mirror.get(&hubs.path("good.test")).await;
    assert_eq!((hit.status(), header(&hit, "x-cache")), (StatusCode::OK, "HIT"));
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .expect("it happens in time");
}

/// A length that an upstream announces and does not send evicts nothing that another one sent.
#[test_case(&Fault::Length(7 << 19); "cut after a few bytes")]
#[test_case(&Fault::Header("content-length", (7 << 19).to_string()); "never sent")]
#[tokio::test]
async fn lying_length_evicts_nothing(fault: &Fault) {
    let (liar, good) = (Hub::start().await, Hub::start().await);
    let hubs = [(&liar, "liar.test"), (&good, "good.test")];
    let mirror = Mirror::with(&hubs, cache(), Some(4 << 20)).await;
    let mut paths = Vec::new();
    for seed in 0..3 {
        let mut data = pattern(MIB);
        data[0] = seed;
        let digest = good.push_blob("org/app", &data);
        paths.push(format!("/v2/good.test/org/app/blobs/{digest}"));
        assert_eq!(mirror.fetch(&paths[usize::from(seed)]).await.0, 200);
    }
    mirror.settled().await;
    let lie = liar.push_blob("org/app", b"a few bytes");
    liar.always("GET blobs", fault.clone());
    let path = format!("/v2/liar.test/org/app/blobs/{lie}");
    let neighbour = tokio::spawn(mirror.request("GET", &path).send());
    until(|| liar.count("GET blobs") > 1).await;
    neighbour.abort();
    for path in &paths {
        let hit = mirror.get(path).await;
        assert_eq!(header(&hit, "x-cache"), "HIT");
    }
}

/// Asks as one client for more blobs than it has places for, at an upstream that drips.
async fn flood(hub: &Hub, mirror: &Mirror, host: &str) {
    const BLOBS: usize = 1_100;
    hub.always("GET flood/app/blobs", Fault::Drops(Duration::from_secs(1)));
    let digests: Vec<_> = (0..BLOBS)
        .map(|number| hub.push_blob("flood/app", number.to_string().repeat(500)))
        .collect();
    for batch in digests.chunks(100) {
        let requests = batch.iter().map(|digest| {
            let path = format!("/v2/{host}/flood/app/blobs/{digest}");
            // Its fill continues without the client.
            tokio::time::timeout(Duration::from_millis(100), mirror.request("GET", &path).send())
        });
        futures::future::join_all(requests).await;
    }
}

fn client_at(address: [u8; 4]) -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().timeout(AT_ONCE);
    client
        .local_address(std::net::IpAddr::from(address))
        .build()
        .unwrap()
}

/// 1,100 blobs at an upstream that drips take some of its places and turns, and none of another upstream's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_at_one_upstream_leaves_others_unharmed() {
    let hubs = Neighbours::new().await;
    flood(&hubs.bad, &hubs.mirror, "bad.test").await;
    assert!(hubs.bad.count("GET flood/app/blobs") > 0);
    hubs.pull_from_good().await;
    let more = hubs.bad.push_blob("flood/app", b"one more");
    let refused = hubs
        .mirror
        .get(&format!("/v2/bad.test/flood/app/blobs/{more}"))
        .await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
}

/// Clients at other addresses have places and turns at the upstream that one floods.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_one_client_leaves_turns_to_others() {
    let hubs = Neighbours::new().await;
    flood(&hubs.bad, &hubs.mirror, "bad.test").await;
    // The flooding client waits for its turn to get what the other one asks for.
    let mut waiting = tokio::spawn(hubs.mirror.request("GET", &hubs.path("bad.test")).send());
    let _ = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    let other = client_at([127, 0, 0, 2]);
    for host in ["bad.test", "good.test"] {
        let url = format!("{}{}", hubs.mirror.url, hubs.path(host));
        let answer = other.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{host}");
        assert!(answer.bytes().await.unwrap() == hubs.data, "other bytes");
    }
    waiting.abort();
}

/// Two downloads that are admitted fit into the cache alone, not both. The client of the one that runs out of room gets
/// the whole blob all the same: its remainder passes by the cache.
#[tokio::test]
async fn download_out_of_room_passes_by_the_cache() {
    let (one, two) = (Hub::start().await, Hub::start().await);
    let (first, second) = (pattern(3 * MIB), vec![7; 3 * MIB]);
    let held = one.push_blob("org/app", &first);
    let late = two.push_blob("org/app", &second);
    let hubs = [(&one, "one.test"), (&two, "two.test")];
    let mirror = Mirror::with(&hubs, cache(), Some(4 << 20)).await;
    let gates = [Gate::shut(), Gate::shut()];
    one.once("GET blobs", Fault::Wait(5 * MIB / 2, gates[0].clone()));
    two.once("GET blobs", Fault::Wait(MIB / 2, gates[1].clone()));
    let get =
        async |host: &str, digest: &Digest| mirror.get(&format!("/v2/{host}/org/app/blobs/{digest}")).await;
    // Admitted first: what the other one has then takes its room.
    let (mut of_two, mut of_one) = (Download::default(), Download::default());
    let mut late_response = get("two.test", &late).await;
    of_two.read(&mut late_response, 1).await;
    let mut held_response = get("one.test", &held).await;
    of_one.read(&mut held_response, 2 * MIB).await;
    gates[1].open();
    of_two.read(&mut late_response, usize::MAX).await;
    assert!(of_two.0 == second, "other bytes");
    assert_eq!(two.count("GET blobs"), 2, "the remainder passed by the cache");
    gates[0].open();
    of_one.read(&mut held_response, usize::MAX).await;
    assert!(of_one.0 == first, "other bytes");
}

/// The bytes of a response so far.
#[derive(Default)]
struct Download(Vec<u8>);

impl Download {
    /// Reads until there are so many bytes, or to the end.
    async fn read(&mut self, response: &mut reqwest::Response, least: usize) {
        while self.0.len() < least
            && let Some(chunk) = response.chunk().await.unwrap()
        {
            self.0.extend_from_slice(&chunk);
        }
    }
}

/// Downloads past the cache that wait for their turn hold no place among the downloads into the cache: a small blob of
/// the same upstream is cached at once, while clients at two addresses take nothing of more large ones than may run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_past_the_cache_delays_no_fill() {
    let hub = Hub::start().await;
    let mirror = Mirror::with(&[(&hub, "good.test")], cache(), Some(1000)).await;
    let small = hub.push_blob("org/app", b"small");
    hub.always("GET org/large/blobs", Fault::Stall(600));
    let mut waiting = tokio::task::JoinSet::new();
    for address in [2, 3] {
        let client = reqwest::Client::builder().no_proxy();
        let client = client.local_address(std::net::IpAddr::from([127, 0, 0, address]));
        let client = client.build().unwrap();
        for number in 0..290_usize {
            let content = format!("{address} {number} ").repeat(500);
            let digest = hub.push_blob("org/large", content.as_bytes());
            let url = format!("{}/v2/good.test/org/large/blobs/{digest}", mirror.url);
            let request = client.get(url).send();
            waiting.spawn(async move {
                let _unread = request.await;
                std::future::pending::<()>().await;
            });
        }
    }
    until(|| hub.count("GET org/large/blobs") >= 400).await;
    let began = Instant::now();
    let path = format!("/v2/good.test/org/app/blobs/{small}");
    assert_eq!(mirror.fetch(&path).await, (200, Some(b"small".to_vec().into())));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}
