//! What a manifest says of itself (image-spec, "Image Manifest" and "Image Index"; Docker image manifest schema 2).
//!
//! Bytes are passed on as they came; this is what is read of them beside. It refuses less than a strict reader would:
//! registries hold manifests with fields that are missing, `null`, or of kinds that no specification knows.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::digest::Digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The types that are believed where only the manifest itself says so.
const KNOWN: [&str; 5] = [
    INDEX,
    IMAGE,
    "application/vnd.docker.distribution.manifest.list.v2+json",
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
    /// What its shape says of its type.
    shape: Option<&'static str>,
    /// The manifests that an index names.
    manifests: Vec<Descriptor>,
    /// Configuration, layers, or what else it names at the registry.
    blobs: Vec<Descriptor>,
}

/// What is said of content elsewhere (image-spec, "Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// Whether it may be found by `urls` rather than at the registry.
    pub elsewhere: bool,
}

impl Document {
    /// Reads a manifest; `None` where these bytes are no JSON object. Where what it names can't be read, it names
    /// nothing.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        // The formats' own readers would take `[2, …]` for an object with its fields in order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return None;
        }
        let whole = serde_json::from_slice::<Fields<Named, List>>(bytes);
        whole
            .map(Self::from)
            .or_else(|_| serde_json::from_slice::<Fields<IgnoredAny, IgnoredAny>>(bytes).map(Self::from))
            .ok()
    }

    /// Its type by its own word, else by its shape.
    pub fn kind(&self) -> &'static str {
        let said = |known: &&str| self.media_type.as_deref() == Some(*known);
        let own = KNOWN.into_iter().find(said);
        own.or(self.shape).unwrap_or(IMAGE)
    }

    /// The blobs that it names.
    pub fn blobs(&self) -> &[Descriptor] {
        &self.blobs
    }

    /// All that it names, manifests among it.
    pub fn named(&self) -> impl Iterator<Item = &Digest> {
        self.manifests
            .iter()
            .chain(&self.blobs)
            .map(|descriptor| &descriptor.digest)
    }
}

/// The fields; `D` is a descriptor and `L` a list of them, or anything at all.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "D: Deserialize<'de>, L: Deserialize<'de>")]
struct Fields<D, L> {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<L>,
    config: Option<D>,
    layers: Option<L>,
    blobs: Option<L>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<u64>,
    urls: Option<Vec<IgnoredAny>>,
}

impl Named {
    /// Content by no digest that we know can't be asked for.
    fn descriptor(self) -> Option<Descriptor> {
        Some(Descriptor {
            digest: self.digest?.parse().ok()?,
            size: self.size,
            elsewhere: self.urls.is_some_and(|urls| !urls.is_empty()),
        })
    }
}

/// Descriptors; entries without a digest take no memory, however many there are.
#[derive(Default)]
struct List(Vec<Descriptor>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = List;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<List, A::Error> {
                let mut list = List::default();
                while let Some(entry) = entries.next_element::<Named>()? {
                    list.0.extend(entry.descriptor());
                }
                Ok(list)
            }
        }

        deserializer.deserialize_seq(Entries)
    }
}

impl From<Fields<Named, List>> for Document {
    fn from(fields: Fields<Named, List>) -> Self {
        let docker = fields
            .config
            .as_ref()
            .and_then(|config| config.media_type.as_deref())
            .is_some_and(|media_type| media_type.contains(".docker."));
        let shape = match &fields.manifests {
            Some(_) => INDEX,
            None if docker => DOCKER,
            None => IMAGE,
        };
        let lists = [fields.layers, fields.blobs].into_iter().flatten();
        let config = fields.config.and_then(Named::descriptor);
        Self {
            schema_version: fields.schema_version,
            media_type: fields.media_type,
            shape: Some(shape),
            manifests: fields.manifests.unwrap_or_default().0,
            blobs: config.into_iter().chain(lists.flat_map(|list| list.0)).collect(),
        }
    }
}

impl From<Fields<IgnoredAny, IgnoredAny>> for Document {
    fn from(fields: Fields<IgnoredAny, IgnoredAny>) -> Self {
        Self {
            schema_version: fields.schema_version,
            media_type: fields.media_type,
            shape: fields.manifests.map(|_| INDEX),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case(r#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#, DOCKER; "as it says")]
    #[test_case(r#"{"manifests":[]}"#, INDEX; "an index by its shape")]
    #[test_case(r#"{"layers":[]}"#, IMAGE; "an image by its shape")]
    #[test_case(r#"{"mediaType":"text/html","manifests":[]}"#, INDEX; "not what no manifest is")]
    #[test_case(r#"{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}"#, DOCKER; "a docker image by its shape")]
    #[test_case(r#"{"manifests":{"not":"a list"}}"#, INDEX; "an index that can't be read")]
    fn a_lost_media_type_is_found_again(text: &str, expected: &str) {
        assert_eq!(Document::read(text.as_bytes()).unwrap().kind(), expected);
    }

    #[test_case("")]
    #[test_case("<html>")]
    #[test_case("[2, null, null, null, null, null]"; "fields in order")]
    #[test_case("{\"schemaVersion\":2"; "cut short")]
    fn what_is_no_object_is_no_manifest(text: &str) {
        assert_eq!(Document::read(text.as_bytes()), None);
    }

    #[test]
    fn what_it_names_is_read_and_the_rest_left_out() {
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
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
        let told: Vec<_> = document
            .blobs()
            .iter()
            .map(|blob| (blob.size, blob.elsewhere))
            .collect();
        assert_eq!(told, [(Some(7), false), (Some(9), true), (None, false)]);
    }

    #[test_case(r#"{"schemaVersion":2,"layers":"none"}"#)]
    #[test_case(r#"{"schemaVersion":2,"layers":[{"size":-1}]}"#)]
    #[test_case(r#"{"schemaVersion":2,"config":[],"layers":null}"#)]
    fn what_it_names_may_be_unreadable(text: &str) {
        let document = Document::read(text.as_bytes()).unwrap();
        assert_eq!((document.schema_version, document.named().count()), (Some(2), 0));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, text in "\\{[\\[\\]{}\",:a-z0-9]{0,60}") {
            let _ = (Document::read(&bytes), Document::read(text.as_bytes()));
        }
    }
}
