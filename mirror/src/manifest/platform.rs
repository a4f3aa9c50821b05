//! The platforms of an index (image-spec, "Image Index").

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::json::{self, JsonList, ListEntry, Object, Scalar};

/// The longest part of a platform's name in bytes.
const MAX_PART: usize = 64;

/// A platform, `OS/ARCHITECTURE` or `OS/ARCHITECTURE/VARIANT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64")]
pub struct InvalidPlatform(String);

impl ImagePlatform {
    /// Returns the platform of this machine, which runs Linux containers.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Returns whether a request for `self` is satisfied by an image of `other`. Without a variant, any is.
    pub fn accepts(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || self.variant == other.variant)
    }

    /// Returns whether an index uses this platform to mark content that is no image, such as attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl FromStr for ImagePlatform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<_> = text.split('/').collect();
        let is_word = |part: &&str| {
            (1..=MAX_PART).contains(&part.len())
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(is_word) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: variant.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(InvalidPlatform(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for ImagePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A manifest that an index names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its platform, if the index names one.
    pub platform: Option<ImagePlatform>,
}

/// Returns the manifests that an index names; none for another document.
pub fn platforms(index: &[u8]) -> Vec<PlatformManifest> {
    let read = json::read::<Object<IndexFields>>(index).and_then(|object| object.0);
    read.map_or_else(Vec::new, |fields| fields.manifests.entries())
}

/// Returns the platform of an image by its configuration (image-spec, "Image Configuration"); `None` for another document.
pub fn configured_platform(configuration: &[u8]) -> Option<ImagePlatform> {
    json::read::<Object<PlatformFields>>(configuration)?.0?.platform()
}

json::members! {
    IndexFields {
        "manifests" => manifests: JsonList<PlatformManifest>,
    }
}

json::members! {
    pub(crate) EntryFields {
        "digest" => digest: Scalar,
        "platform" => platform: Object<PlatformFields>,
    }
}

json::members! {
    PlatformFields {
        "os" => os: Scalar,
        "architecture" => architecture: Scalar,
        "variant" => variant: Scalar,
    }
}

impl PlatformFields {
    fn platform(self) -> Option<ImagePlatform> {
        let (os, architecture) = (self.os.text()?, self.architecture.text()?);
        let name = match self.variant.text().filter(|variant| !variant.is_empty()) {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        };
        name.parse().ok()
    }
}

impl ListEntry for PlatformManifest {
    type Json = Object<EntryFields>;

    fn from_json(json: Object<EntryFields>) -> Option<Self> {
        let fields = json.0?;
        Some(Self {
            digest: fields.digest.text()?.parse().ok()?,
            platform: fields.platform.0.and_then(PlatformFields::platform),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("linux/arm", "linux/arm/v7" => true; "any variant")]
    #[test_case("linux/arm/v6", "linux/arm/v7" => false; "another variant")]
    #[test_case("linux/amd64", "linux/arm64" => false; "another architecture")]
    #[test_case("linux/amd64", "windows/amd64" => false; "another system")]
    fn platform_accepts_matching_images(wanted: &str, found: &str) -> bool {
        wanted
            .parse::<ImagePlatform>()
            .unwrap()
            .accepts(&found.parse().unwrap())
    }

    #[test_case("linux" ; "no architecture")]
    #[test_case("linux/arm/v7/x" ; "too many parts")]
    #[test_case("linux//v7" ; "an empty part")]
    #[test_case("linux/a b" ; "a space")]
    fn invalid_platform_is_refused(text: &str) {
        let error = text.parse::<ImagePlatform>().unwrap_err().to_string();
        assert!(error.contains("expected OS/ARCHITECTURE"), "{error}");
    }

    /// An index with an image, an attestation and entries of no use gives the manifests with their platforms.
    #[test]
    fn index_gives_manifests_with_platforms() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let index = format!(
            r#"{{"manifests":[{{"digest":"{digest}","platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}},
            {{"digest":"{digest}","platform":{{"os":"unknown","architecture":"unknown"}}}},
            {{"digest":"{digest}"}}, {{"digest":"x"}}, 1]}}"#
        );
        let found = platforms(index.as_bytes());
        let names: Vec<_> = found
            .iter()
            .map(|entry| entry.platform.as_ref().map(ToString::to_string))
            .collect();
        assert_eq!(
            names,
            [Some("linux/arm/v7".into()), Some("unknown/unknown".into()), None]
        );
    }

    proptest! {
        #[test]
        fn no_index_makes_the_reader_panic(bytes: Vec<u8>, text in "\\{[\\[\\]{}\",:a-z0-9]{0,60}", name: String) {
            let _ = (platforms(&bytes), platforms(text.as_bytes()), name.parse::<ImagePlatform>());
        }
    }
}
