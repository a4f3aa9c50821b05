//! `storage`: a map of drivers and options, or just a driver's name.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Present;
use crate::config::overlay::section;

section! {
    /// Where the cache lies. There is one driver, the file system.
    #[serde(remote = "Self")]
    Storage {
        /// A directory.
        "filesystem" => filesystem: Filesystem,
        /// Read-only mode.
        "maintenance" => maintenance: Maintenance,
        /// Without effect.
        "cache" => cache: Present,
        /// Without effect.
        "delete" => delete: Present,
        /// Without effect.
        "redirect" => redirect: Present,
        /// Without effect.
        "tag" => tag: Present,
        /// Refused.
        "inmemory" => inmemory: Present,
        /// Refused.
        "azure" => azure: Present,
        /// Refused.
        "gcs" => gcs: Present,
        /// Refused.
        "s3" => s3: Present,
        /// Refused.
        "s3aws" => s3aws: Present,
        /// Refused.
        "swift" => swift: Present,
        /// Refused.
        "oss" => oss: Present,
    }
}

section! {
    /// The file system driver.
    Filesystem {
        /// The directory; `/var/lib/registry` if absent.
        "rootdirectory" => root_directory: Option<String>,
        /// Without effect.
        "maxthreads" => max_threads: Present,
    }
}

section! {
    /// What keeps clients or the server from writing.
    Maintenance {
        /// Without effect.
        "uploadpurging" => upload_purging: Present,
        /// Nothing is written to the cache.
        "readonly" => readonly: ReadOnly,
    }
}

section! {
    /// Nothing is written to the cache.
    ReadOnly {
        /// Whether that is so.
        "enabled" => enabled: bool,
    }
}

impl Serialize for Storage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Storage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MapOrName)
    }
}

struct MapOrName;

impl<'de> Visitor<'de> for MapOrName {
    type Value = Storage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of the storage driver and its options, or `filesystem`")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Storage, A::Error> {
        Storage::deserialize(MapAccessDeserializer::new(map))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Storage, E> {
        match name {
            "filesystem" => Ok(Storage::default()),
            _ => Err(E::custom("the only storage driver here is `filesystem`")),
        }
    }
}
