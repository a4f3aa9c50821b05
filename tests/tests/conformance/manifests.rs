//! "Pulling manifests", and "Checking if content exists in the registry" for them.

use http::Method;

use crate::client::{Answer, Place};
use crate::content::{Manifest, OCI_INDEX, OCI_MANIFEST, REPOSITORY};
use crate::{Findings, ensure, requirements};

requirements![
    head_of_a_manifest_is_200_with_its_length_type_and_digest,
    a_manifest_comes_with_200_and_its_bytes_by_tag_and_by_digest,
    its_type_is_what_it_was_pushed_with_and_has_no_parameters,
    its_digest_header_is_of_its_bytes,
    a_client_that_accepts_only_this_type_gets_it,
    a_client_that_accepts_anything_gets_it,
    every_valid_name_and_tag_can_be_pulled,
    a_manifest_that_is_not_there_is_404,
    what_is_neither_a_tag_nor_a_digest_is_not_found,
    a_manifest_that_the_client_has_is_304,
];

/// The media types that clients usually accept.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Its paths: by tag and by digest.
fn paths(manifest: &Manifest) -> [String; 2] {
    let path = |reference: &str| format!("/v2/{}/manifests/{reference}", manifest.repository);
    [path(&manifest.tag), path(&manifest.digest)]
}

async fn ask(place: &Place, method: Method, path: &str) -> Result<Answer, String> {
    place.ask(method, path, &[("accept", ACCEPT)]).await
}

/// Tries it on each manifest by tag and by digest.
async fn each(
    place: &Place,
    of: impl Fn(&Manifest) -> bool,
    holds: impl AsyncFn(&Manifest, &str) -> Result<(), String>,
) -> Findings {
    let mut findings = Findings::new();
    for manifest in place.content.manifests().filter(|manifest| of(manifest)) {
        for path in paths(manifest) {
            let found = holds(manifest, &path).await;
            findings.push((format!("{} at {path}", manifest.kind), found));
        }
    }
    findings
}

fn is_content(manifest: &Manifest) -> bool {
    manifest.repository == REPOSITORY
}

async fn head_of_a_manifest_is_200_with_its_length_type_and_digest(place: Place) -> Findings {
    each(&place, is_content, async |manifest, path| {
        let answer = ask(&place, Method::HEAD, path).await?.is(200)?.holds(b"")?;
        let length = manifest.bytes.len().to_string();
        let answer = answer.has("content-length", &length)?;
        let answer = answer.has("content-type", manifest.media_type)?;
        answer.has("docker-content-digest", &manifest.digest).map(drop)
    })
    .await
}

async fn a_manifest_comes_with_200_and_its_bytes_by_tag_and_by_digest(place: Place) -> Findings {
    each(&place, is_content, async |manifest, path| {
        let answer = ask(&place, Method::GET, path).await?.is(200)?;
        let answer = answer.holds(&manifest.bytes)?;
        answer
            .has("content-length", &manifest.bytes.len().to_string())
            .map(drop)
    })
    .await
}

async fn its_type_is_what_it_was_pushed_with_and_has_no_parameters(place: Place) -> Findings {
    each(&place, is_content, async |manifest, path| {
        let answer = ask(&place, Method::GET, path).await?.is(200)?;
        answer.has("content-type", manifest.media_type).map(drop)
    })
    .await
}

async fn its_digest_header_is_of_its_bytes(place: Place) -> Findings {
    each(&place, is_content, async |manifest, path| {
        let answer = ask(&place, Method::GET, path).await?.is(200)?;
        answer.has("docker-content-digest", &manifest.digest).map(drop)
    })
    .await
}

fn is_oci(manifest: &Manifest) -> bool {
    is_content(manifest) && [OCI_MANIFEST, OCI_INDEX].contains(&manifest.media_type)
}

async fn a_client_that_accepts_only_this_type_gets_it(place: Place) -> Findings {
    each(&place, is_oci, async |manifest, path| {
        let accepted = [("accept", manifest.media_type)];
        let answer = place.ask(Method::GET, path, &accepted).await?;
        answer.is(200)?.holds(&manifest.bytes).map(drop)
    })
    .await
}

async fn a_client_that_accepts_anything_gets_it(place: Place) -> Findings {
    each(&place, is_oci, async |manifest, path| {
        let answer = place.ask(Method::GET, path, &[("accept", "*/*")]).await?;
        answer.is(200)?.holds(&manifest.bytes).map(drop)
    })
    .await
}

async fn every_valid_name_and_tag_can_be_pulled(place: Place) -> Findings {
    let elsewhere = |manifest: &Manifest| !is_content(manifest);
    each(&place, elsewhere, async |manifest, path| {
        ask(&place, Method::HEAD, path).await?.is(200)?;
        let answer = ask(&place, Method::GET, path).await?.is(200)?;
        answer.holds(&manifest.bytes).map(drop)
    })
    .await
}

async fn not_found(place: &Place, paths: &[String]) -> Findings {
    let mut findings = Findings::new();
    for path in paths {
        for method in [Method::HEAD, Method::GET] {
            let name = format!("{method} {path}");
            let asked = async {
                let answer = ask(place, method, path).await?.is(404)?;
                ensure!(
                    !answer.headers.contains_key("docker-content-digest"),
                    "{path}: a digest of nothing"
                );
                Ok(())
            };
            let found = asked.await;
            findings.push((name, found));
        }
    }
    findings
}

async fn a_manifest_that_is_not_there_is_404(place: Place) -> Findings {
    let absent = format!("sha256:{}", "0".repeat(64));
    // A blob is no manifest.
    let blob = place
        .content
        .blobs()
        .next()
        .map(|blob| blob.digest.clone())
        .unwrap_or_default();
    let paths = [
        format!("/v2/{REPOSITORY}/manifests/absent"),
        format!("/v2/{REPOSITORY}/manifests/{absent}"),
        format!("/v2/{REPOSITORY}/manifests/{blob}"),
        format!("/v2/conformance/absent/manifests/{absent}"),
        "/v2/conformance/absent/manifests/absent".to_owned(),
    ];
    not_found(&place, &paths).await
}

async fn what_is_neither_a_tag_nor_a_digest_is_not_found(place: Place) -> Findings {
    let paths = [".INVALID_MANIFEST_NAME", "-x", &"t".repeat(129), "a%20b", "a+b"]
        .map(|reference| format!("/v2/{REPOSITORY}/manifests/{reference}"));
    not_found(&place, &paths).await
}

/// RFC 9110, 13.1.2: where there is an `ETag`, a client may ask with it.
async fn a_manifest_that_the_client_has_is_304(place: Place) -> Findings {
    each(&place, is_content, async |_, path| {
        let first = ask(&place, Method::GET, path).await?.is(200)?;
        let etag = first.header("etag").to_owned();
        ensure!(!etag.is_empty(), "{path}: no ETag");
        let known = [("accept", ACCEPT), ("if-none-match", &etag)];
        place
            .ask(Method::GET, path, &known)
            .await?
            .is(304)?
            .holds(b"")
            .map(drop)
    })
    .await
}
