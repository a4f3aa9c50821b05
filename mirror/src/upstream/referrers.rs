//! Referrers (distribution-spec, "Listing Referrers").

use bytes::Bytes;
use url::Url;

use super::Upstream;
use super::error::Error;
use super::json_body::{DocumentPlace, MAX_SMALL};
use super::link::required_next_page;
use super::manifests::MAX_MANIFEST;
use super::tags::about_list;
use crate::digest::Digest;
use crate::name::RepositoryName;
use crate::raw_index::{IndexError, ReferrerIndex};

/// The most pages of one list.
const MAX_PAGES: usize = 64;

impl Upstream {
    /// Returns all manifests that refer to a manifest, unfiltered: an index, all pages in one. `None` where the registry
    /// has no referrers API, whatever it answers in its place.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Malformed`] also for more than 10,000 descriptors, 4 MiB or 64 pages.
    pub async fn referrers(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let name = self.name(name);
        let first = self.transport.url(&format!("{name}/referrers/{digest}"));
        let (mut joined, mut place) = (ReferrerIndex::default(), DocumentPlace::default());
        let mut url = first.clone();
        for page in 0..MAX_PAGES {
            let read = match self.referrers_page(&name, url, joined, &mut place).await {
                Err(Error::NotFound { .. }) if page > 0 => None,
                read => read?,
            };
            let Some((so_far, next)) = read else {
                // A part would hide signatures.
                let missing = || Error::malformed("referrers of which a page is missing");
                return if page == 0 { Ok(None) } else { Err(missing()) };
            };
            let Some(query) = next else {
                return Ok(Some(so_far.into_bytes()));
            };
            if so_far.len() > MAX_SMALL {
                place.take(&self.transport).await?;
            }
            joined = so_far;
            url = first.clone();
            url.set_query(Some(&query));
        }
        Err(Error::malformed(format!(
            "referrers on more than {MAX_PAGES} pages"
        )))
    }

    /// Reads a page into an index. Returns the index and the query of the next page; `None` where the answer is that of a
    /// registry without the API.
    async fn referrers_page(
        &self,
        name: &str,
        url: Url,
        joined: ReferrerIndex,
        place: &mut DocumentPlace,
    ) -> Result<Option<(ReferrerIndex, Option<String>)>, Error> {
        let authorizer = self.authorizer();
        let permitted = self.send(&authorizer, &about_list(name, url)).await?;
        match permitted.answer.status().as_u16() {
            200..=399 => {
                let next = required_next_page(permitted.answer.headers())?;
                let page = permitted
                    .answer
                    .read_into(&self.transport, MAX_MANIFEST, place)
                    .await?;
                let joined = page.parse(move |page| add(joined, &page)).await?;
                Ok(joined.map(|joined| (joined, next)))
            }
            // These say something of the request or its time, and nothing of the API.
            401 | 403 | 407 | 408 | 425 => Err(self.response_error(&authorizer, permitted.answer).await),
            400..=499 => match self.response_error(&authorizer, permitted.answer).await {
                found @ Error::NotFound { .. } => Err(found),
                _ => Ok(None),
            },
            501 => Ok(None),
            _ => Err(self.response_error(&authorizer, permitted.answer).await),
        }
    }
}

/// Adds a page; `None` where it is none.
pub(super) fn add(mut joined: ReferrerIndex, page: &Bytes) -> Result<Option<ReferrerIndex>, Error> {
    match joined.add(page, MAX_MANIFEST) {
        Ok(()) => Ok(Some(joined)),
        Err(IndexError::NoObject | IndexError::NoIndex) => Ok(None),
        Err(unfit) => Err(Error::malformed(format!("a list of referrers that is {unfit}"))),
    }
}
