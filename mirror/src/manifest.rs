//! The parts of a manifest that the server reads (image-spec, "Image Manifest" and "Image Index"; Docker image manifest
//! schema 2).
//!
//! The server passes bytes on unchanged; this parser only reads them. It refuses less than a strict parser would:
//! registries hold manifests with fields that are missing, `null`, or of unknown types.

mod platform;

use serde::de::IgnoredAny;

use crate::digest::Digest;
use crate::json::{self, JsonList, ListEntry, Object, Scalar};

pub use platform::{ImagePlatform, InvalidPlatform, PlatformManifest, configured_platform, platforms};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The most bytes of a media type (RFC 6838, 4.2).
pub(crate) const MAX_MEDIA_TYPE: usize = 255;
/// The types that upstreams are asked for, and that are believed where only the manifest itself says so.
pub(crate) const KNOWN_TYPES: [&str; 5] = [
    INDEX,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    IMAGE,
    DOCKER,
    "application/vnd.oci.artifact.manifest.v1+json",
];

/// A manifest of any kind, as far as it concerns a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// `schemaVersion`.
    pub schema_version: Option<u64>,
    /// `mediaType`, whatever it says.
    pub media_type: Option<String>,
    /// The media type that the members of the document imply.
    shape: Option<&'static str>,
    /// The manifests that an index names.
    manifests: Vec<Descriptor>,
    /// Configuration, layers, or what else it names at the registry.
    blobs: Vec<Descriptor>,
    /// A list of it is too long, and was left out.
    has_too_many: bool,
}

/// A descriptor (image-spec, "Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// `true` if `urls` name a place of the content outside the registry.
    pub elsewhere: bool,
}

impl Document {
    /// Reads a manifest; `None` where these bytes are no JSON object. What it names in a way that can't be read is
    /// left out.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        json::read::<Object<Fields>>(bytes)?.0.map(Self::from)
    }

    /// Returns the declared type, or else the type that the shape implies.
    pub fn kind(&self) -> &'static str {
        let said = |known: &&str| self.media_type.as_deref() == Some(*known);
        let own = KNOWN_TYPES.into_iter().find(said);
        own.or(self.shape).unwrap_or(IMAGE)
    }

    /// Returns true where it names more content than a manifest may, in one list more than 10,000 descriptors.
    pub fn has_too_many(&self) -> bool {
        self.has_too_many
    }

    /// Returns the blobs that the manifest names.
    pub fn blobs(&self) -> &[Descriptor] {
        &self.blobs
    }

    /// Returns the manifests that an index names.
    pub fn manifests(&self) -> &[Descriptor] {
        &self.manifests
    }

    /// Returns all digests that the manifest names, including manifests.
    pub fn named(&self) -> impl Iterator<Item = &Digest> {
        self.manifests
            .iter()
            .chain(&self.blobs)
            .map(|descriptor| &descriptor.digest)
    }
}

json::members! {
    Fields {
        "schemaversion" => schema_version: Scalar,
        "mediatype" => media_type: Scalar,
        "manifests" => manifests: JsonList<Descriptor>,
        "config" => config: Object<DescriptorFields>,
        "layers" => layers: JsonList<Descriptor>,
        "blobs" => blobs: JsonList<Descriptor>,
    }
}

json::members! {
    pub(crate) DescriptorFields {
        "mediatype" => media_type: Scalar,
        "digest" => digest: Scalar,
        "size" => size: Scalar,
        "urls" => urls: JsonList<AnyUrl>,
    }
}

impl DescriptorFields {
    /// Returns the descriptor; content by no digest that is known here can't be asked for.
    fn descriptor(self) -> Option<Descriptor> {
        Some(Descriptor {
            digest: self.digest.text()?.parse().ok()?,
            size: self.size.integer(),
            elsewhere: self.urls.is_too_long() || !self.urls.entries().is_empty(),
        })
    }
}

impl ListEntry for Descriptor {
    type Json = Object<DescriptorFields>;

    fn from_json(json: Object<DescriptorFields>) -> Option<Self> {
        json.0?.descriptor()
    }
}

/// An entry of `urls`, whatever it says.
struct AnyUrl;

impl ListEntry for AnyUrl {
    type Json = IgnoredAny;

    fn from_json(_: IgnoredAny) -> Option<Self> {
        Some(Self)
    }
}

impl From<Fields> for Document {
    fn from(fields: Fields) -> Self {
        let config = fields.config.0.unwrap_or_default();
        let docker = matches!(&config.media_type, Scalar::Text(text) if text.contains(".docker."));
        let shape = match &fields.manifests {
            JsonList::Entries(_) | JsonList::TooMany | JsonList::Other => INDEX,
            JsonList::Absent if docker => DOCKER,
            JsonList::Absent => IMAGE,
        };
        let lists = [&fields.manifests, &fields.layers, &fields.blobs];
        let has_too_many = lists.into_iter().any(JsonList::is_too_long);
        let lists = [fields.layers, fields.blobs].map(JsonList::entries);
        Self {
            schema_version: fields.schema_version.integer(),
            media_type: fields
                .media_type
                .text()
                .filter(|text| text.len() <= MAX_MEDIA_TYPE),
            shape: Some(shape),
            manifests: fields.manifests.entries(),
            blobs: config
                .descriptor()
                .into_iter()
                .chain(lists.into_iter().flatten())
                .collect(),
            has_too_many,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::json::MAX_ENTRIES;
    use proptest::prelude::*;
    use test_case::test_case;

    /// The media type is inferred from the shape of a manifest that lacks it.
    #[test_case(r#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#, DOCKER; "as it says")]
    #[test_case(r#"{"manifests":[]}"#, INDEX; "an index by its shape")]
    #[test_case(r#"{"layers":[]}"#, IMAGE; "an image by its shape")]
    #[test_case(r#"{"mediaType":"text/html","manifests":[]}"#, INDEX; "not what no manifest is")]
    #[test_case(r#"{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}"#, DOCKER; "a docker image by its shape")]
    #[test_case(r#"{"manifests":{"not":"a list"}}"#, INDEX; "an index that can't be read")]
    #[test_case(r#"{"manifests":null,"layers":[]}"#, IMAGE; "an image with no manifests")]
    fn missing_media_type_is_inferred(text: &str, expected: &str) {
        assert_eq!(Document::read(text.as_bytes()).unwrap().kind(), expected);
    }

    /// JSON that is not an object is no manifest.
    #[test_case("")]
    #[test_case("<html>")]
    #[test_case("[2, null, null, null, null, null]"; "fields in order")]
    #[test_case("{\"schemaVersion\":2"; "cut short")]
    fn non_object_is_no_manifest(text: &str) {
        assert_eq!(Document::read(text.as_bytes()), None);
    }

    /// The reader keeps the references of a manifest and leaves out all else.
    #[test]
    fn manifest_reads_only_what_it_references() {
        let digest = |text: &str| Digest::compute(Algorithm::Sha256, text.as_bytes());
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":7,"urls":[]}},"annotations":{{"a":[1]}},
            "layers":[{{"digest":"{}","size":9,"urls":["https://b"]}},{{}},{{"digest":"md5:1","size":1}}],
            "blobs":[{{"digest":"{}"}}],"manifests":[{{"digest":"{}","size":1,"platform":{{"os":"linux"}}}}]}}"#,
            digest("config"),
            digest("layer"),
            digest("blob"),
            digest("manifest"),
        );
        let document = Document::read(text.as_bytes()).unwrap();
        let named: Vec<_> = document.named().cloned().collect();
        assert_eq!(named, ["manifest", "config", "layer", "blob"].map(digest));
        let found: Vec<_> = document
            .blobs()
            .iter()
            .map(|blob| (blob.size, blob.elsewhere))
            .collect();
        assert_eq!(found, [(Some(7), false), (Some(9), true), (None, false)]);
    }

    /// A manifest with references that cannot be read is still a manifest.
    #[test_case(r#"{"schemaVersion":2,"layers":"none"}"#)]
    #[test_case(r#"{"schemaVersion":2,"layers":[{"size":-1}]}"#)]
    #[test_case(r#"{"schemaVersion":2,"config":[],"layers":null}"#)]
    fn unreadable_references_are_dropped(text: &str) {
        let document = Document::read(text.as_bytes()).unwrap();
        assert_eq!((document.schema_version, document.named().count()), (Some(2), 0));
    }

    #[test_case("manifests"; "of an index")]
    #[test_case("layers"; "of an image")]
    #[test_case("blobs"; "of an artifact")]
    fn list_of_too_many_descriptors_is_marked(name: &str) {
        let descriptor = format!(r#"{{"digest":"{}"}}"#, Digest::compute(Algorithm::Sha256, b"x"));
        let manifest = |count: usize| {
            let list = vec![descriptor.as_str(); count].join(",");
            Document::read(format!(r#"{{"schemaVersion":2,"{name}":[1,{{}},{list}]}}"#).as_bytes()).unwrap()
        };
        let most = manifest(MAX_ENTRIES);
        assert_eq!((most.has_too_many(), most.named().count()), (false, MAX_ENTRIES));
        let more = manifest(MAX_ENTRIES + 1);
        assert_eq!((more.has_too_many(), more.named().count()), (true, 0));
    }

    /// The schema version is read from a text, a fraction of zero or a repeated name.
    #[test_case(r#"{"schemaVersion":2.0}"#; "a fraction of zero")]
    #[test_case(r#"{"schemaVersion":"2"}"#; "text")]
    #[test_case(r#"{"schemaVersion":1,"schemaVersion":2}"#; "a name twice")]
    #[test_case(r#"{"SchemaVersion":2,"mediaType":null}"#; "another letter case")]
    #[test_case(r#"{"schemaVersion":2,"mediaType":[],"annotations":{"a":1,"a":2}}"#; "another type")]
    fn schema_version_is_read_leniently(text: &str) {
        let document = Document::read(text.as_bytes()).unwrap();
        assert_eq!((document.schema_version, document.media_type), (Some(2), None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, text in "\\{[\\[\\]{}\",:a-z0-9]{0,60}") {
            let _ = (Document::read(&bytes), Document::read(text.as_bytes()));
        }
    }
}
