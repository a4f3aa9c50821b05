//! The queries of the index.

use redb::{Range, ReadTransaction, ReadableTable, TableDefinition};

use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::UploadState;
use crate::store::index::tables::{
    BLOBS, BUCKET, BY_FETCH, BY_USE, BYTES, COMPLETE, CONTENT, DATA, IMPORTED, KEPT, LINKS, Link,
    MEDIA_TYPES, META, PULLS, SAMPLES, STATE_SEEN, TAGS, UPLOADED, UPLOADS, digest_of, key_of,
};
use crate::store::index::{Index, IndexFailure};

/// The entry of a piece of content. Times are ms since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct IndexEntry {
    pub(in crate::store) size: u64,
    pub(in crate::store) fetched: i64,
    pub(in crate::store) used: i64,
    /// 0 where it never was.
    pub(in crate::store) verified: i64,
}

/// The time by which content is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Order {
    Use,
    Fetch,
}

impl Order {
    fn table(self) -> TableDefinition<'static, (i64, &'static [u8]), ()> {
        match self {
            Self::Use => BY_USE,
            Self::Fetch => BY_FETCH,
        }
    }
}

impl From<(u64, i64, i64, i64)> for IndexEntry {
    fn from((size, fetched, used, verified): (u64, i64, i64, i64)) -> Self {
        Self {
            size,
            fetched,
            used,
            verified,
        }
    }
}

/// Content that this server uploaded to the bucket, with the time of the upload and the links that the bucket has.
type UploadedRow = (Digest, IndexEntry, i64, Vec<Link>);

impl Index {
    pub(in crate::store) fn get(&self, digest: &Digest) -> Result<Option<IndexEntry>, IndexFailure> {
        self.read(|transaction| {
            let found = transaction.open_table(CONTENT)?.get(&*key_of(digest))?;
            Ok(found.map(|found| found.value().into()))
        })
    }

    pub(in crate::store) fn media_type(&self, digest: &Digest) -> Result<Option<String>, IndexFailure> {
        self.read(|transaction| {
            let found = transaction.open_table(MEDIA_TYPES)?.get(&*key_of(digest))?;
            Ok(found.map(|found| found.value().to_owned()))
        })
    }

    pub(in crate::store) fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, i64)>, IndexFailure> {
        self.read(|transaction| {
            let repository = repository.to_string();
            let key = (repository.as_str(), tag.as_str());
            let found = transaction.open_table(TAGS)?.get(key)?;
            Ok(found.and_then(|found| {
                let (digest, validated) = found.value();
                Some((digest_of(digest)?, validated))
            }))
        })
    }

    /// Returns all links to this content.
    pub(in crate::store) fn links(&self, digest: &Digest) -> Result<Vec<Link>, IndexFailure> {
        self.read(|transaction| {
            let key = key_of(digest);
            let (first, last) = (*Link::KINDS.start(), *Link::KINDS.end());
            let all = (&*key, first, "", "")..(&*key, last + 1, "", "");
            let mut links = Vec::new();
            for found in transaction.open_table(LINKS)?.range(all)? {
                let (found, ()) = (found?.0, ());
                let (_, kind, repository, name) = found.value();
                links.extend(Link::from_key(kind, repository, name));
            }
            Ok(links)
        })
    }

    /// Returns up to `most` pieces of content in ascending order of time, after `from` (exclusive).
    pub(in crate::store) fn oldest(
        &self,
        order: Order,
        from: Option<&(i64, Digest)>,
        most: usize,
    ) -> Result<Vec<(i64, Digest)>, IndexFailure> {
        self.read(|transaction| {
            let table = transaction.open_table(order.table())?;
            let key = from.map(|(time, digest)| (*time, key_of(digest)));
            let range: Range<'_, (i64, &[u8]), ()> = match &key {
                Some((time, key)) => {
                    let after = (
                        std::ops::Bound::Excluded((*time, &**key)),
                        std::ops::Bound::Unbounded,
                    );
                    table.range::<(i64, &[u8])>(after)?
                }
                None => table.range::<(i64, &[u8])>(..)?,
            };
            let mut oldest = Vec::new();
            for found in range.take(most) {
                let found = found?.0;
                let (time, key) = found.value();
                oldest.extend(digest_of(key).map(|digest| (time, digest)));
            }
            Ok(oldest)
        })
    }

    /// Returns up to `most` pieces of content whose time is later than this one.
    pub(in crate::store) fn beyond(
        &self,
        order: Order,
        time: i64,
        most: usize,
    ) -> Result<Vec<Digest>, IndexFailure> {
        self.read(|transaction| {
            let table = transaction.open_table(order.table())?;
            let beyond: (i64, &[u8]) = (time.saturating_add(1), &[]);
            let mut found = Vec::new();
            for entry in table.range::<(i64, &[u8])>(beyond..)?.take(most) {
                found.extend(digest_of(entry?.0.value().1));
            }
            Ok(found)
        })
    }

    /// Returns up to `most` digests with an expiry of Distribution.
    pub(in crate::store) fn imported(&self, most: usize) -> Result<Vec<(Digest, i64)>, IndexFailure> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(IMPORTED)?.iter()?.take(most) {
                let (key, expires) = entry?;
                found.extend(digest_of(key.value()).map(|digest| (digest, expires.value())));
            }
            Ok(found)
        })
    }

    /// Visits every link with its content, in the order of digests.
    pub(in crate::store) fn each_link<E: From<IndexFailure>>(
        &self,
        mut visit: impl FnMut(&Digest, &Link, IndexEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        self.read(|transaction| {
            let content = transaction.open_table(CONTENT)?;
            for link in transaction.open_table(LINKS)?.iter()? {
                let link = link?.0;
                let (key, kind, repository, name) = link.value();
                let found = content.get(key)?.map(|found| IndexEntry::from(found.value()));
                let link = Link::from_key(kind, repository, name);
                if let (Some(entry), Some(link), Some(digest)) = (found, link, digest_of(key))
                    && let Err(error) = visit(&digest, &link, entry)
                {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })?
    }

    /// Visits every tag whose manifest is there: `host/repository` and tag, as they were written, the key of the manifest,
    /// the last validation, and the entry of the manifest.
    pub(in crate::store) fn each_tag(
        &self,
        mut visit: impl FnMut((&str, &str), &[u8], i64, IndexEntry),
    ) -> Result<(), IndexFailure> {
        self.read(|transaction| {
            let content = transaction.open_table(CONTENT)?;
            for tag in transaction.open_table(TAGS)?.iter()? {
                let (name, target) = tag?;
                let (key, validated) = target.value();
                if let Some(found) = content.get(key)? {
                    visit(name.value(), key, validated, found.value().into());
                }
            }
            Ok(())
        })
    }

    /// Returns the pulls of the manifests with these keys, in their order.
    pub(in crate::store) fn pulls<'k>(
        &self,
        keys: impl Iterator<Item = &'k [u8]>,
    ) -> Result<Vec<u64>, IndexFailure> {
        self.read(|transaction| {
            let table = transaction.open_table(PULLS)?;
            keys.map(|key| Ok(table.get(key)?.map_or(0, |found| found.value())))
                .collect()
        })
    }

    /// Returns whether the bucket has content (`None`), or a link to it.
    pub(in crate::store) fn is_kept(
        &self,
        digest: &Digest,
        link: Option<&Link>,
    ) -> Result<bool, IndexFailure> {
        self.read(|transaction| {
            let digest = key_of(digest);
            let repository = link.map(|link| link.repository().to_string()).unwrap_or_default();
            let (kind, name) = link.map_or((DATA, ""), |link| (link.kind(), link.name()));
            let key = (&*digest, kind, repository.as_str(), name);
            Ok(transaction.open_table(KEPT)?.get(key)?.is_some())
        })
    }

    /// Returns the state of content and a link to it.
    pub(in crate::store) fn upload_state(
        &self,
        digest: &Digest,
        link: &Link,
    ) -> Result<UploadState, IndexFailure> {
        self.read(|transaction| {
            let (digest, repository) = (key_of(digest), link.repository().to_string());
            let key = (&*digest, link.kind(), repository.as_str(), link.name());
            let (kept, links) = (transaction.open_table(KEPT)?, transaction.open_table(LINKS)?);
            if kept.get(key)?.is_some() && kept.get((&*digest, DATA, "", ""))?.is_some() {
                return Ok(UploadState::Stored);
            }
            let content = transaction.open_table(CONTENT)?.get(&*digest)?;
            let is_linked = links.get(key)?.is_some();
            Ok(if content.is_some() && is_linked {
                UploadState::Pending
            } else {
                UploadState::Absent
            })
        })
    }

    /// Returns up to `most` links that the bucket lacks, or whose content it lacks.
    pub(in crate::store) fn not_kept(&self, most: usize) -> Result<Vec<(Digest, Link)>, IndexFailure> {
        self.read(|transaction| {
            let (kept, content) = (transaction.open_table(KEPT)?, transaction.open_table(CONTENT)?);
            let mut found = Vec::new();
            for row in transaction.open_table(LINKS)?.iter()? {
                let row = row?.0;
                let key = row.value();
                let is_kept = kept.get(key)?.is_some() && kept.get((key.0, DATA, "", ""))?.is_some();
                if is_kept || content.get(key.0)?.is_none() {
                    continue;
                }
                found.extend(digest_of(key.0).zip(Link::from_key(key.1, key.2, key.3)));
                if found.len() >= most {
                    break;
                }
            }
            Ok(found)
        })
    }

    /// Returns the fingerprint of the bucket that the index is about; 0 before there was one.
    pub(in crate::store) fn bucket(&self) -> Result<u64, IndexFailure> {
        self.read(|transaction| meta(&transaction, BUCKET))
    }

    /// Returns the content of a shard that this server uploaded to the bucket, with the times of the uploads and the
    /// links that the bucket has; up to `most`. The shard is the first byte of the hash.
    pub(in crate::store) fn uploaded(
        &self,
        shard: u8,
        most: usize,
    ) -> Result<Vec<UploadedRow>, IndexFailure> {
        self.read(|transaction| {
            let (content, kept) = (transaction.open_table(CONTENT)?, transaction.open_table(KEPT)?);
            let uploaded = transaction.open_table(UPLOADED)?;
            let mut found = Vec::new();
            for algorithm in [0, 1] {
                let (first, last) = (
                    [algorithm, shard],
                    [[algorithm, shard].as_slice(), &[u8::MAX; 65]].concat(),
                );
                for row in uploaded.range(first.as_slice()..last.as_slice())? {
                    let (key, at) = row?;
                    let key = key.value();
                    let Some((digest, entry)) = digest_of(key).zip(content.get(key)?) else {
                        continue;
                    };
                    let mut links = Vec::new();
                    for row in kept.range((key, 0, "", "")..(key, DATA, "", ""))? {
                        let row = row?.0;
                        let (_, kind, repository, name) = row.value();
                        links.extend(Link::from_key(kind, repository, name));
                    }
                    found.push((digest, entry.value().into(), at.value(), links));
                    if found.len() >= most {
                        return Ok(found);
                    }
                }
            }
            Ok(found)
        })
    }

    /// Returns the uploads in parts that have not ended, with the keys of their objects.
    pub(in crate::store) fn open_uploads(&self) -> Result<Vec<(String, String)>, IndexFailure> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for row in transaction.open_table(UPLOADS)?.iter()? {
                let (id, key) = row?;
                found.push((id.value().to_owned(), key.value().to_owned()));
            }
            Ok(found)
        })
    }

    /// Returns the samples of the server's totals with their times in ms since 1970, the oldest first.
    pub(in crate::store) fn samples(&self) -> Result<Vec<(i64, Vec<u8>)>, IndexFailure> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for row in transaction.open_table(SAMPLES)?.iter()? {
                let (at, sample) = row?;
                found.push((at.value(), sample.value().to_vec()));
            }
            Ok(found)
        })
    }

    /// Returns the number of bytes and of pieces of content.
    pub(in crate::store) fn totals(&self) -> Result<(u64, u64), IndexFailure> {
        self.read(|transaction| Ok((meta(&transaction, BYTES)?, meta(&transaction, BLOBS)?)))
    }

    /// Returns `true` once all files are known.
    pub(in crate::store) fn is_complete(&self) -> bool {
        self.read(|transaction| meta(&transaction, COMPLETE))
            .is_ok_and(|complete| complete == 1)
    }

    /// Returns the fingerprint of `scheduler-state.json` when this server last read or wrote it; 0 if it never did.
    pub(in crate::store) fn state_seen(&self) -> Result<u64, IndexFailure> {
        self.read(|transaction| meta(&transaction, STATE_SEEN))
    }
}

fn meta(transaction: &ReadTransaction, name: &str) -> Result<u64, redb::Error> {
    let found = transaction.open_table(META)?.get(name)?;
    Ok(found.map_or(0, |found| found.value()))
}
