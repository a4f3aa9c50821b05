//! The tables of the index, and how names are keys in them.

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

use crate::digest::{Algorithm, Digest};
use crate::name::{Repository, Tag};

/// Digest → size in bytes; first fetched, last used, last verified (0: never) in ms since 1970.
pub(super) const CONTENT: TableDefinition<&[u8], (u64, i64, i64, i64)> = TableDefinition::new("content");
/// Manifest → its `Content-Type`.
pub(super) const MEDIA_TYPES: TableDefinition<&[u8], &str> = TableDefinition::new("media types");
/// Content in the order of its last use.
pub(super) const BY_USE: TableDefinition<(i64, &[u8]), ()> = TableDefinition::new("by use");
/// Content in the order of its first fetch.
pub(super) const BY_FETCH: TableDefinition<(i64, &[u8]), ()> = TableDefinition::new("by fetch");
/// Digest, kind, repository, and what else names the link.
pub(super) const LINKS: TableDefinition<(&[u8], u8, &str, &str), ()> = TableDefinition::new("links");
/// Repository and tag → digest, and when upstream last confirmed it.
pub(super) const TAGS: TableDefinition<(&str, &str), (&[u8], i64)> = TableDefinition::new("tags");
/// Digest → when Distribution would have expired it.
pub(super) const IMPORTED: TableDefinition<&[u8], i64> = TableDefinition::new("imported");
/// Content (kind [`DATA`], without names) and links that the bucket has, with the keys of [`LINKS`].
pub(super) const KEPT: TableDefinition<(&[u8], u8, &str, &str), ()> = TableDefinition::new("kept");
/// Content that this server uploaded to the bucket → the time of the upload in ms since 1970.
pub(super) const UPLOADED: TableDefinition<&[u8], i64> = TableDefinition::new("uploaded");
/// The upload in parts that began → the key of its object.
pub(super) const UPLOADS: TableDefinition<&str, &str> = TableDefinition::new("uploads");
/// Time in ms since 1970 → a sample of the server's totals, of the last day.
pub(super) const SAMPLES: TableDefinition<i64, &[u8]> = TableDefinition::new("samples");
/// Manifest → the number of its pulls, if there were any.
pub(super) const PULLS: TableDefinition<&[u8], u64> = TableDefinition::new("pulls");
/// The kind of content in [`KEPT`].
pub(super) const DATA: u8 = u8::MAX;
/// Totals and marks.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Keys of [`META`].
pub(super) const BYTES: &str = "bytes";
pub(super) const BLOBS: &str = "blobs";
/// 1 once the index knows all the files.
pub(super) const COMPLETE: &str = "complete";
/// The fingerprint of `scheduler-state.json` when this server last read or wrote it.
pub(super) const STATE_SEEN: &str = "scheduler state";
/// The fingerprint of the bucket that [`KEPT`] and [`UPLOADS`] are about; 0 before there was one.
pub(super) const BUCKET: &str = "bucket";
const SCHEMA: &str = "schema";
const SCHEMA_VERSION: u64 = 1;

/// Makes the tables of a new index; an index of another schema counts as damaged.
pub(super) fn check(database: &Database) -> Result<(), redb::Error> {
    if let Ok(meta) = database.begin_read()?.open_table(META) {
        return match meta.get(SCHEMA)?.map(|found| found.value()) {
            Some(SCHEMA_VERSION) => add_missing(database),
            found => Err(redb::Error::Corrupted(format!("unknown schema {found:?}"))),
        };
    }
    let mut transaction = database.begin_write()?;
    // A start recreates an empty index after a crash, so it need not wait for the disk.
    transaction.set_durability(Durability::None)?;
    transaction.open_table(CONTENT)?;
    transaction.open_table(MEDIA_TYPES)?;
    transaction.open_table(BY_USE)?;
    transaction.open_table(BY_FETCH)?;
    transaction.open_table(LINKS)?;
    transaction.open_table(TAGS)?;
    transaction.open_table(IMPORTED)?;
    transaction.open_table(KEPT)?;
    transaction.open_table(UPLOADS)?;
    transaction.open_table(SAMPLES)?;
    transaction.open_table(PULLS)?;
    transaction.open_table(UPLOADED)?;
    transaction.open_table(META)?.insert(SCHEMA, SCHEMA_VERSION)?;
    transaction.commit()?;
    Ok(())
}

/// Makes the tables that an older version of the server did not have.
fn add_missing(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_read()?;
    if transaction.open_table(PULLS).is_ok() && transaction.open_table(UPLOADED).is_ok() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    transaction.open_table(KEPT)?;
    transaction.open_table(UPLOADS)?;
    transaction.open_table(SAMPLES)?;
    transaction.open_table(PULLS)?;
    transaction.open_table(UPLOADED)?;
    transaction.commit()?;
    Ok(())
}

/// A link to a piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// `_layers/…/link`; its name may differ from what it points to.
    Layer(Repository, Digest),
    /// `_manifests/revisions/…/link`; the same holds.
    Revision(Repository, Digest),
    /// `_manifests/tags/…`.
    Tag(Repository, Tag),
}

impl Link {
    pub(super) const KINDS: std::ops::RangeInclusive<u8> = 0..=2;

    /// Returns the number of the kind, as keys have it.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Layer(..) => 0,
            Self::Revision(..) => 1,
            Self::Tag(..) => 2,
        }
    }

    /// Returns the repository that has the link.
    pub(crate) fn repository(&self) -> &Repository {
        match self {
            Self::Layer(repository, _) | Self::Revision(repository, _) | Self::Tag(repository, _) => {
                repository
            }
        }
    }

    /// Returns the digest or tag that names the link in its repository.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Layer(_, name) | Self::Revision(_, name) => name.as_str(),
            Self::Tag(_, tag) => tag.as_str(),
        }
    }

    /// Returns the link of a kind, repository and name; `None` if they do not fit.
    pub(crate) fn from_key(kind: u8, repository: &str, name: &str) -> Option<Self> {
        let repository = repository_of(repository)?;
        match kind {
            0 => Some(Self::Layer(repository, name.parse().ok()?)),
            1 => Some(Self::Revision(repository, name.parse().ok()?)),
            2 => Some(Self::Tag(repository, name.parse().ok()?)),
            _ => None,
        }
    }
}

/// Parses `host/name`, which does not depend on the place on the disk.
fn repository_of(key: &str) -> Option<Repository> {
    let (host, name) = key.split_once('/')?;
    Some(Repository {
        host: host.parse().ok()?,
        name: name.parse().ok()?,
    })
}

/// An algorithm's number and the raw hash: half of what the text takes.
pub(in crate::store) fn key_of(digest: &Digest) -> Vec<u8> {
    let mut key = vec![match digest.algorithm() {
        Algorithm::Sha256 => 0,
        Algorithm::Sha512 => 1,
    }];
    key.extend(hex::decode(digest.hex()).unwrap_or_default());
    key
}

pub(in crate::store) fn digest_of(key: &[u8]) -> Option<Digest> {
    let (number, hash) = key.split_first()?;
    let algorithm = match number {
        0 => Algorithm::Sha256,
        1 => Algorithm::Sha512,
        _ => return None,
    };
    format!("{}:{}", algorithm.as_str(), hex::encode(hash))
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::path::ALGORITHMS;
    use proptest::prelude::*;

    proptest! {
        /// Digests and links read back from their keys in the index.
        #[test]
        fn digests_and_links_read_back_from_keys(bytes: Vec<u8>, long: bool, name in "[a-z]{1,9}(/[a-z]{1,9})?") {
            let digest = Digest::compute(ALGORITHMS[usize::from(long)], &bytes);
            prop_assert_eq!(digest_of(&key_of(&digest)), Some(digest.clone()));
            let repository = Repository { host: "[::1]:5000".parse().unwrap(), name: name.parse().unwrap() };
            let links = [
                Link::Layer(repository.clone(), digest.clone()),
                Link::Revision(repository.clone(), digest),
                Link::Tag(repository, "latest".parse().unwrap()),
            ];
            for link in links {
                let again = Link::from_key(link.kind(), &link.repository().to_string(), link.name());
                prop_assert_eq!(again, Some(link));
            }
        }

        #[test]
        fn no_key_makes_the_reader_panic(key: Vec<u8>, kind: u8, repository: String, name: String) {
            let _ = (digest_of(&key), Link::from_key(kind, &repository, &name));
        }
    }
}
