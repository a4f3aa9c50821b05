//! Listings of objects, page by page: a store that repeats itself, or sends pages without an end, ends the listing.

use object_store::ObjectMeta;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Key;

use super::client::Client;

/// The objects that a page is asked for; S3 sends no more.
const PAGE: usize = 1_000;
/// The most pages of a listing, four times what the tags of a repository need.
const MAX_PAGES: usize = 200;
/// The most pages without an object, one after the other.
const MAX_EMPTY: usize = 20;
/// The longest token of a page, in bytes: it is a part of the next URL.
const MAX_TOKEN: usize = 4 << 10;

/// A listing of the objects below a prefix.
pub(super) struct BucketPageList {
    prefix: String,
    /// The token of the next page; `None` in front of the first one.
    token: Option<String>,
    pages: usize,
    empty: usize,
    is_done: bool,
}

impl BucketPageList {
    /// Begins a listing; no request is sent.
    pub(super) fn new(prefix: &Key) -> Self {
        Self {
            prefix: format!("{prefix}/"),
            token: None,
            pages: 0,
            empty: 0,
            is_done: false,
        }
    }

    /// Returns the next page; `None` after the last one, or after as many as a listing may have.
    ///
    /// # Errors
    /// The store fails, or the listing repeats itself.
    pub(super) async fn next(&mut self, client: &Client) -> object_store::Result<Option<Vec<ObjectMeta>>> {
        if self.is_done {
            return Ok(None);
        }
        let options = PaginatedListOptions {
            max_keys: Some(PAGE),
            page_token: self.token.clone(),
            ..PaginatedListOptions::default()
        };
        let page = client.lists().list_paginated(Some(&self.prefix), options).await?;
        let objects = page.result.objects;
        self.advance(page.page_token, objects.is_empty())
            .map_err(malformed)?;
        Ok(Some(objects))
    }

    fn advance(&mut self, next: Option<String>, is_empty: bool) -> Result<(), &'static str> {
        self.pages += 1;
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        self.is_done = next.is_none();
        match &next {
            Some(next) if next.len() > MAX_TOKEN => {
                return Err("the token of a page of a listing is too long");
            }
            Some(_) if next == self.token => return Err("a page of a listing names itself as the next one"),
            Some(_) if self.empty >= MAX_EMPTY => return Err("a listing has too many empty pages"),
            Some(_) if self.pages >= MAX_PAGES => {
                tracing::warn!(
                    prefix = self.prefix,
                    pages = MAX_PAGES,
                    "a listing of the bucket has too many pages: the remaining ones are not read"
                );
                self.is_done = true;
            }
            _ => self.token = next,
        }
        Ok(())
    }
}

fn malformed(what: &'static str) -> object_store::Error {
    object_store::Error::Generic {
        store: "bucket",
        source: what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(&["a", "b", "c"], false => Ok(()); "tokens that differ")]
    #[test_case(&["a", "a"], false => Err("a page of a listing names itself as the next one"); "the same token")]
    #[test_case(&["a", "b"].repeat(10), true => Err("a listing has too many empty pages"); "empty pages")]
    fn listing_without_an_end_is_an_error(tokens: &[&str], is_empty: bool) -> Result<(), &'static str> {
        let mut listing = BucketPageList::new(&Key::from("p"));
        tokens
            .iter()
            .try_for_each(|token| listing.advance(Some((*token).to_owned()), is_empty))
    }

    /// A listing whose pages do not end is as long as a listing may be.
    #[test]
    fn listing_ends_after_its_last_page() {
        let mut listing = BucketPageList::new(&Key::from("p"));
        for number in 1..=MAX_PAGES {
            assert!(!listing.is_done, "{number}");
            listing.advance(Some(number.to_string()), false).unwrap();
        }
        assert!(listing.is_done);
    }

    #[test]
    fn token_that_fits_no_url_is_an_error() {
        let mut listing = BucketPageList::new(&Key::from("p"));
        listing
            .advance(Some("x".repeat(MAX_TOKEN + 1)), false)
            .unwrap_err();
    }
}
