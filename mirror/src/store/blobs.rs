//! Blobs: found through a repository's link, admitted whole.

use std::fs::File;
use std::sync::Arc;

use crate::digest::Digest;
use crate::name::Repository;
use crate::store::durable::{IoError, on, prune, remove};
use crate::store::hits::OpenBlob;
use crate::store::{Blob, Error, Inner, StageError, Staged, Store, link};

impl Store {
    /// The blob, if this repository has a link to it. Counts as a use.
    ///
    /// Damage that shows (a wrong length, a directory in its place) drops it and is a miss.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<Blob>, Error> {
        if let Some(blob) = self.inner.hits.blob(repository, digest, self.inner.clock.now()) {
            return Ok(Some(blob));
        }
        let (repository, digest) = (repository.clone(), digest.clone());
        self.blocking(move |inner| inner.linked(&repository, &digest))
            .await
    }

    /// The blob, whatever repository it was fetched for. Nobody may get it before upstream said yes for
    /// the repository that they asked.
    pub async fn content(&self, digest: &Digest) -> Result<Option<Blob>, Error> {
        let digest = digest.clone();
        self.blocking(move |inner| Ok(inner.find(&digest)?.map(|open| open.blob().clone())))
            .await
    }

    /// Gives a repository access to content that is there, now that upstream said yes for it.
    pub async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), StageError> {
        let (repository, digest) = (repository.clone(), digest.clone());
        self.blocking(move |inner| {
            if inner.readonly {
                return Err(StageError::ReadOnly);
            }
            let _one = inner.stripe(&digest);
            inner.link_layer(&repository, &digest)
        })
        .await
    }

    /// Room for a blob that is about to be fetched, evicting what was not used for longest.
    ///
    /// `size` is what upstream announced; without it room is taken in steps.
    pub async fn stage(&self, digest: &Digest, size: Option<u64>) -> Result<Staged, StageError> {
        let (store, digest) = (self.clone(), digest.clone());
        self.blocking(move |_| Staged::begin(store, &digest, size)).await
    }

    /// Forgets content that could not be read. Whoever has it open may go on.
    pub async fn drop_blob(&self, digest: &Digest) {
        let digest = digest.clone();
        let dropped = self.blocking(move |inner| inner.remove(&digest)).await;
        if let Err(error) = dropped {
            tracing::error!(%error, "damaged content could not be removed");
        }
    }
}

impl Inner {
    /// Content by link, from disk.
    fn linked(&self, repository: &Repository, digest: &Digest) -> Result<Option<Blob>, Error> {
        let Some(target) = link::read(&self.layout.layer_link(repository, digest))? else {
            return Ok(None);
        };
        let found = self.find(&target)?;
        Ok(found.map(|open| self.hits.link(repository, digest, &open, self.clock.now())))
    }

    /// Content by digest: what is open, else from disk.
    pub(super) fn find(&self, digest: &Digest) -> Result<Option<Arc<OpenBlob>>, Error> {
        if let Some(open) = self.hits.open_blob(digest) {
            return Ok(Some(open));
        }
        let path = self.layout.blob_data(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(on("open", &path)(error).into()),
        };
        let found = file.metadata().map_err(on("inspect", &path))?;
        if !found.is_file() || !self.has_right_size(digest, found.len()) {
            tracing::warn!(%digest, "damaged content dropped: wrong size or kind");
            self.remove(digest)?;
            return Ok(None);
        }
        let blob = Blob {
            file: Arc::new(file),
            size: found.len(),
        };
        Ok(Some(self.hits.opened(digest, &blob, self.clock.now())))
    }

    fn has_right_size(&self, digest: &Digest, size: u64) -> bool {
        size > 0 || *digest == Digest::of(digest.algorithm(), b"")
    }

    /// Moves a verified blob to its place and links it.
    pub(super) fn admit(&self, staged: Staged, repositories: &[Repository]) -> Result<Blob, StageError> {
        let finished = staged.finish()?;
        let digest = finished.digest.clone();
        let _one = self.stripe(&digest);
        // Readers of what is replaced keep their file.
        self.hits.forget(&digest);
        let blob = finished.place(self)?;
        let open = self.hits.opened(&digest, &blob, self.clock.now());
        for repository in repositories {
            self.link_layer(repository, &digest)?;
            self.hits.link(repository, &digest, &open, self.clock.now());
        }
        Ok(blob)
    }

    fn link_layer(&self, repository: &Repository, digest: &Digest) -> Result<(), StageError> {
        let path = self.layout.layer_link(repository, digest);
        Ok(link::write(&self.scratch, &path, digest)?)
    }

    /// Removes content.
    pub(super) fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let _one = self.stripe(digest);
        self.hits.forget(digest);
        self.remove_data(digest)?;
        Ok(())
    }

    fn remove_data(&self, digest: &Digest) -> Result<bool, IoError> {
        let data = self.layout.blob_data(digest);
        let removed = remove(&data)?;
        if let Some(directory) = data.parent() {
            prune(directory, &self.layout.blobs());
        }
        Ok(removed)
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}
