//! Detection of the media type of a manifest, which keeps error pages out of the cache.

use http::HeaderValue;

use crate::manifest::Document;
use crate::upstream::Error;

const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The media type of a manifest, or the reason why it is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MediaTypeVerdict {
    /// A manifest of this media type.
    Manifest(String),
    /// Docker schema 1.
    Schema1,
}

/// Determines the media type of a document that the upstream sent as `content_type`.
pub(crate) fn judge(manifest: &Document, content_type: Option<&str>) -> Result<MediaTypeVerdict, Error> {
    // RFC 9110, section 8.3: parameters may follow, which say nothing here.
    let declared = content_type.map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
    let version = manifest.schema_version;
    let own = manifest
        .media_type
        .as_ref()
        .filter(|text| HeaderValue::from_str(text).is_ok());
    if version == Some(1) || declared.as_deref().is_some_and(|text| text.starts_with(SCHEMA1)) {
        return Ok(MediaTypeVerdict::Schema1);
    }
    if let Some(said) = declared.filter(|text| is_manifest(text)).or_else(|| own.cloned()) {
        return Ok(MediaTypeVerdict::Manifest(said));
    }
    match version {
        Some(2) => Ok(MediaTypeVerdict::Manifest(manifest.kind().to_owned())),
        _ => Err(no_manifest(content_type)),
    }
}

/// Returns `true` for the media type of a manifest; static file servers send others, such as `application/json`.
fn is_manifest(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.") && media_type.ends_with("json")
}

fn no_manifest(content_type: Option<&str>) -> Error {
    let kind: String = content_type.unwrap_or("unnamed").chars().take(80).collect();
    Error::Malformed {
        what: format!("upstream answered with {kind} content where a manifest belongs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn media_type(body: &str, content_type: Option<&str>) -> Option<String> {
        match judge(&Document::read(body.as_bytes()).unwrap(), content_type) {
            Ok(MediaTypeVerdict::Manifest(media_type)) => Some(media_type),
            _ => None,
        }
    }

    #[test_case(r#"{"schemaVersion":2}"#, Some(OCI_INDEX), OCI_INDEX; "upstream's word")]
    #[test_case(r#"{"schemaVersion":2}"#, Some("application/vnd.oci.image.index.v1+json; charset=utf-8"), OCI_INDEX; "without parameters")]
    #[test_case(r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#, None, DOCKER_MANIFEST; "its own word")]
    #[test_case(r#"{"schemaVersion":2,"manifests":[]}"#, Some("application/json"), OCI_INDEX; "an index by shape")]
    #[test_case(r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}"#, None, DOCKER_MANIFEST; "a docker image by shape")]
    #[test_case(r#"{"schemaVersion":2,"config":{}}"#, None, OCI_MANIFEST; "an OCI image by shape")]
    fn media_types(body: &str, content_type: Option<&str>, expected: &str) {
        assert_eq!(media_type(body, content_type).as_deref(), Some(expected));
    }

    #[test]
    fn other_json_is_no_manifest() {
        let document = Document::read(br#"{"message":"welcome"}"#).unwrap();
        let judged = judge(&document, Some("application/json"));
        assert!(matches!(judged, Err(Error::Malformed { .. })));
    }

    #[test_case(r#"{"schemaVersion":1}"#, None; "by its version")]
    #[test_case("{}", Some("application/vnd.docker.distribution.manifest.v1+prettyjws"); "by its type")]
    fn schema1(body: &str, content_type: Option<&str>) {
        let document = Document::read(body.as_bytes()).unwrap();
        assert_eq!(judge(&document, content_type), Ok(MediaTypeVerdict::Schema1));
    }
}
