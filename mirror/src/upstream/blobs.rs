//! Blobs (distribution-spec, "Pulling blobs").

use std::ops::Range;
use std::time::Duration;

use futures::StreamExt;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use prometheus_client::metrics::counter::Counter;
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::Upstream;
use super::auth::Authorizer;
use super::blob_body::{BlobBody, BodyStream, received};
use super::error::Error;
use super::min_throughput::chunks;
use super::rate_limit::RequestClass;
use super::request::{PermittedResponse, RequestPool, UpstreamRequest};
use super::response::UpstreamResponse;
use super::transport::{Transport, redirect};
use crate::digest::Digest;
use crate::metrics::Source;
use crate::name::RepositoryName;

/// A blob, or a part of it, whose body has not arrived yet.
#[derive(Debug)]
pub struct BlobAnswer {
    /// The offset of the body within the blob: 0 if the upstream ignored the requested range.
    pub start: u64,
    /// The size of the whole blob, if upstream said so.
    pub total: Option<u64>,
    /// The bytes.
    pub body: BlobBody,
    /// The source of the bytes.
    pub source: Source,
}

impl BlobAnswer {
    /// Returns the answer of a peer with 200 or 206 to a request from `from`; `guard` wraps its chunks, of which each has
    /// to arrive within `idle`.
    ///
    /// # Errors
    /// [`Error::Malformed`] for another part.
    pub(crate) fn of_peer(
        response: Response,
        from: u64,
        idle: Duration,
        permit: OwnedSemaphorePermit,
        guard: impl FnOnce(BodyStream) -> BodyStream,
    ) -> Result<Self, Error> {
        let part = (response.status() == 206).then(|| Part::read(response.headers()));
        let length = response.content_length();
        let (start, total, left) = match part {
            None => (0, length, length),
            Some(Some(part)) if part.first == from => (from, part.total, Some(part.length())),
            Some(_) => return Err(Error::malformed("another part of the blob")),
        };
        let body = BlobBody {
            chunks: guard(chunks(received(response), idle).boxed()),
            left,
            done: false,
            received: Counter::default(),
            errors: None,
            permit,
        };
        Ok(Self {
            start,
            total,
            body,
            source: Source::Peer,
        })
    }
}

/// `Content-Range: bytes FIRST-LAST/SIZE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    first: u64,
    /// Inclusive, not below `first`.
    last: u64,
    total: Option<u64>,
}

impl Part {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let (range, total) = content_range(headers)?;
        let (first, last) = range.split_once('-')?;
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let (first, last) = (number(first)?, number(last)?);
        let part = Self { first, last, total };
        (first <= last && last < total.unwrap_or(u64::MAX)).then_some(part)
    }

    fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

fn content_range(headers: &HeaderMap) -> Option<(&str, &str)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (unit, rest) = value.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    unit.eq_ignore_ascii_case("bytes")
        .then_some((range.trim(), total.trim()))
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

impl Upstream {
    /// Requests a blob from `from` up to `until` (exclusive) for the cache. `from` 0 without `until` is a plain GET.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Malformed`] also for a part that does not start at `from`.
    pub async fn blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobAnswer, Error> {
        self.fetch(RequestPool::Fill, name, digest, from..until.unwrap_or(u64::MAX))
            .await
    }

    /// Requests a blob like [`Self::blob`], but for one client and past the cache.
    ///
    /// # Errors
    /// See [`Self::blob`].
    pub async fn blob_past_the_cache(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobAnswer, Error> {
        self.fetch(
            RequestPool::PassThrough,
            name,
            digest,
            from..until.unwrap_or(u64::MAX),
        )
        .await
    }

    /// Moves a response from the pool of fills to that of pass-through, so that the next fill can start.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if too many clients use pass-through already.
    pub async fn past_the_cache(&self, mut answer: BlobAnswer) -> Result<BlobAnswer, Error> {
        answer.body.permit = self.acquire_permit(RequestPool::PassThrough).await?;
        Ok(answer)
    }

    async fn fetch(
        &self,
        pool: RequestPool,
        name: &RepositoryName,
        digest: &Digest,
        wanted: Range<u64>,
    ) -> Result<BlobAnswer, Error> {
        let authorizer = self.authorizer();
        let name = self.name(name);
        let from = wanted.start;
        let until = Some(wanted.end).filter(|until| *until < u64::MAX);
        let mut request = self.about_blob(Method::GET, &name, digest);
        request.pool = pool;
        if from > 0 || until.is_some() {
            request.headers.insert(RANGE, range(from, until));
        }
        let mut permitted = self.send(&authorizer, &request).await?;
        if permitted.answer.status() == 416 && !is_beyond(permitted.answer.headers(), from) {
            // It serves no parts, and says so the wrong way.
            drop(permitted);
            request.headers.remove(RANGE);
            permitted = self.send(&authorizer, &request).await?;
        }
        match permitted.answer.status().as_u16() {
            200 => {
                let answer = &permitted.answer;
                let page = answer
                    .page()
                    .filter(|_| !answer.is_marked() && !answer.has_digest(digest));
                let mut answer = whole(permitted, &self.transport);
                if let Some(page) = page {
                    answer.body = answer.body.unless_page(page).await?;
                }
                Ok(answer)
            }
            206 if request.headers.contains_key(RANGE) => part(permitted, from, &self.transport),
            416 => Err(Error::malformed(format!("it has no byte {from} of this blob"))),
            _ => Err(self.response_error(&authorizer, permitted.answer).await),
        }
    }

    /// Checks that this repository has this blob; returns its size if the upstream reports it without a redirect.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn blob_head(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Error> {
        let authorizer = self.authorizer();
        let name = self.name(name);
        let mut request = self.about_blob(Method::HEAD, &name, digest);
        request.follow = false;
        match self.send(&authorizer, &request).await {
            Ok(PermittedResponse { answer, .. }) => match answer.status().as_u16() {
                200 => return answer.blob_size(),
                201..=299 => return Ok(None),
                300..=399 if redirect::is_redirect(&answer.response) => return Ok(None),
                // Nothing more comes than the header, and some registries refuse a HEAD of what they give: a GET tells.
                404 | 410 if answer.is_marked() => {
                    return Err(self.response_error(&authorizer, answer).await);
                }
                300..=499 | 501 => {}
                _ => return Err(self.response_error(&authorizer, answer).await),
            },
            Err(Error::Denied { .. }) => {}
            Err(error) => return Err(error),
        }
        self.first_byte(&authorizer, &name, digest, false).await
    }

    /// Returns the size of a blob, if the upstream or the target of its redirect reports it. Downloads at most a byte:
    /// signed URLs are for one method, so the storage gets a GET.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn blob_size(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Error> {
        if let Some(size) = self.blob_head(name, digest).await? {
            return Ok(Some(size));
        }
        let name = self.name(name);
        self.first_byte(&self.authorizer(), &name, digest, true).await
    }

    /// Requests the first byte of a blob and returns the size that the response reports; does not read the body.
    async fn first_byte(
        &self,
        authorizer: &Authorizer,
        name: &str,
        digest: &Digest,
        follow: bool,
    ) -> Result<Option<u64>, Error> {
        let mut request = self.about_blob(Method::GET, name, digest);
        request.follow = follow;
        request.headers.insert(RANGE, range(0, Some(1)));
        let PermittedResponse {
            answer,
            permit: _permit,
        } = self.send(authorizer, &request).await?;
        match answer.status().as_u16() {
            200 => answer.blob_size(),
            206 => Ok(Part::read(answer.headers()).and_then(|part| part.total)),
            // Of an empty blob there is no first byte.
            416 if is_beyond(answer.headers(), 0) || is_empty(digest) => Ok(Some(0)),
            // No part is served there: the header of the whole tells, and its body is not read.
            416 if follow => {
                drop(answer);
                request.headers.remove(RANGE);
                let PermittedResponse { answer, .. } = self.send(authorizer, &request).await?;
                match answer.status().as_u16() {
                    200 => answer.blob_size(),
                    _ => Err(self.response_error(authorizer, answer).await),
                }
            }
            200..=299 | 416 => Ok(None),
            300..=399 if !follow && redirect::is_redirect(&answer.response) => Ok(None),
            _ => Err(self.response_error(authorizer, answer).await),
        }
    }

    fn about_blob<'a>(&self, method: Method, name: &'a str, digest: &Digest) -> UpstreamRequest<'a> {
        let (class, pool) = if method == Method::HEAD {
            (RequestClass::Head, RequestPool::Other)
        } else {
            (RequestClass::Blob, RequestPool::Fill)
        };
        UpstreamRequest {
            class,
            pool,
            method,
            url: self.transport.url(&format!("{name}/blobs/{digest}")),
            headers: HeaderMap::new(),
            repository: Some(name),
            follow: true,
        }
    }
}

fn whole(permitted: PermittedResponse, transport: &Transport) -> BlobAnswer {
    let total = permitted.answer.length();
    BlobAnswer {
        start: 0,
        total,
        body: BlobBody::new(permitted, total, transport),
        source: Source::Upstream,
    }
}

fn part(permitted: PermittedResponse, from: u64, transport: &Transport) -> Result<BlobAnswer, Error> {
    let part = checked_part(&permitted.answer, from)?;
    Ok(BlobAnswer {
        start: part.first,
        total: part.total,
        body: BlobBody::new(permitted, Some(part.length()), transport),
        source: Source::Upstream,
    })
}

fn checked_part(answer: &UpstreamResponse, from: u64) -> Result<Part, Error> {
    let part = Part::read(answer.headers())
        .ok_or_else(|| Error::malformed("a part of a blob without a valid Content-Range"))?;
    if part.first != from {
        return Err(Error::malformed(format!(
            "a part from byte {} where {from} was asked for",
            part.first
        )));
    }
    if answer.length().is_some_and(|length| length != part.length()) {
        return Err(Error::malformed(
            "a part whose Content-Length is not that of its Content-Range",
        ));
    }
    Ok(part)
}

/// Returns `true` if a 416 reports that the content ends before `from`.
fn is_beyond(headers: &HeaderMap, from: u64) -> bool {
    let size = content_range(headers).and_then(|(_, total)| number(total));
    size.is_some_and(|size| size <= from)
}

fn is_empty(digest: &Digest) -> bool {
    *digest == Digest::compute(digest.algorithm(), b"")
}

fn range(from: u64, until: Option<u64>) -> HeaderValue {
    let text = match until {
        Some(until) => format!("bytes={from}-{}", until.saturating_sub(1).max(from)),
        None => format!("bytes={from}-"),
    };
    // Digits and ASCII signs only.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn read(value: &str) -> Option<(u64, u64, Option<u64>)> {
        let headers = HeaderMap::from_iter([(CONTENT_RANGE, value.parse().unwrap())]);
        Part::read(&headers).map(|part| (part.first, part.length(), part.total))
    }

    #[test_case("bytes 5-9/10" => Some((5, 5, Some(10))))]
    #[test_case("bytes 5-9/*" => Some((5, 5, None)))]
    #[test_case("bytes 9-5/10" => None; "backwards")]
    #[test_case("bytes 5-10/10" => None; "beyond the end")]
    #[test_case("bytes */10" => None; "unsatisfied")]
    #[test_case("items 5-9/10" => None; "another unit")]
    #[test_case("bytes +5-9/10" => None; "a sign")]
    #[test_case("bytes 5-9" => None; "no total")]
    #[test_case("bytes -9/10" => None; "no start")]
    fn content_ranges(value: &str) -> Option<(u64, u64, Option<u64>)> {
        read(value)
    }

    /// The range of a request has an inclusive end.
    #[test]
    fn range_request_has_inclusive_end() {
        assert_eq!(range(5, None), "bytes=5-");
        assert_eq!(range(5, Some(10)), "bytes=5-9");
        assert_eq!(range(5, Some(0)), "bytes=5-5");
    }

    proptest! {
        /// A part that is accepted is never longer than its total.
        #[test]
        fn part_is_never_longer_than_its_total(value in "bytes [0-9]{0,21}-[0-9]{0,21}/[0-9*]{0,21}") {
            if let Some((first, length, Some(total))) = read(&value) {
                prop_assert!(first.checked_add(length).is_some_and(|end| end <= total));
            }
        }

        /// No `Content-Range` makes the parser panic.
        #[test]
        fn any_content_range_does_not_panic(value in "[ -~]{0,60}") {
            let _ = read(&value);
        }
    }
}
