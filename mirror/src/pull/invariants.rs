//! See [`crate::fuzzing`].

#![expect(clippy::unwrap_used, reason = "what does not hold ends the fuzzer")]

use std::sync::LazyLock;

use super::blob_sizes::BlobSizes;
use super::media_type::{MediaTypeVerdict, judge};
use crate::digest::{Algorithm, Digest};
use crate::manifest::Document;
use crate::name::Repository;

static NAMED: LazyLock<BlobSizes> = LazyLock::new(BlobSizes::default);

/// Checks that a manifest is JSON, and that its media type does not depend on the reader.
pub(crate) fn manifest(content_type: Option<&str>, bytes: &[u8]) {
    let Some(document) = Document::read(bytes) else {
        return;
    };
    let by_shape = document.kind();
    assert!(by_shape.starts_with("application/vnd."), "{by_shape}");
    let verdict = judge(&document, content_type);
    assert_eq!(judge(&document, content_type), verdict);
    let Ok(MediaTypeVerdict::Manifest(media_type)) = verdict else {
        return;
    };
    assert!(bytes.trim_ascii().starts_with(b"{") && bytes.trim_ascii().ends_with(b"}"));
    http::HeaderValue::from_str(&media_type).unwrap();
    let repository = Repository {
        host: "docker.io".parse().unwrap(),
        name: "library/app".parse().unwrap(),
    };
    NAMED.record(&repository, &document);
    let other = Digest::compute(Algorithm::Sha256, bytes);
    assert_eq!(
        NAMED.get(&repository, &other),
        None,
        "a manifest can't name itself"
    );
}
