//! The tags of a repository in the bucket. They are listed only while the registry cannot be asked: no other request of a
//! client causes a LIST.

use std::collections::BTreeSet;

use futures::TryStreamExt as _;

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
        let _turn = self.turn().await?;
        let listed = self.tried(WaitLimit::Long, |client| {
            let prefix = prefix.clone();
            async move {
                let (mut tags, mut seen) = (BTreeSet::new(), 0);
                let mut objects = client.objects().list(Some(&prefix));
                while let Some(object) = objects.try_next().await? {
                    seen += 1;
                    let parts = object.location.prefix_match(&prefix);
                    let parts: Vec<_> = parts.into_iter().flatten().collect();
                    if let [tag, current, link] = parts.as_slice()
                        && (current.as_ref(), link.as_ref()) == ("current", "link")
                        && tag.as_ref().parse::<Tag>().is_ok()
                    {
                        tags.insert(tag.as_ref().to_owned());
                    }
                    if seen == MAX_KEYS || tags.len() == MAX_TAGS {
                        break;
                    }
                }
                Ok(tags)
            }
        });
        Ok(listed.await?.into_iter().collect())
    }
}
