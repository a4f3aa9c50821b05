//! Requests of the background: objects of the ledger, presence of content, deletion. None is on the path of a request.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::path::Path as Key;
use object_store::{Attribute, AttributeValue, GetOptions, GetRange, ObjectMeta};

use super::error::Error;
use super::keys::{self, Keys};
use super::listing::BucketPageList;
use super::{Bucket, MAX_LINK, WaitLimit};
use crate::digest::Digest;
use crate::name::{Repository, Tag};
use crate::store::Link;

/// The time for the body of an object of the ledger.
const BODY: Duration = Duration::from_secs(30);
/// The name of the attribute of content that a mirror uploaded; stores differ in other characters than letters.
pub(super) const OWN: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("registrymirror"));

/// The name of the attribute of content that names the link that it was uploaded for. It counts as much as the link.
pub(super) const FIRST_LINK: Attribute =
    Attribute::Metadata(std::borrow::Cow::Borrowed("registrymirrorlink"));

/// Returns the value of [`FIRST_LINK`]; the one of a tag is that of its manifest.
pub(super) fn first_link(link: &Link) -> String {
    match link {
        Link::Layer(repository, _) => format!("layer:{repository}"),
        Link::Revision(repository, _) | Link::Tag(repository, _) => format!("revision:{repository}"),
    }
}

/// The content that the bucket has at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundContent {
    /// The size in bytes.
    pub(super) size: u64,
    /// The time of the upload, in ms since 1970.
    pub(super) modified: i64,
    /// A mirror uploaded it.
    pub(super) is_own: bool,
}

/// Content of a shard that a listing found.
pub(crate) struct BucketContent {
    /// The content.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The time of its upload, in ms since 1970.
    pub(crate) modified: i64,
}

impl Bucket {
    /// Returns the limit for the content that mirrors upload, in bytes.
    pub(crate) fn max_size(&self) -> Option<u64> {
        self.settings.max_size
    }

    /// Returns the ledger of a shard; `None` if the bucket has none.
    pub(crate) async fn ledger(&self, shard: u8, most: usize) -> Result<Option<Bytes>, Error> {
        self.small_object(&keys::ledger(&self.settings.root, shard), most)
            .await
    }

    /// Writes the ledger of a shard.
    pub(crate) async fn put_ledger(&self, shard: u8, text: Vec<u8>) -> Result<(), Error> {
        self.put(&keys::ledger(&self.settings.root, shard), text.into())
            .await
    }

    /// Returns the digest that a tag of the bucket points to.
    pub(crate) async fn current_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Digest>, Error> {
        let keys = self.keys(WaitLimit::Long).await?;
        let text = self.small_object(&keys.tag(repository, tag), MAX_LINK).await?;
        let digest = |text: Bytes| std::str::from_utf8(&text).ok()?.trim_end().parse().ok();
        Ok(text.and_then(digest))
    }

    /// Returns the bytes of content; `None` if the bucket does not have it, or more than `most` of it.
    pub(crate) async fn small_content(&self, digest: &Digest, most: usize) -> Result<Option<Bytes>, Error> {
        let keys = self.keys(WaitLimit::Long).await?;
        self.small_object(&keys.data(digest), most).await
    }

    /// Returns the content that the bucket has at a key, by one GET of its first byte.
    pub(super) async fn find_content(&self, key: &Key) -> Result<Option<FoundContent>, Error> {
        let first = GetOptions {
            range: Some(GetRange::Bounded(0..1)),
            ..GetOptions::default()
        };
        let found = self
            .sent(0, |client| {
                let (key, first) = (key.clone(), first.clone());
                async move { client.objects().get_opts(&key, first).await }
            })
            .await;
        match found {
            Ok(found) => Ok(Some(FoundContent {
                size: found.meta.size,
                modified: found.meta.last_modified.timestamp_millis(),
                is_own: found.attributes.get(&OWN).map(AttributeValue::as_ref) == Some("1"),
            })),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes content, and then the links to it; no client is redirected to it any more. A tag that points to other content
    /// by now stays.
    pub(crate) async fn delete_content(&self, all: &[(Digest, Vec<Link>)]) -> Result<(), Error> {
        let keys = self.keys(WaitLimit::Long).await?;
        let data = all.iter().map(|(digest, _)| keys.data(digest)).collect();
        let deleted = self.delete(data).await;
        for (digest, _) in all {
            self.recent.invalidate(digest);
            self.present.invalidate(digest).await;
        }
        deleted?;
        let mut links = Vec::new();
        for (digest, of_content) in all {
            for link in of_content {
                links.extend(self.keys_of_link(&keys, digest, link).await?);
            }
        }
        self.delete(links).await
    }

    async fn keys_of_link(&self, keys: &Keys, digest: &Digest, link: &Link) -> Result<Vec<Key>, Error> {
        Ok(match link {
            Link::Layer(repository, name) => vec![keys.layer(repository, name)],
            Link::Revision(repository, name) => vec![keys.revision(repository, name)],
            Link::Tag(repository, tag) => {
                let mut found = vec![keys.tag_index(repository, tag, digest)];
                if self.current_tag(repository, tag).await?.as_ref() == Some(digest) {
                    found.push(keys.tag(repository, tag));
                }
                found
            }
        })
    }

    /// Deletes objects, many by one request where the store can; one that is not there is no error.
    async fn delete(&self, keys: Vec<Key>) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        self.sent(0, |client| {
            let keys = stream::iter(keys.clone().into_iter().map(Ok)).boxed();
            async move {
                let mut deleted = client.objects().delete_stream(keys);
                while let Some(result) = deleted.next().await {
                    match result {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        })
        .await
    }

    /// Lists the content of a shard that mirrors uploaded, up to `most` and to the pages that a listing may
    /// have: a LIST, and a GET of the first byte of each piece.
    pub(crate) async fn list_own(&self, shard: u8, most: usize) -> Result<Vec<BucketContent>, Error> {
        let keys = self.keys(WaitLimit::Long).await?;
        let mut listing = BucketPageList::new(&keys.shard(shard));
        let mut found = Vec::new();
        while let Some(objects) = self.list_page(&mut listing).await? {
            for key in objects.into_iter().map(|object| object.location) {
                let digest = keys::digest_of_data(&key).filter(|digest| keys.data(digest) == key);
                let Some(digest) = digest else { continue };
                let content = self.find_content(&key).await?;
                if let Some(content) = content.filter(|content| content.is_own) {
                    found.push(BucketContent {
                        digest,
                        size: content.size,
                        modified: content.modified,
                    });
                }
                if found.len() >= most {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    async fn list_page(&self, listing: &mut BucketPageList) -> Result<Option<Vec<ObjectMeta>>, Error> {
        let _turn = self.listing_turn().await?;
        let client = self.client.load_full();
        match tokio::time::timeout(BODY, listing.next(&client)).await {
            Ok(page) => Ok(page?),
            Err(_) => Err(Error::unavailable("no answer to a listing")),
        }
    }

    /// Returns a small object; `None` if the bucket has none, or a larger one.
    async fn small_object(&self, key: &Key, most: usize) -> Result<Option<Bytes>, Error> {
        let found = self
            .sent(0, |client| {
                let key = key.clone();
                async move { client.objects().get_opts(&key, GetOptions::default()).await }
            })
            .await;
        let found = match found {
            Ok(found) => found,
            Err(Error::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        if found.meta.size > most as u64 {
            return Ok(None);
        }
        let mut chunks = found.into_stream();
        let body = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = chunks.try_next().await? {
                if body.len() + chunk.len() > most {
                    return Ok(None);
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Some(body.freeze()))
        };
        tokio::time::timeout(BODY, body)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("an object did not arrive whole")))
    }
}
