//! The tags of a repository in the bucket. They are listed only while the registry cannot be asked: no other request of a
//! client causes a LIST.

use std::collections::BTreeSet;

use object_store::path::Path as Key;

use super::listing::BucketPageList;
use super::read::WaitLimit;
use super::{Bucket, error::Error};
use crate::name::{Repository, Tag};

/// The most tags that are listed.
const MAX_TAGS: usize = 10_000;
/// The most keys that are read for them: a tag has one for each digest that it pointed to.
const MAX_KEYS: usize = 50_000;

impl Bucket {
    /// Returns the tags that a repository has in the bucket, in their order; none if the bucket fails.
    pub(crate) async fn tags(&self, repository: &Repository) -> Vec<String> {
        match self.list_tags(repository).await {
            Ok(tags) => tags,
            Err(error) => {
                tracing::debug!(%repository, %error, "the tags of the bucket cannot be listed");
                Vec::new()
            }
        }
    }

    async fn list_tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        let keys = self.keys(WaitLimit::Long).await?;
        let prefix = keys.tags(repository);
        let _turn = self.listing_turn().await?;
        self.list_breaker.check()?;
        let listed = self.attempted(WaitLimit::Long, |client| {
            let prefix = prefix.clone();
            async move {
                let (mut tags, mut seen) = (BTreeSet::new(), 0);
                let mut listing = BucketPageList::new(&prefix);
                while let Some(objects) = listing.next(&client).await? {
                    seen += objects.len();
                    tags.extend(
                        objects
                            .iter()
                            .filter_map(|object| tag_at(&object.location, &prefix)),
                    );
                    if seen >= MAX_KEYS || tags.len() >= MAX_TAGS {
                        break;
                    }
                }
                Ok(tags)
            }
        });
        let listed = listed.await;
        self.list_breaker.record(&listed);
        Ok(listed?.into_iter().take(MAX_TAGS).collect())
    }
}

/// Returns the tag whose current link has this key.
fn tag_at(key: &Key, prefix: &Key) -> Option<String> {
    let parts: Vec<_> = key.prefix_match(prefix)?.collect();
    let [tag, current, link] = parts.as_slice() else {
        return None;
    };
    let is_tag =
        (current.as_ref(), link.as_ref()) == ("current", "link") && tag.as_ref().parse::<Tag>().is_ok();
    is_tag.then(|| tag.as_ref().to_owned())
}
