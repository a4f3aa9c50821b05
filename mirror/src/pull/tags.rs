//! Lists of tags and repositories, page by page (distribution-spec, "Listing Tags").

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::refusals::UNCACHED;
use super::{Pull, Served, unreadable};
use crate::client_address::ClientAddress;
use crate::json::MAX_ENTRIES;
use crate::name::Repository;
use crate::pull_error::{PullError, RequestedContent};

/// The place of a list of tags that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TagSource {
    /// The cache.
    Cache,
    /// The bucket.
    Bucket,
}

/// One page of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// In lexical order where we made the page; else as upstream ordered them.
    pub(crate) names: Vec<String>,
    /// The query of the next page.
    pub(crate) next: Option<String>,
}

/// The requested part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// At most so many names.
    pub(crate) n: Option<usize>,
    /// Only names after this one.
    pub(crate) last: Option<String>,
}

impl Pull {
    /// Returns the tags of a repository from the upstream; while it fails or is not asked, those of the cache and the
    /// bucket.
    pub(crate) async fn tags(
        self: &Arc<Self>,
        repository: &Repository,
        query: &str,
        window: &Window,
        peer: &str,
    ) -> Result<Served<Page>, PullError> {
        if window.n == Some(0) {
            return Ok(Served::hit(Page::default()));
        }
        let _turn = self.list_turn(&repository.host, peer).await?;
        let cached = self.cached_tags(repository).await;
        if self.live().cache.offline {
            let kept = self.kept_tags(repository, &cached, peer).await;
            if !kept.is_empty() {
                return Ok(Served::hit(window.page_of(kept.iter())));
            }
        }
        let asked = self.ask_tags(repository, query, window, peer);
        if self.is_revoked(repository) {
            return Ok(Served::miss(asked.await?));
        }
        let wait = if cached.is_empty() {
            Duration::MAX
        } else {
            self.revalidation_wait(repository)
        };
        let failure = match tokio::time::timeout(wait, asked).await {
            Ok(Ok(value)) => return Ok(Served::miss(value)),
            Ok(Err(failure)) if failure.is_final() || self.ends_stale(repository, &failure) => {
                return Err(failure);
            }
            Ok(Err(failure)) => Some(failure),
            Err(_) => None,
        };
        // A refusal of the registry opens nothing of the bucket.
        let kept = match &failure {
            Some(failure) if failure.is_refusal() => cached,
            _ => self.kept_tags(repository, &cached, peer).await,
        };
        match failure {
            Some(failure) if kept.is_empty() => Err(failure),
            _ => Ok(Served::stale(window.page_of(kept.iter()))),
        }
    }

    /// Returns the cached tags with those of the bucket.
    async fn kept_tags(
        self: &Arc<Self>,
        repository: &Repository,
        cached: &Arc<Vec<String>>,
        peer: &str,
    ) -> Arc<Vec<String>> {
        let client = ClientAddress::from_peer(peer);
        let (Some(_), Ok(origins)) = (self.bucket.get(), self.origins(repository, client)) else {
            return Arc::clone(cached);
        };
        let key = (repository.clone(), TagSource::Bucket);
        let (listed, _) = self.tag_lists.join(&key, || {
            let name = repository.name.clone();
            async move { Arc::new(origins.stored_tags(&name).await) }
        });
        let stored = listed.await.unwrap_or_default();
        let all: BTreeSet<_> = cached.iter().chain(stored.iter()).cloned().collect();
        Arc::new(all.into_iter().collect())
    }

    async fn ask_tags(
        &self,
        repository: &Repository,
        query: &str,
        window: &Window,
        peer: &str,
    ) -> Result<Page, PullError> {
        let failed = |error| PullError::from_upstream(&error, RequestedContent::Tags);
        let client = ClientAddress::from_peer(peer);
        let origins = self.origins(repository, client)?;
        let _turn = self.turn(repository, client).await?;
        let start = self.request_snapshot(&origins);
        let answer = origins.tags(&repository.name, query).await.map_err(failed);
        self.record_verdict((&origins, start), repository, UNCACHED, &answer);
        let answer = answer?;
        let page = Page {
            names: answer.tags,
            next: answer.next,
        };
        Ok(window.where_ignored(page))
    }

    /// Returns the cached tags of a repository; one list for all clients that ask at a time.
    async fn cached_tags(self: &Arc<Self>, repository: &Repository) -> Arc<Vec<String>> {
        let key = (repository.clone(), TagSource::Cache);
        let (listed, _) = self.tag_lists.join(&key, || {
            let (pull, repository) = (Arc::clone(self), repository.clone());
            async move {
                let listed = pull.store.tags(&repository).await.map(Some);
                Arc::new(unreadable(listed).unwrap_or_default())
            }
        });
        listed.await.unwrap_or_default()
    }
}

impl Window {
    /// Cuts the page out of a full list: older registries ignore the query and send all tags unsorted. A page without the
    /// `last` that was asked for is a page, in whatever order: GHCR sorts tags by time.
    fn where_ignored(&self, page: Page) -> Page {
        let too_many = self.n.is_some_and(|n| page.names.len() > n);
        let too_early = self.last.as_ref().is_some_and(|last| page.names.contains(last));
        let unordered = self.last.is_none()
            && !page.names.is_sorted()
            && !page.names.is_sorted_by_key(|name| name.to_lowercase());
        if page.next.is_some() || !(too_many || too_early || unordered) {
            return page;
        }
        let mut names = page.names;
        names.sort_unstable();
        self.page_of(names.iter())
    }

    /// Returns this page of a sorted list, of at most [`MAX_ENTRIES`] names.
    pub(super) fn page_of<'n>(&self, sorted: impl Iterator<Item = &'n String>) -> Page {
        let n = self.n.unwrap_or(MAX_ENTRIES).min(MAX_ENTRIES);
        let after = |name: &&String| self.last.as_ref().is_none_or(|last| *name > last);
        let mut sorted = sorted.filter(after).cloned();
        let names: Vec<String> = sorted.by_ref().take(n).collect();
        if sorted.next().is_none() {
            return Page { names, next: None };
        }
        let next = names.last().map(|last| {
            url::form_urlencoded::Serializer::new(String::new())
                .append_pair("last", last)
                .append_pair("n", &n.to_string())
                .finish()
        });
        Page { names, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test_case(None, None, &["a", "b", "c"], None; "all")]
    #[test_case(Some(2), None, &["a", "b"], Some("last=b&n=2"); "the first page")]
    #[test_case(Some(2), Some("b"), &["c"], None; "the last page")]
    #[test_case(Some(3), None, &["a", "b", "c"], None; "a page that is all")]
    #[test_case(Some(0), None, &[], None; "no names")]
    #[test_case(Some(9), Some("zz"), &[], None; "after the end")]
    fn windows(n: Option<usize>, last: Option<&str>, expected: &[&str], next: Option<&str>) {
        let window = Window {
            n,
            last: last.map(Into::into),
        };
        let page = window.page_of(names(&["a", "b", "c"]).iter());
        assert_eq!(
            page,
            Page {
                names: names(expected),
                next: next.map(Into::into)
            }
        );
    }

    /// The mirror applies a page window that the upstream ignored.
    #[test_case(Some(2), None, &["b", "c", "a"], &["a", "b"], Some("last=b&n=2"); "more than asked for")]
    #[test_case(Some(2), Some("a"), &["b", "c", "a"], &["b", "c"], None; "from the start")]
    #[test_case(None, Some("a"), &["b", "c", "a"], &["b", "c"], None; "from the start without a number")]
    #[test_case(None, None, &["b", "c", "a"], &["a", "b", "c"], None; "in no order")]
    #[test_case(None, None, &["a", "B", "c"], &["a", "B", "c"], None; "in an order of its own")]
    #[test_case(Some(2), Some("a"), &["c"], &["c"], None; "as asked for")]
    fn ignored_window_is_applied_locally(
        n: Option<usize>,
        last: Option<&str>,
        sent: &[&str],
        expected: &[&str],
        next: Option<&str>,
    ) {
        let window = Window {
            n,
            last: last.map(Into::into),
        };
        let sent = Page {
            names: names(sent),
            next: None,
        };
        let made = Page {
            names: names(expected),
            next: next.map(Into::into),
        };
        assert_eq!(window.where_ignored(sent), made);
    }

    /// A page with a link is passed on as the upstream sent it.
    #[test]
    fn page_with_link_is_kept() {
        let sent = Page {
            names: names(&["b", "a"]),
            next: Some("last=a".into()),
        };
        assert_eq!(Window::default().where_ignored(sent.clone()), sent);
    }
}
