//! Changes of the index. Each can be applied twice, so a failed batch may be tried again; pulls alone would count twice.

use redb::{ReadableTable, Table, WriteTransaction};

use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::index::tables::{
    BLOBS, BUCKET, BY_FETCH, BY_USE, BYTES, COMPLETE, CONTENT, DATA, IMPORTED, KEPT, LINKS, Link,
    MEDIA_TYPES, META, PULLS, SAMPLES, STATE_SEEN, TAGS, UPLOADED, UPLOADS, key_of,
};

/// A day in ms.
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// One change.
#[derive(Clone, Debug)]
pub(in crate::store) enum Op {
    /// Content is about to be placed, verified.
    Admit { digest: Digest, size: u64, now: i64 },
    /// A manifest's `Content-Type`.
    MediaType(Digest, String),
    /// Content was found on disk, unverified. Changes nothing where it is known.
    Discover { digest: Digest, size: u64, now: i64 },
    /// A link to content was added.
    Link(Digest, Link),
    /// A link to content was removed.
    Unlink(Digest, Link),
    /// Content was removed, with all links to it.
    Remove(Digest),
    /// Content was used.
    Use(Digest, i64),
    /// Clients pulled this manifest so many times more.
    Pulled(Digest, u64),
    /// It was read and hashed.
    Verified(Digest, i64),
    /// Upstream confirmed a tag.
    Tag(Repository, Tag, Digest, i64),
    /// A tag is gone.
    Untag(Repository, Tag),
    /// The expiry that Distribution recorded. It has no effect if the content is absent, or if this server fetched it.
    Import {
        digest: Digest,
        expires: i64,
        since: i64,
    },
    /// Turns such an expiry into the fetch that it counted from.
    Resolve(Digest, i64),
    /// None of its times lies beyond this one: the clock was ahead then.
    NotAfter(Digest, i64),
    /// `true` if the index knows all files.
    Complete(bool),
    /// The fingerprint of `scheduler-state.json`.
    StateSeen(u64),
    /// The fingerprint of the bucket.
    Bucket(u64),
    /// Nothing is known of what the bucket has.
    ForgetKept,
    /// The bucket has content (`None`), or a link to it.
    Kept(Digest, Option<Link>),
    /// This server uploaded content to the bucket, at a time in ms since 1970.
    Uploaded(Digest, i64),
    /// The bucket has another version of a link, or none.
    NotKept(Digest, Link),
    /// An upload in parts began, for the object of this key.
    BeginUpload(String, String),
    /// An upload in parts ended.
    EndUpload(String),
    /// A sample of the server's totals, at a time in ms since 1970.
    Sample(i64, Vec<u8>),
}

/// The amounts that [`Op::Discover`] added to the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Added {
    pub(in crate::store) bytes: u64,
    pub(in crate::store) blobs: u64,
}

impl Op {
    /// Returns `true` if a file may exist only after this operation is on the disk.
    pub(super) fn must_last(&self) -> bool {
        !matches!(
            self,
            Self::Remove(_)
                | Self::Unlink(..)
                | Self::Untag(..)
                | Self::MediaType(..)
                | Self::Kept(..)
                | Self::Uploaded(..)
                | Self::EndUpload(_)
                | Self::Pulled(..)
                | Self::Sample(..)
        )
    }

    /// Returns `true` if the expiry state of Distribution has to follow.
    pub(super) fn moves_expiry(&self) -> bool {
        matches!(
            self,
            Self::Admit { .. }
                | Self::Discover { .. }
                | Self::Link(..)
                | Self::Unlink(..)
                | Self::Remove(_)
                | Self::Resolve(..)
                | Self::NotAfter(..)
        )
    }
}

struct Tables<'t> {
    content: Table<'t, &'static [u8], (u64, i64, i64, i64)>,
    by_use: Table<'t, (i64, &'static [u8]), ()>,
    by_fetch: Table<'t, (i64, &'static [u8]), ()>,
    meta: Table<'t, &'static str, u64>,
}

type Times = (u64, i64, i64, i64);

pub(super) fn apply(transaction: &WriteTransaction, ops: &[Op]) -> Result<Added, redb::Error> {
    let mut tables = Tables {
        content: transaction.open_table(CONTENT)?,
        by_use: transaction.open_table(BY_USE)?,
        by_fetch: transaction.open_table(BY_FETCH)?,
        meta: transaction.open_table(META)?,
    };
    let mut added = Added::default();
    for op in ops {
        match op {
            Op::Admit { digest, size, now } => tables.put(&key_of(digest), (*size, *now, *now, *now))?,
            Op::Discover { digest, size, now } => {
                let key = key_of(digest);
                if tables.get(&key)?.is_none() {
                    tables.put(&key, (*size, *now, *now, 0))?;
                    added.bytes += size;
                    added.blobs += 1;
                }
            }
            Op::Use(digest, now) => tables.change(digest, |(size, first, used, verified)| {
                (size, first, used.max(*now), verified)
            })?,
            Op::Verified(digest, now) => {
                tables.change(digest, |(size, first, used, _)| (size, first, used, *now))?;
            }
            Op::Resolve(digest, fetched) => {
                // A use since the take-over counts for itself.
                tables.change(digest, |(size, first, used, verified)| {
                    let used = if used > first { used } else { *fetched };
                    (size, *fetched, used, verified)
                })?;
                transaction.open_table(IMPORTED)?.remove(&*key_of(digest))?;
            }
            Op::NotAfter(digest, most) => tables.change(digest, |(size, first, used, verified)| {
                (size, first.min(*most), used.min(*most), verified.min(*most))
            })?,
            Op::Remove(digest) => tables.remove_all(transaction, digest)?,
            Op::Import {
                digest,
                expires,
                since,
            } => {
                let key = key_of(digest);
                // Fetched content is verified at the same time; found content was not.
                let found = tables.get(&key)?;
                if found.is_some_and(|(_, first, _, verified)| first != verified || first < *since) {
                    import(transaction, &key, *expires)?;
                }
            }
            Op::Complete(whether) => tables.set(COMPLETE, u64::from(*whether))?,
            Op::StateSeen(seen) => tables.set(STATE_SEEN, *seen)?,
            Op::Bucket(fingerprint) => tables.set(BUCKET, *fingerprint)?,
            Op::Pulled(digest, more) => tables.add_pulls(transaction, digest, *more)?,
            other => apply_names(transaction, other)?,
        }
    }
    Ok(added)
}

/// Applies an operation on links or tags.
fn apply_names(transaction: &WriteTransaction, op: &Op) -> Result<(), redb::Error> {
    match op {
        Op::MediaType(digest, media_type) => {
            transaction
                .open_table(MEDIA_TYPES)?
                .insert(&*key_of(digest), media_type.as_str())?;
        }
        Op::Link(digest, link) => {
            let (key, repository) = (key_of(digest), link.repository().to_string());
            let key = (&*key, link.kind(), repository.as_str(), link.name());
            transaction.open_table(LINKS)?.insert(key, ())?;
        }
        Op::Unlink(digest, link) => {
            let (key, repository) = (key_of(digest), link.repository().to_string());
            let key = (&*key, link.kind(), repository.as_str(), link.name());
            transaction.open_table(LINKS)?.remove(key)?;
        }
        Op::Tag(repository, tag, digest, validated) => {
            let (repository, digest) = (repository.to_string(), key_of(digest));
            let key = (repository.as_str(), tag.as_str());
            transaction
                .open_table(TAGS)?
                .insert(key, (&*digest, *validated))?;
        }
        Op::Untag(repository, tag) => {
            let repository = repository.to_string();
            transaction
                .open_table(TAGS)?
                .remove((repository.as_str(), tag.as_str()))?;
        }
        other => apply_kept(transaction, other)?,
    }
    Ok(())
}

/// Applies an operation on what the bucket has, or on the samples.
fn apply_kept(transaction: &WriteTransaction, op: &Op) -> Result<(), redb::Error> {
    match op {
        Op::Kept(digest, None) => {
            transaction
                .open_table(KEPT)?
                .insert((&*key_of(digest), DATA, "", ""), ())?;
        }
        Op::Kept(digest, Some(link)) => {
            let (key, repository) = (key_of(digest), link.repository().to_string());
            let key = (&*key, link.kind(), repository.as_str(), link.name());
            transaction.open_table(KEPT)?.insert(key, ())?;
        }
        Op::Uploaded(digest, at) => {
            transaction.open_table(UPLOADED)?.insert(&*key_of(digest), *at)?;
        }
        Op::NotKept(digest, link) => {
            let (key, repository) = (key_of(digest), link.repository().to_string());
            let key = (&*key, link.kind(), repository.as_str(), link.name());
            transaction.open_table(KEPT)?.remove(key)?;
        }
        Op::ForgetKept => {
            transaction.open_table(KEPT)?.retain(|_, ()| false)?;
            transaction.open_table(UPLOADS)?.retain(|_, _| false)?;
            transaction.open_table(UPLOADED)?.retain(|_, _| false)?;
        }
        Op::BeginUpload(id, key) => {
            transaction
                .open_table(UPLOADS)?
                .insert(id.as_str(), key.as_str())?;
        }
        Op::EndUpload(id) => {
            transaction.open_table(UPLOADS)?.remove(id.as_str())?;
        }
        Op::Sample(at, sample) => add_sample(transaction, *at, sample)?,
        _ => {}
    }
    Ok(())
}

/// Adds a sample. Of the samples older than a day the newest stays, which the others count from.
fn add_sample(transaction: &WriteTransaction, at: i64, sample: &[u8]) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(SAMPLES)?;
    table.insert(at, sample)?;
    let day_ago = at.saturating_sub(DAY_MS);
    let start = table
        .range(..=day_ago)?
        .next_back()
        .transpose()?
        .map(|(at, _)| at.value());
    if let Some(start) = start {
        table.retain_in(..start, |_, _| false)?;
    }
    Ok(())
}

/// Of the entries that name content, the latest counts.
fn import(transaction: &WriteTransaction, key: &[u8], expires: i64) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(IMPORTED)?;
    let later = table
        .get(key)?
        .map_or(expires, |found| found.value().max(expires));
    table.insert(key, later)?;
    Ok(())
}

fn remove_rest(transaction: &WriteTransaction, key: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(MEDIA_TYPES)?.remove(key)?;
    transaction.open_table(IMPORTED)?.remove(key)?;
    transaction.open_table(PULLS)?.remove(key)?;
    transaction.open_table(UPLOADED)?.remove(key)?;
    let (first, last) = (*Link::KINDS.start(), *Link::KINDS.end());
    let all = (key, first, "", "")..(key, last + 1, "", "");
    transaction.open_table(LINKS)?.retain_in(all, |_, ()| false)?;
    let all = (key, first, "", "")..=(key, DATA, "", "");
    transaction.open_table(KEPT)?.retain_in(all, |_, ()| false)?;
    Ok(())
}

impl Tables<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Times>, redb::Error> {
        Ok(self.content.get(key)?.map(|found| found.value()))
    }

    fn put(&mut self, key: &[u8], times: Times) -> Result<(), redb::Error> {
        self.remove(key)?;
        self.content.insert(key, times)?;
        self.by_fetch.insert((times.1, key), ())?;
        self.by_use.insert((times.2, key), ())?;
        self.count(times.0, 1)
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        let Some((size, first, used, _)) = self.content.remove(key)?.map(|found| found.value()) else {
            return Ok(());
        };
        self.by_fetch.remove((first, key))?;
        self.by_use.remove((used, key))?;
        self.count(size.wrapping_neg(), 1_u64.wrapping_neg())
    }

    /// Removes content with all that other tables have of it.
    fn remove_all(&mut self, transaction: &WriteTransaction, digest: &Digest) -> Result<(), redb::Error> {
        let key = key_of(digest);
        self.remove(&key)?;
        remove_rest(transaction, &key)
    }

    /// Adds to the pulls of a manifest, if it is still there.
    fn add_pulls(
        &self,
        transaction: &WriteTransaction,
        digest: &Digest,
        more: u64,
    ) -> Result<(), redb::Error> {
        let key = key_of(digest);
        if self.get(&key)?.is_some() {
            let mut table = transaction.open_table(PULLS)?;
            let before = table.get(&*key)?.map_or(0, |found| found.value());
            table.insert(&*key, before.saturating_add(more))?;
        }
        Ok(())
    }

    fn change(&mut self, digest: &Digest, change: impl FnOnce(Times) -> Times) -> Result<(), redb::Error> {
        let key = key_of(digest);
        match self.get(&key)? {
            Some(times) => self.put(&key, change(times)),
            None => Ok(()),
        }
    }

    /// Adds to the totals, modulo 2⁶⁴: what was added can be taken away.
    fn count(&mut self, bytes: u64, blobs: u64) -> Result<(), redb::Error> {
        for (name, more) in [(BYTES, bytes), (BLOBS, blobs)] {
            let before = self.meta.get(name)?.map_or(0, |found| found.value());
            self.meta.insert(name, before.wrapping_add(more))?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: u64) -> Result<(), redb::Error> {
        self.meta.insert(name, value)?;
        Ok(())
    }
}
