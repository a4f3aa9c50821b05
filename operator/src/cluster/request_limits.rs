//! Limits of each request to the API server: its path, its time, and the size of its answer.
//!
//! kube inserts names into a path as they are, and reads an answer into memory as a whole. A request is refused here if a name
//! in it is no name, so that no reader of a spec has to remember that. A page of a list that is too large is requested again
//! with half of the objects: one user with large objects must not stop the list of all.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{Method, Request, Response, Uri, request::Parts};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};
use tower::{BoxError, service_fn};

use crate::names::is_object_name;

/// The time limit of a request that reads, and of the beginning of a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// The time limit of a write: an admission webhook may take 30 s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(40);
/// The time after which a watch is started again; the API server ends it after 290 s.
const WATCH_TIMEOUT: Duration = Duration::from_mins(6);
/// The maximum size of an answer, and of an event of a watch, in bytes: an object of 1.5 MiB whose characters are all escaped.
const MAX_ANSWER: usize = 12 << 20;
/// The maximum size of a page of a list with several objects, in bytes.
const MAX_PAGE: usize = 2 << 20;

/// The reason why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A part of the path is no name.
    #[error("request refused by the operator: a name in it is not the name of an object")]
    Path,
    /// The answer did not end in time.
    #[error("no complete answer of the API server within {} s", .0.as_secs())]
    Time(Duration),
    /// The answer is too large.
    #[error("answer of the API server larger than {0} bytes")]
    Size(usize),
}

/// The number of objects that fitted into a page of each list whose pages were too large, by path. The lock is held while a
/// page is read, one at a time: at the start all watches list at once.
type Pages = Mutex<HashMap<String, usize>>;

/// An answer with its body.
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// Returns a client with the limits. Its requests go through `client`.
pub fn limited(client: &Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let client = client.clone();
    let pages = Arc::new(Pages::default());
    let service = service_fn(move |request: Request<Body>| {
        let (client, pages) = (client.clone(), Arc::clone(&pages));
        async move { send(&client, &pages, request).await }
    });
    Client::new(service, namespace)
}

async fn send(client: &Client, pages: &Pages, request: Request<Body>) -> Result<Answer, BoxError> {
    let target = RequestTarget::parse(request.method(), request.uri()).ok_or(LimitError::Path)?;
    match target {
        RequestTarget::Watch => watch(client, request).await,
        RequestTarget::Page(limit) => {
            let mut sizes = pages.lock().await;
            list(client, request, limit, &mut sizes).await
        }
        RequestTarget::Other => {
            let limit = if request.method().is_safe() {
                READ_TIMEOUT
            } else {
                WRITE_TIMEOUT
            };
            within(limit, read(client, request, MAX_ANSWER)).await
        }
    }
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    timeout(limit, answer)
        .await
        .map_err(|_| LimitError::Time(limit))?
}

/// Sends a request and reads its answer as a whole.
async fn read(client: &Client, request: Request<Body>, max: usize) -> Result<Answer, BoxError> {
    let (parts, body) = client.send(request).await?.into_parts();
    let body = Limited::new(body, max).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            LimitError::Size(max).into()
        } else {
            error
        }
    })?;
    let body = Full::new(body.to_bytes()).map_err(|never| match never {});
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

/// Reads a page of a list, with fewer objects if it is too large. Later pages of that list have as few.
async fn list(
    client: &Client,
    request: Request<Body>,
    requested: usize,
    sizes: &mut HashMap<String, usize>,
) -> Result<Answer, BoxError> {
    let (mut parts, _) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let is_first = parts.uri.query().is_none_or(|query| !query.contains("continue="));
    let fitted = sizes.remove(&path).filter(|_| !is_first);
    let mut limit = fitted.map_or(requested, |size| requested.min(size));
    loop {
        if limit < requested {
            parts = with_limit(parts, limit)?;
        }
        let max = if limit > 1 { MAX_PAGE } else { MAX_ANSWER };
        let page = Request::from_parts(parts.clone(), Body::empty());
        let answer = within(READ_TIMEOUT, read(client, page, max)).await;
        match answer {
            Err(error) if limit > 1 && error.downcast_ref() == Some(&LimitError::Size(max)) => {
                limit = limit.div_ceil(2);
            }
            answer => {
                if limit < requested {
                    sizes.insert(path, limit);
                }
                return answer;
            }
        }
    }
}

/// Replaces the number of objects that a list asks for.
fn with_limit(mut parts: Parts, limit: usize) -> Result<Parts, BoxError> {
    let pairs = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let others = pairs.filter(|(key, _)| key != "limit");
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(others)
        .append_pair("limit", &limit.to_string())
        .finish();
    let mut uri = parts.uri.into_parts();
    let path = uri.path_and_query.as_ref().map_or("/", |path| path.path());
    uri.path_and_query = Some(format!("{path}?{query}").parse()?);
    parts.uri = Uri::from_parts(uri)?;
    Ok(parts)
}

/// Starts a watch, whose events have a bound, and ends it after [`WATCH_TIMEOUT`].
async fn watch(client: &Client, request: Request<Body>) -> Result<Answer, BoxError> {
    let end = Instant::now() + WATCH_TIMEOUT;
    let answer = within(READ_TIMEOUT, async { Ok(client.send(request).await?) }).await?;
    let (parts, body) = answer.into_parts();
    let events = bound_lines(body.into_data_stream(), MAX_ANSWER).take_until(sleep_until(end));
    let body = StreamBody::new(events.map_ok(Frame::data));
    Ok(Response::from_parts(parts, BodyExt::boxed_unsync(body)))
}

/// Ends a stream with an error once a line is longer than `max` bytes.
fn bound_lines<E: Into<BoxError>>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    max: usize,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    let mut length = 0_usize;
    pieces.map(move |piece| {
        let piece = piece.map_err(Into::into)?;
        length = match piece.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => piece.len() - end - 1,
            None => length.saturating_add(piece.len()),
        };
        if length > max {
            return Err(LimitError::Size(max).into());
        }
        Ok(piece)
    })
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestTarget {
    /// A watch of a collection.
    Watch,
    /// A page of a list, with this number of objects.
    Page(usize),
    /// Any other request.
    Other,
}

impl RequestTarget {
    /// Parses a request. Returns `None` if it is none that kube forms from names.
    fn parse(method: &Method, uri: &Uri) -> Option<Self> {
        let mut segments = uri.path().strip_prefix('/')?.split('/');
        if !segments.clone().all(is_object_name) {
            return None;
        }
        match segments.next()? {
            "api" => segments.nth(0)?,
            "apis" => segments.nth(1)?,
            "version" => return Some(Self::Other),
            _ => return None,
        };
        let segments: Vec<_> = segments.collect();
        let is_one = match segments[..] {
            ["namespaces", _, _, _, "status"] if method == Method::PATCH => true,
            ["namespaces", _, _, _] => true,
            ["namespaces", _, _] | [_] => false,
            _ => return None,
        };
        let query = uri.query().unwrap_or_default();
        // kube escapes what it puts into a query.
        let is_read_of_one = is_one && method.is_safe();
        if query.contains('?') || is_read_of_one && !query.is_empty() {
            return None;
        }
        if !method.is_safe() {
            return Some(Self::Other);
        }
        let value = |name: &str| {
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value)
        };
        if value("watch").is_some() {
            return Some(Self::Watch);
        }
        let limit = value("limit").and_then(|limit| limit.parse().ok());
        Some(limit.map_or(Self::Other, Self::Page))
    }
}

#[cfg(test)]
mod tests;
