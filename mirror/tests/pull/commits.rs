//! Between a blob's last byte and its link in the cache: the repository that got it gets it again, whatever upstream
//! does by then.

use mirror::digest::Digest;
use test_case::test_case;

use crate::hub::{Fault, Gate, Hub};
use crate::pattern;
use crate::served::{Mirror, cache, header};

const MIB: usize = 1024 * 1024;

/// Asks for all of a blob, for its size and for a part of it.
async fn has(mirror: &Mirror, path: &str, data: &[u8]) {
    assert_eq!(mirror.fetch(path).await, (200, Some(data.to_vec().into())));
    let head = mirror.request("HEAD", path).send().await.unwrap();
    let length = data.len().to_string();
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length")),
        (200, length.as_str())
    );
    let part = mirror
        .request("GET", path)
        .header("range", "bytes=10-19")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), 206);
    assert!(part.bytes().await.unwrap() == data[10..20], "other bytes");
}

/// While the blob is committed, and once it is, clients of its repository get it without a question to upstream.
#[test_case(1000, "app"; "small")]
#[test_case(2 * MIB, "app"; "large")]
#[test_case(2 * MIB, "docker.io/app"; "by path")]
#[tokio::test]
async fn blob_during_commit_costs_no_request(size: usize, name: &str) {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    for number in 0..20 {
        let mut data = pattern(size);
        data[0] = number;
        let digest = hub.push_blob("library/app", &data);
        let path = format!("/v2/{name}/blobs/{digest}");
        assert_eq!(mirror.fetch(&path).await, (200, Some(data.clone().into())));
        hub.always("* ", Fault::Reset);
        hub.forget();
        loop {
            let committed = mirror.metrics.fills_active.get() == 0;
            has(&mirror, &path, &data).await;
            if committed {
                break;
            }
        }
        assert_eq!(hub.count("* "), 0, "blob {number}");
        hub.heal();
    }
}

/// Each of the repositories that shared a fill has its own link in the end.
#[tokio::test]
async fn repositories_sharing_a_fill_each_get_a_link() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    for number in 0..20 {
        let mut data = pattern(MIB);
        data[0] = number;
        let names: Vec<_> = (0..4).map(|repository| format!("org/app{repository}")).collect();
        let digests: Vec<Digest> = names.iter().map(|name| hub.push_blob(name, &data)).collect();
        let path = |name: &str| format!("/v2/{name}/blobs/{}", digests[0]);
        let gate = Gate::shut();
        hub.once("GET blobs", Fault::Wait(MIB / 2, gate.clone()));
        let client = async |path: String| {
            assert_eq!(mirror.fetch(&path).await, (200, Some(data.clone().into())));
            has(&mirror, &path, &data).await;
        };
        let clients = names.iter().map(|name| client(path(name)));
        let all = futures::future::join_all(clients);
        let opened = async {
            while hub.count("GET blobs") == 0 {
                tokio::task::yield_now().await;
            }
            gate.open();
        };
        tokio::join!(all, opened);
        mirror.settled().await;
        hub.always("* ", Fault::Reset);
        for name in &names {
            has(&mirror, &path(name), &data).await;
        }
        hub.heal();
        hub.forget();
    }
}

/// A manifest that was just answered by its tag is there by its digest.
#[tokio::test]
async fn manifest_by_digest_after_tag_costs_no_request() {
    let hub = Hub::start().await;
    let mirror = Mirror::of(&hub).await;
    for number in 0..20_u8 {
        let (digest, _) = hub.push_image("library/app", &number.to_string(), &[&[number]]);
        let tag = format!("/v2/app/manifests/{number}");
        assert_eq!(mirror.get(&tag).await.status(), 200);
        hub.always("* ", Fault::Reset);
        for method in ["GET", "HEAD"] {
            let path = format!("/v2/app/manifests/{digest}");
            let again = mirror.request(method, &path).send().await.unwrap();
            assert_eq!(again.status(), 200);
        }
        hub.heal();
    }
}

/// A server that can't store fetches a blob for each request, and no request fails.
#[tokio::test]
async fn uncached_blob_is_fetched_for_each_request() {
    let data = pattern(100_000);
    let (hub, digest) = Hub::with_blob(&data).await;
    let mirror = Mirror::with(&[(&hub, "docker.io")], cache(), Some(50_000)).await;
    for _ in 0..5 {
        has(&mirror, &format!("/v2/app/blobs/{digest}"), &data).await;
    }
    assert_eq!(mirror.store.usage().blobs, 0);
}
