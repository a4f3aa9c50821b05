//! "Pulling blobs" with ranges (RFC 9110, section 14), and "Checking if content exists in the registry" for them.

use http::Method;

use crate::client::Place;
use crate::content::{Blob, REPOSITORY, TAGGED};
use crate::{Findings, ensure, requirements};

requirements![
    head_of_a_blob_is_200_with_its_length,
    a_blob_comes_with_200_and_its_bytes,
    its_digest_header_is_a_digest_of_its_bytes,
    a_blob_that_is_not_there_is_404,
    a_blob_of_another_repository_is_404,
    a_part_of_a_blob_comes_as_206_with_its_place,
    two_parts_of_a_blob_come_in_one_answer,
    a_part_beyond_the_end_is_416_with_the_size,
    a_range_in_another_unit_is_ignored,
    a_part_of_another_version_is_not_sent,
];

fn path(blob: &Blob) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)
}

async fn each(
    place: &Place,
    of: impl Fn(&Blob) -> bool,
    holds: impl AsyncFn(&Blob, &str) -> Result<(), String>,
) -> Findings {
    let mut findings = Findings::new();
    for blob in place.content.blobs().filter(|blob| of(blob)) {
        let found = holds(blob, &path(blob)).await;
        findings.push((blob.kind.to_owned(), found));
    }
    findings
}

fn any(_: &Blob) -> bool {
    true
}

fn has_parts(blob: &Blob) -> bool {
    blob.bytes.len() > 4
}

async fn head_of_a_blob_is_200_with_its_length(place: Place) -> Findings {
    each(&place, any, async |blob, path| {
        let answer = place.head(path).await?.is(200)?.holds(b"")?;
        answer
            .has("content-length", &blob.bytes.len().to_string())
            .map(drop)
    })
    .await
}

async fn a_blob_comes_with_200_and_its_bytes(place: Place) -> Findings {
    each(&place, any, async |blob, path| {
        let answer = place.get(path).await?.is(200)?.holds(&blob.bytes)?;
        answer
            .has("content-length", &blob.bytes.len().to_string())
            .map(drop)
    })
    .await
}

/// Of whichever algorithm: it may differ from the one that was asked for.
async fn its_digest_header_is_a_digest_of_its_bytes(place: Place) -> Findings {
    each(&place, any, async |blob, path| {
        for method in [Method::HEAD, Method::GET] {
            let answer = place.ask(method, path, &[]).await?.is(200)?;
            let said: mirror::digest::Digest = answer
                .header("docker-content-digest")
                .parse()
                .map_err(|error| format!("{path}: {error}"))?;
            let computed = mirror::digest::Digest::compute(said.algorithm(), &blob.bytes);
            ensure!(said == computed, "{path}: {said} instead of {computed}");
        }
        Ok(())
    })
    .await
}

async fn not_there(place: &Place, path: String) -> Findings {
    let mut findings = Findings::new();
    for (method, headers) in [
        (Method::HEAD, &[][..]),
        (Method::GET, &[]),
        (Method::GET, &[("range", "bytes=0-1")]),
    ] {
        let name = format!("{method} {headers:?}");
        let asked = async { place.ask(method, &path, headers).await?.is(404).map(drop) };
        let found = asked.await;
        findings.push((name, found));
    }
    findings
}

async fn a_blob_that_is_not_there_is_404(place: Place) -> Findings {
    not_there(
        &place,
        format!("/v2/{REPOSITORY}/blobs/sha256:{}", "0".repeat(64)),
    )
    .await
}

async fn a_blob_of_another_repository_is_404(place: Place) -> Findings {
    let blob = place.content.blobs().find(|blob| blob.kind == "a layer").cloned();
    let digest = blob.map(|blob| blob.digest).unwrap_or_default();
    // Known to the mirror where it is, so that it could be given away where it is not.
    let _ = place.get(&format!("/v2/{REPOSITORY}/blobs/{digest}")).await;
    not_there(&place, format!("/v2/{TAGGED}/blobs/{digest}")).await
}

async fn a_part_of_a_blob_comes_as_206_with_its_place(place: Place) -> Findings {
    each(&place, has_parts, async |blob, path| {
        let size = blob.bytes.len();
        for (range, first, last) in [
            ("bytes=0-0".to_owned(), 0, 0),
            ("bytes=1-3".to_owned(), 1, 3),
            ("bytes=2-".to_owned(), 2, size - 1),
            ("bytes=-3".to_owned(), size - 3, size - 1),
            (format!("bytes=1-{}", size + 100), 1, size - 1),
            (format!("bytes=-{}", size + 100), 0, size - 1),
        ] {
            let answer = place.ask(Method::GET, path, &[("range", &range)]).await?;
            let answer = answer.is(206)?.holds(&blob.bytes[first..=last])?;
            let answer = answer.has("content-range", &format!("bytes {first}-{last}/{size}"))?;
            answer.has("content-length", &(last - first + 1).to_string())?;
        }
        Ok(())
    })
    .await
}

async fn two_parts_of_a_blob_come_in_one_answer(place: Place) -> Findings {
    each(&place, has_parts, async |blob, path| {
        let answer = place
            .ask(Method::GET, path, &[("range", "bytes=0-0,2-3")])
            .await?
            .is(206)?;
        let kind = answer.header("content-type").to_owned();
        ensure!(
            kind.starts_with("multipart/byteranges; boundary="),
            "{path}: {kind}"
        );
        for part in [&blob.bytes[0..=0], &blob.bytes[2..=3]] {
            let body = [b"\r\n\r\n", part, b"\r\n--"].concat();
            let found = answer.bytes.windows(body.len()).any(|window| window == body);
            ensure!(found, "{path}: a part is missing");
        }
        Ok(())
    })
    .await
}

async fn a_part_beyond_the_end_is_416_with_the_size(place: Place) -> Findings {
    each(&place, has_parts, async |blob, path| {
        let size = blob.bytes.len();
        let range = format!("bytes={}-", size + 1);
        let answer = place.ask(Method::GET, path, &[("range", &range)]).await?;
        answer
            .is(416)?
            .has("content-range", &format!("bytes */{size}"))
            .map(drop)
    })
    .await
}

async fn a_range_in_another_unit_is_ignored(place: Place) -> Findings {
    each(&place, any, async |blob, path| {
        let answer = place.ask(Method::GET, path, &[("range", "lines=1-2")]).await?;
        answer.is(200)?.holds(&blob.bytes).map(drop)
    })
    .await
}

async fn a_part_of_another_version_is_not_sent(place: Place) -> Findings {
    each(&place, has_parts, async |blob, path| {
        let other = [("range", "bytes=0-0"), ("if-range", "\"another\"")];
        let answer = place.ask(Method::GET, path, &other).await?;
        answer.is(200)?.holds(&blob.bytes).map(drop)
    })
    .await
}
