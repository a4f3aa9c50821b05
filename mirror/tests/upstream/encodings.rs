//! Content codings: labels of bytes that nothing compressed, and documents that a server compressed unasked.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::TryStreamExt;
use http::StatusCode;
use mirror::upstream::{Accept, Error};
use test_case::test_case;

use crate::hub::{Auth, Fault, Hub, Tokens};
use crate::{name, tag, upstream};

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap().into()
}

/// Returns a compressed answer, with the header for it.
fn compressed(status: u16, body: &[u8]) -> Fault {
    let label = vec![("content-encoding", "gzip".to_owned())];
    Fault::Answer(StatusCode::from_u16(status).unwrap(), label, gzip(body))
}

/// Storages keep `Content-Encoding` as a label from the upload, and proxies add it: the bytes decide.
#[test_case("gzip")]
#[test_case("x-gzip")]
#[test_case("br")]
#[test_case("aws-chunked")]
#[test_case("utf-8"; "a charset")]
#[test_case(""; "empty")]
#[test_case("identity, identity"; "twice")]
#[tokio::test]
async fn encoding_label_of_plain_bytes_is_ignored(label: &str) {
    let hub = Hub::start().await;
    let (digest, layers) = hub.push_image("library/app", "v1", &[b"layer"]);
    hub.always("*", Fault::Header("content-encoding", label.to_owned()));
    let (upstream, name) = (upstream(&hub), name("library/app"));
    for reference in [tag("v1"), digest.to_string().parse().unwrap()] {
        let manifest = upstream.manifest(&name, &reference).await.unwrap();
        assert_eq!(*manifest.content.digest(), digest);
        let head = upstream
            .manifest_head(&name, &reference, &Accept::default())
            .await
            .unwrap();
        assert_eq!(
            (head.digest, head.size),
            (Some(digest.clone()), Some(manifest.content.bytes().len() as u64))
        );
    }
    for (from, expected) in [(0, &b"layer"[..]), (2, b"yer")] {
        let blob = upstream.blob(&name, &layers[0], from, None).await.unwrap();
        assert_eq!(blob.total, Some(5));
        let chunks: Vec<Bytes> = blob.body.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), expected);
    }
    assert_eq!(upstream.blob_head(&name, &layers[0]).await, Ok(Some(5)));
    assert!(upstream.tags(&name, "").await.is_ok());
    assert!(upstream.referrers(&name, &digest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_compressed_document_is_decompressed() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("library/app", "v1", &[b"layer"]);
    let (upstream, name) = (upstream(&hub), name("library/app"));
    let plain = upstream.manifest(&name, &tag("v1")).await.unwrap();
    hub.always("GET manifests", compressed(200, plain.content.bytes()));
    for reference in [tag("v1"), digest.to_string().parse().unwrap()] {
        let decompressed = upstream.manifest(&name, &reference).await.unwrap();
        assert_eq!(decompressed.content, plain.content);
    }
    hub.always("GET tags", compressed(200, br#"{"tags":["v1"]}"#));
    let tags = upstream.tags(&name, "").await.unwrap();
    assert_eq!(tags.tags, ["v1"]);
    hub.heal();
    hub.always(
        "GET manifests",
        compressed(404, br#"{"errors":[{"code":"TAG_EXPIRED"}]}"#),
    );
    let gone = upstream.manifest(&name, &tag("v1")).await;
    assert!(matches!(gone, Err(Error::NotFound { code, .. }) if code == "TAG_EXPIRED"));
}

#[tokio::test]
async fn a_compressed_token_answer_is_decompressed() {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let tokens = Tokens::at(&hub);
    *hub.auth() = Auth::Tokens(tokens);
    hub.always("GET /token", compressed(200, br#"{"token":"none"}"#));
    let _ = upstream(&hub).manifest(&name("library/app"), &tag("v1")).await;
    let shown = hub.seen("GET manifests");
    assert_eq!(shown.last().unwrap().header("authorization"), Some("Bearer none"));
}

#[test_case(&gzip(&vec![b' '; 64 << 20]); "larger than a manifest")]
#[test_case(&gzip(b"{}")[..10]; "cut")]
#[test_case(b"\x28\xb5\x2f\xfd\x04\x00"; "another coding")]
#[tokio::test]
async fn a_broken_compressed_document_is_malformed(body: &[u8]) {
    let hub = Hub::start().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let answer = Fault::Answer(StatusCode::OK, Vec::new(), Bytes::copy_from_slice(body));
    hub.always("GET manifests", answer);
    let got = upstream(&hub).manifest(&name("library/app"), &tag("v1")).await;
    assert!(matches!(got, Err(Error::Malformed { .. })), "{got:?}");
}
