//! Tags: links that move, and when upstream last confirmed them.

use std::io::ErrorKind;
use std::time::Duration;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::durable::{self, on};
use crate::store::index::{Link, Op};
use crate::store::{CachedTag, Error, Inner, StageError, Store, link};

impl Store {
    /// Returns the digest of a tag at its last validation.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<CachedTag>, Error> {
        if let Some(cached) = self.inner.hot_cache.tag(repository, tag) {
            return Ok(Some(cached));
        }
        let (repository, tag) = (repository.clone(), tag.clone());
        self.blocking(move |inner| inner.load_tag(&repository, &tag))
            .await
    }

    /// Upstream just said that a tag points to this digest.
    pub async fn put_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), StageError> {
        self.put_tag_of_age(repository, tag, digest, Duration::ZERO).await
    }

    /// Stores the digest of a tag that upstream confirmed `age` ago.
    pub(crate) async fn put_tag_of_age(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        age: Duration,
    ) -> Result<(), StageError> {
        let validated = self.inner.clock.now();
        let validated = validated.checked_sub(age).unwrap_or(validated);
        let cached = self.inner.hot_cache.tag(repository, tag);
        if cached.is_some_and(|cached| cached.digest == *digest) {
            self.inner.confirm(repository, tag, digest, validated);
            return Ok(());
        }
        let (repository, tag, digest) = (repository.clone(), tag.clone(), digest.clone());
        self.blocking(move |inner| inner.save_tag(&repository, &tag, &digest, validated))
            .await
    }

    /// Records the digest that the bucket has for a tag, which no upstream confirmed: the tag may be served stale, and is
    /// never fresh.
    pub(crate) async fn put_unproven_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), StageError> {
        let (repository, tag, digest) = (repository.clone(), tag.clone(), digest.clone());
        self.blocking(move |inner| {
            if inner.is_readonly() {
                return Err(StageError::ReadOnly);
            }
            let _one = inner.stripe(&digest);
            // A tag that an upstream named meanwhile takes precedence.
            if link::read(&inner.layout.tag_current(&repository, &tag))?.is_some() {
                return Ok(());
            }
            inner.add_link(&digest, &Link::Tag(repository, tag))
        })
        .await
    }

    /// The tags cached of a repository, sorted.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        let repository = repository.clone();
        self.blocking(move |inner| inner.list_tags(&repository)).await
    }
}

impl Inner {
    fn load_tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<CachedTag>, Error> {
        let Some(digest) = link::read(&self.layout.tag_current(repository, tag))? else {
            return Ok(None);
        };
        let known = self
            .index
            .tag(repository, tag)?
            .filter(|(known, _)| *known == digest);
        let validated = known.and_then(|(_, ms)| Timestamp::from_millisecond(ms).ok());
        let cached = CachedTag {
            digest,
            validated: validated.unwrap_or(self.opened),
            proven: validated.is_some(),
        };
        self.hot_cache.hold_tag(repository, tag, cached.clone());
        Ok(Some(cached))
    }

    fn save_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        validated: Timestamp,
    ) -> Result<(), StageError> {
        if self.is_readonly() {
            return Err(StageError::ReadOnly);
        }
        let _one = self.stripe(digest);
        let current = link::read(&self.layout.tag_current(repository, tag))?;
        if current.as_ref() != Some(digest) {
            self.hot_cache.drop_tag(repository, tag);
            let at = validated.as_millisecond();
            let moved = Op::Tag(repository.clone(), tag.clone(), digest.clone(), at);
            let link = Link::Tag(repository.clone(), tag.clone());
            self.index.write(vec![moved, Op::NotKept(digest.clone(), link)])?;
            self.add_link(digest, &Link::Tag(repository.clone(), tag.clone()))?;
        }
        self.confirm(repository, tag, digest, validated);
        Ok(())
    }

    /// The tag has not moved: only memory has to know at once.
    fn confirm(&self, repository: &Repository, tag: &Tag, digest: &Digest, validated: Timestamp) {
        self.hot_cache.confirm(Op::Tag(
            repository.clone(),
            tag.clone(),
            digest.clone(),
            validated.as_millisecond(),
        ));
        let cached = CachedTag {
            digest: digest.clone(),
            validated,
            proven: true,
        };
        self.hot_cache.hold_tag(repository, tag, cached);
    }

    pub(super) fn list_tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        let directory = self.layout.tags(repository);
        let entries = match durable::list(&directory) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(on("list", &directory)(error).into()),
        };
        let mut tags = Vec::new();
        for entry in entries {
            let name = entry.map_err(on("list", &directory))?.file_name();
            let Some(tag) = name.to_str().and_then(|name| name.parse::<Tag>().ok()) else {
                continue;
            };
            if link::read(&self.layout.tag_current(repository, &tag))?.is_some() {
                tags.push(tag.as_str().to_owned());
            }
        }
        tags.sort_unstable();
        Ok(tags)
    }
}
