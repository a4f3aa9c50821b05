//! Blobs: found through the link of a repository, admitted as a whole.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::metrics::EvictionReason;
use crate::name::{Host, Repository};
use crate::store::durable::{self, on};
use crate::store::hot_cache::OpenBlob;
use crate::store::index::{IndexEntry, Link, Op};
use crate::store::{Announcement, Blob, Error, Inner, StageError, Staged, Store, link};

/// Blobs up to this length are held in memory while their files are open: configurations, and many a layer. There are
/// at most a thousand.
const SMALL: usize = 16 * 1024;

/// The time from the admission of a blob until its file is in its place, in ms: a rename changes the metadata of a file.
/// A change in this time is found while the file is open.
const PLACING_MS: i64 = 2_000;

/// The result of looking up a blob for a repository.
#[derive(Debug)]
pub enum Found {
    /// The blob, by the repository's link.
    Linked(Blob),
    /// The blob, fetched from this upstream for another repository. No client may get it before upstream permitted it
    /// for this one.
    Unlinked(Blob),
    /// No blob that this upstream sent. The content may be there all the same: what another upstream sent proves nothing
    /// about this one, whose permission could be an invention.
    Missing,
}

impl Store {
    /// Returns the blob if this repository has a link to it, and counts the use.
    ///
    /// Visible damage (a wrong length, a directory in its place) drops the blob, and is a miss.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<Blob>, Error> {
        if let Some(blob) = self.open_blob(repository, digest) {
            return Ok(Some(blob));
        }
        let (repository, digest) = (repository.clone(), digest.clone());
        self.verified(move |inner| inner.linked(&repository, &digest))
            .await
    }

    /// Returns a linked blob whose file is open.
    fn open_blob(&self, repository: &Repository, digest: &Digest) -> Option<Blob> {
        let inner = &self.inner;
        inner.hot_cache.blob(repository, digest, inner.clock.now())
    }

    /// Returns the blob by the repository's link, else by that of another repository of the same upstream. Both are one
    /// visit to the disk, as each costs a miss two switches of threads. Counts as a use where there is a link.
    pub async fn find(&self, repository: &Repository, digest: &Digest) -> Result<Found, Error> {
        if let Some(blob) = self.open_blob(repository, digest) {
            return Ok(Found::Linked(blob));
        }
        let (repository, digest) = (repository.clone(), digest.clone());
        self.verified(move |inner| {
            let linked = match inner.linked(&repository, &digest) {
                Ok(Some(blob)) => return Ok(Found::Linked(blob)),
                Err(Error::Unverified(target)) => return Err(Error::Unverified(target)),
                linked => linked,
            };
            if !inner.has_link_of(&repository.host, &digest)? {
                return linked.map(|_| Found::Missing);
            }
            match inner.find(&digest)? {
                Some((_, blob)) => Ok(Found::Unlinked(blob)),
                None => linked.map(|_| Found::Missing),
            }
        })
        .await
    }

    /// Gives a repository access to content that is there, now that upstream said yes for it. Content
    /// that went meanwhile gets no link, and is a miss.
    pub async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), StageError> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.blocking(move |inner| {
            if inner.is_readonly() {
                return Err(StageError::ReadOnly);
            }
            let _one = inner.stripe(&digest);
            if !inner.is_sound_on_disk(&digest) {
                return Ok(());
            }
            inner.add_link(&digest, &Link::Layer(repository, digest.clone()))
        })
        .await
    }

    /// Begins a blob that is fetched from this upstream, which announced `size` bytes. The announcement decides only
    /// whether the blob could ever fit: room is taken, and content evicted, as bytes come.
    ///
    /// # Errors
    /// [`StageError::NoRoom`] where evicting everything would not make room.
    pub async fn stage(
        &self,
        origin: &Host,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Staged, StageError> {
        let announcement = Announcement {
            size,
            ..Announcement::default()
        };
        self.stage_announced(origin, digest, announcement).await
    }

    /// Begins a blob of which sizes are known.
    ///
    /// # Errors
    /// [`StageError::NoRoom`] where there is none.
    pub(crate) async fn stage_announced(
        &self,
        origin: &Host,
        digest: &Digest,
        announcement: Announcement,
    ) -> Result<Staged, StageError> {
        let (store, origin, digest) = (self.clone(), origin.clone(), digest.clone());
        self.blocking(move |_| Staged::begin(store, &origin, &digest, announcement))
            .await
    }

    /// Drops content that could not be read. Readers that have it open continue.
    pub async fn drop_blob(&self, digest: &Digest) {
        let digest = digest.clone();
        let dropped = self
            .blocking(move |inner| inner.remove(&digest, EvictionReason::Damaged))
            .await;
        if let Err(error) = dropped {
            tracing::error!(%error, "damaged content could not be removed");
        }
    }

    /// Drops an entry of the index without its file. Content that was placed since, for which the entry was written first,
    /// stays.
    pub(crate) async fn drop_without_file(&self, digest: &Digest) -> Result<(), Error> {
        let digest = digest.clone();
        self.blocking(move |inner| inner.remove_unless(&digest, || inner.is_sound_on_disk(&digest)))
            .await
    }
}

impl Inner {
    /// Opens content through a link, from the disk.
    fn linked(&self, repository: &Repository, digest: &Digest) -> Result<Option<Blob>, Error> {
        let Some(target) = link::read_named(&self.layout.layer_link(repository, digest), digest)? else {
            return Ok(None);
        };
        let Some((open, blob)) = self.find(&target)? else {
            return Ok(None);
        };
        self.hot_cache.link(repository, digest, &open, self.clock.now());
        Ok(Some(blob))
    }

    /// Returns whether a repository of this upstream has a link to the content.
    fn has_link_of(&self, host: &Host, digest: &Digest) -> Result<bool, Error> {
        let links = self.index.links(digest)?;
        Ok(links.iter().any(|link| link.repository().host == *host))
    }

    /// Returns content by its digest: an open blob, or else from the disk. Drops damaged content.
    ///
    /// # Errors
    /// [`Error::Unverified`] for content that was found on the disk, and is too large to be hashed whenever it is opened.
    fn find(&self, digest: &Digest) -> Result<Option<(Arc<OpenBlob>, Blob)>, Error> {
        if let Some(open) = self.hot_cache.open_blob(digest, self.clock.now()) {
            return Ok(Some(open));
        }
        let entry = self.index.get(digest)?;
        let path = self.layout.blob_data(digest);
        match durable::open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(on("inspect", &path))?;
                if is_sound(digest, &found, entry.map(|entry| entry.size))
                    && let Ok(bytes) = read_small(digest, &file, found.len())
                {
                    let (file, size) = (Arc::new(file), found.len());
                    if entry.is_none() {
                        self.discover(digest, size)?;
                    }
                    if bytes.is_none() && entry.is_none_or(|entry| self.is_unverified(digest, &entry, &found))
                    {
                        return Err(Error::Unverified(digest.clone()));
                    }
                    let blob = Blob { file, size, bytes };
                    let open = self.hot_cache.opened(digest, &blob, self.clock.now());
                    return Ok(Some((open, blob)));
                }
            }
            Err(error) if !is_damage(&error) => return Err(on("open", &path)(error).into()),
            Err(_) if entry.is_none() => return Ok(None),
            Err(_) => {}
        }
        tracing::warn!(%digest, "content dropped: it is missing, or has the wrong size or kind");
        self.remove_unless(digest, || self.is_sound_on_disk(digest))?;
        Ok(None)
    }

    /// Returns `true` for content that was never hashed, or whose file was changed since.
    pub(super) fn is_unverified(&self, digest: &Digest, entry: &IndexEntry, found: &Metadata) -> bool {
        let is_changed = changed_ms(found) > entry.verified.max(entry.fetched);
        entry.verified == 0 || is_changed || self.hot_cache.is_changed(digest)
    }

    /// Counts content that the index does not know.
    fn discover(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        let (digest, now) = (digest.clone(), self.clock.now().as_millisecond());
        let added = self.index.write(vec![Op::Discover { digest, size, now }])?;
        self.space.add(added.bytes, added.blobs);
        Ok(())
    }

    fn is_sound_on_disk(&self, digest: &Digest) -> bool {
        let size = self.index.get(digest).ok().flatten().map(|entry| entry.size);
        durable::open(&self.layout.blob_data(digest)).is_ok_and(|file| {
            file.metadata().is_ok_and(|found| {
                is_sound(digest, &found, size) && read_small(digest, &file, found.len()).is_ok()
            })
        })
    }

    /// Moves a verified blob to its place, and adds its links.
    pub(super) fn admit(&self, staged: Staged, links: &[Link], more: Vec<Op>) -> Result<Blob, StageError> {
        let finished = staged.finish()?;
        let (digest, size) = (finished.digest.clone(), finished.blob.size);
        let now = self.clock.now();
        let one = self.stripe(&digest);
        let before = self.index.get(&digest)?;
        let admitted = Op::Admit {
            digest: digest.clone(),
            size,
            now: now.as_millisecond(),
        };
        let linked = links.iter().map(|link| Op::Link(digest.clone(), link.clone()));
        // The entry precedes the file: a crash between them leaves nothing that is not counted.
        self.index
            .write(std::iter::once(admitted).chain(linked).chain(more).collect())?;
        // Readers of the replaced file keep it open.
        self.hot_cache.forget(&digest);
        if let Some(before) = before {
            self.space.sub(before.size);
        }
        let mut blob = match finished.place(self) {
            Ok(blob) => blob,
            Err(error) => {
                self.space.add(size, 1);
                self.remove_under(&one, &digest)?;
                return Err(error.into());
            }
        };
        // It was verified already. What can't be read is a matter of the next hit.
        blob.bytes = read_small(&digest, &blob.file, size).unwrap_or_default();
        let open = self.hot_cache.opened(&digest, &blob, now);
        for link in links {
            self.write_link(&digest, link)?;
            if let Link::Layer(repository, _) = link {
                self.hot_cache.link(repository, &digest, &open, now);
            }
        }
        Ok(blob)
    }

    /// Adds a link to content. Call it under the content's stripe.
    pub(super) fn add_link(&self, digest: &Digest, link: &Link) -> Result<(), StageError> {
        self.index.write(vec![Op::Link(digest.clone(), link.clone())])?;
        self.write_link(digest, link)
    }

    fn write_link(&self, digest: &Digest, link: &Link) -> Result<(), StageError> {
        let scratch = self.root.scratch()?;
        let path = match link {
            Link::Layer(repository, name) => self.layout.layer_link(repository, name),
            Link::Revision(repository, name) => self.layout.revision_link(repository, name),
            Link::Tag(repository, tag) => {
                let path = self.layout.tag_index(repository, tag, digest);
                link::write(scratch, &path, digest)?;
                self.layout.tag_current(repository, tag)
            }
        };
        link::write(scratch, &path, digest)?;
        self.note_pin(digest, link);
        self.notify(digest, link);
        Ok(())
    }
}

/// Reads a small blob; `None` for a larger one.
///
/// # Errors
/// The blob cannot be read, or does not match its digest.
fn read_small(digest: &Digest, file: &File, size: u64) -> std::io::Result<Option<Bytes>> {
    let Some(length) = usize::try_from(size).ok().filter(|length| *length <= SMALL) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    if Digest::compute(digest.algorithm(), &bytes) != *digest {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(Some(bytes.into()))
}

/// Returns the time of the last change of a file, in ms since 1970: of its content or, less the time that the server
/// itself may take to put it in its place, of its metadata. No program can set that one back.
pub(super) fn changed_ms(found: &Metadata) -> i64 {
    let written = found.mtime() * 1000 + found.mtime_nsec() / 1_000_000;
    let placed = found.ctime() * 1000 + found.ctime_nsec() / 1_000_000;
    written.max(placed.saturating_sub(PLACING_MS))
}

/// Returns `true` if only the hash could still be wrong.
fn is_sound(digest: &Digest, found: &Metadata, expected: Option<u64>) -> bool {
    let plausible = found.len() > 0 || *digest == Digest::compute(digest.algorithm(), b"");
    found.is_file() && plausible && expected.is_none_or(|size| size == found.len())
}

/// Returns `true` if the file is missing, or not a regular file.
pub(super) fn is_damage(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
    )
}
