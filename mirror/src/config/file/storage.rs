//! `storage`: a map of drivers and options, or just a driver's name.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Azure, Gcs, IgnoredKey, S3};
use crate::config::bucket::RedirectMode;
use crate::config::duration::GoDuration;
use crate::config::keys::NO_DRIVER;
use crate::config::overlay::section;
use crate::config::size::BlobSize;

section! {
    /// The place of the cache: a directory, and a bucket behind it if there is one.
    #[serde(remote = "Self")]
    Storage {
        /// A directory; with a bucket, the local tier in front of it.
        "filesystem" => filesystem: Filesystem,
        /// The care of the storage.
        "maintenance" => maintenance: Maintenance,
        /// A cache of blobs' descriptors.
        "cache" => cache: IgnoredKey,
        /// The deletion of blobs and manifests by clients.
        "delete" => delete: IgnoredKey,
        /// Redirects of clients to the bucket.
        "redirect" => redirect: Redirect,
        /// The limit of look-ups of tags at once.
        "tag" => tag: IgnoredKey,
        /// A storage in memory.
        "inmemory" => inmemory: IgnoredKey,
        /// A container of Azure Blob Storage.
        "azure" => azure: Option<Azure>,
        /// A bucket of Google Cloud Storage.
        "gcs" => gcs: Option<Gcs>,
        /// A bucket of S3.
        "s3" => s3: Option<S3>,
        /// A storage in S3, by another name.
        "s3aws" => s3aws: IgnoredKey,
        /// A storage in S3, by an older driver.
        "s3goamz" => s3goamz: IgnoredKey,
        /// A storage in Ceph.
        "rados" => rados: IgnoredKey,
        /// A storage in Swift.
        "swift" => swift: IgnoredKey,
        /// A storage in Alibaba Cloud.
        "oss" => oss: IgnoredKey,
    }
}

section! {
    /// Redirects of clients to the bucket.
    Redirect {
        /// Disables redirects.
        "disable" => disable: bool,
        /// The blobs whose clients are redirected: none, or those of at least `minsize`.
        "mode" => mode: Option<RedirectMode>,
        /// The size from which a blob is large; 16Mi if not set.
        "minsize" => min_size: Option<BlobSize>,
        /// The address of the store for clients, `http(s)://host[:port]`; the one of the bucket if not set.
        "endpoint" => endpoint: Option<String>,
    }
}

section! {
    /// The file system driver.
    Filesystem {
        /// The directory of the cache.
        "rootdirectory" => root_directory: Option<String>,
        /// The number of file operations at once.
        "maxthreads" => max_threads: IgnoredKey,
    }
}

section! {
    /// The care of the storage.
    Maintenance {
        /// The removal of uploads that were left behind.
        "uploadpurging" => upload_purging: UploadPurging,
        /// A registry that clients cannot change.
        "readonly" => readonly: ReadOnly,
    }
}

section! {
    /// The removal of uploads that were left behind.
    UploadPurging {
        /// Enables the removal; without it the uploads count against the size of the cache for ever.
        "enabled" => enabled: Option<bool>,
        /// The age from which an upload is removed.
        "age" => age: Option<GoDuration>,
        /// The time from one sweep to the next; the first is at the start.
        "interval" => interval: Option<GoDuration>,
        /// Removes nothing, and logs each upload that would be removed.
        "dryrun" => dry_run: bool,
    }
}

section! {
    /// A registry that clients cannot change, which a pull-through is anyway.
    ReadOnly {
        /// Refuses changes by clients.
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
        f.write_str("a map of the storage driver and its options, or the name of a driver")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Storage, A::Error> {
        Storage::deserialize(MapAccessDeserializer::new(map))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Storage, E> {
        match name {
            "filesystem" => Ok(Storage::default()),
            // Its keys come from the environment.
            "s3" => Ok(Storage {
                s3: Some(S3::default()),
                ..Storage::default()
            }),
            "gcs" => Ok(Storage {
                gcs: Some(Gcs::default()),
                ..Storage::default()
            }),
            "azure" => Ok(Storage {
                azure: Some(Azure::default()),
                ..Storage::default()
            }),
            name => Err(E::custom(format!("{name} is {NO_DRIVER}"))),
        }
    }
}
