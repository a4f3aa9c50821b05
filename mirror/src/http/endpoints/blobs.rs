//! `GET` and `HEAD /v2/<name>/blobs/<digest>` (distribution-spec, "Pulling blobs"), with ranges.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::body::{self, BlobReader, BodyBlob};
use super::fill_blob::FillBlob;
use super::stored_blob::StoredBlob;
use crate::digest::Digest;
use crate::fill::{Fill, Phase};
use crate::http::connection::ConnectionMemory;
use crate::http::error::RegistryError;
use crate::http::{EndpointResponse, RequestContext, headers, peer_port};
use crate::metrics::Outcome;
use crate::name::Repository;
use crate::pull::{BlobSnapshot, PassThrough, Served, Source};
use crate::pull_error::PullError;
use crate::range::{Resolved, Wanted};
use crate::store::Blob;

/// Returns a blob, parts of it, or its headers.
pub(in crate::http) async fn get(
    context: &RequestContext<'_>,
    name: &str,
    digest: &str,
) -> Result<EndpointResponse, RegistryError> {
    let digest = parse(digest)?;
    let repository = context.repository(name)?;
    let etag = headers::etag(&digest);
    let mut response = empty_response(context, &etag);
    let matched = headers::check_if_match(context.headers, Some(&etag));
    if context.method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED || matched.is_err() {
        let (pull, peer) = (&context.app.pull, &context.peer.name);
        let served = pull.blob_metadata(&repository, &digest, peer).await?;
        matched?;
        let outcome = add_metadata(&mut response, &served);
        return Ok(EndpointResponse::new(response, outcome, repository));
    }
    let wanted = Wanted::parse(context.headers, &etag);
    let of_unverified = of_unverified(context.headers, &wanted);
    let served = source(context, &repository, &digest, of_unverified).await?;
    let (value, mut outcome, origin) = (served.value, served.outcome, served.origin);
    let wanted = if is_verified(&value, &repository) {
        &wanted
    } else {
        response.headers_mut().remove(header::ETAG);
        of_unverified
    };
    let reader = |blob| blob_reader(context, blob);
    match value {
        Source::Stored(blob) => {
            if let Some(redirected) = redirected(context, &repository, &digest, blob.size).await {
                return Ok(EndpointResponse::new(redirected, Outcome::Redirect, repository));
            }
            let (size, stored) = (blob.size, stored_blob(context, blob, &digest));
            send(&mut response, reader(stored), size, wanted);
        }
        Source::Filling(fill) => {
            let size = size_of(context, &fill).await?;
            let filling = fill_blob(context, fill, &repository, &digest);
            if let Some(size) = size {
                send(&mut response, reader(BodyBlob::Filling(filling)), size, wanted);
            } else {
                *response.body_mut() = body::whole_fill(filling, Arc::clone(&context.peer.memory));
            }
        }
        Source::PassThrough(passed) => {
            if passed.size.is_none() && !context.detects_truncation {
                return Err(RegistryError::needs_chunks());
            }
            outcome = Outcome::PassThrough;
            send_passed(&mut response, passed, Arc::clone(&context.peer.memory));
        }
    }
    Ok(EndpointResponse {
        digest: Some(digest),
        origin,
        ..EndpointResponse::new(response, outcome, repository)
    })
}

/// Returns a cached blob for the body of a response.
fn stored_blob(context: &RequestContext<'_>, blob: Blob, digest: &Digest) -> BodyBlob {
    BodyBlob::Stored(StoredBlob {
        blob,
        digest: digest.clone(),
        pull: Arc::clone(&context.app.pull),
    })
}

/// Returns a blob as the connection of this request reads it.
fn blob_reader(context: &RequestContext<'_>, blob: BodyBlob) -> BlobReader {
    BlobReader {
        blob,
        sendfile: context.sendfile.cloned(),
        memory: Arc::clone(&context.peer.memory),
    }
}

/// Returns `true` if all bytes of a source were verified.
fn is_verified(source: &Source, repository: &Repository) -> bool {
    match source {
        Source::Stored(_) => true,
        Source::Filling(fill) => fill.is_verified_for(repository),
        Source::PassThrough(_) => false,
    }
}

/// Returns a fill as the body of this request reads it.
fn fill_blob(
    context: &RequestContext<'_>,
    fill: Arc<Fill>,
    repository: &Repository,
    digest: &Digest,
) -> FillBlob {
    FillBlob {
        fill,
        repository: repository.clone(),
        digest: digest.clone(),
        pull: Arc::clone(&context.app.pull),
        peer: Arc::clone(&context.peer.name),
    }
}

/// Returns a response with the headers that all blobs have.
fn empty_response(context: &RequestContext<'_>, etag: &Bytes) -> Response<Body> {
    let mut response = headers::response(context.headers, etag);
    let own = response.headers_mut();
    own.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    own.insert(header::CACHE_CONTROL, headers::IMMUTABLE);
    own.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    response
}

/// Returns the parts that a response has whose bytes are not verified yet. It has no strong validator, so that no client
/// combines its bytes with others (RFC 9110, 8.8.1); a condition on the validator is met by the whole blob alone.
fn of_unverified<'w>(headers: &HeaderMap, wanted: &'w Wanted) -> &'w Wanted {
    let is_conditional = || headers.contains_key(header::IF_RANGE) || headers.contains_key(header::IF_MATCH);
    match wanted {
        Wanted::Ranges(_) if !is_conditional() => wanted,
        _ => &Wanted::Whole,
    }
}

/// Returns the redirect of a client to the bucket, for a whole blob in the cache. A client that wants a part continues what
/// it has from here, or asks for one part after the other, longer than a signed URL is valid.
async fn redirected(
    context: &RequestContext<'_>,
    repository: &Repository,
    digest: &Digest,
    size: u64,
) -> Option<Response<Body>> {
    let pull = &context.app.pull;
    if !pull.may_redirect(size) || context.headers.contains_key(header::RANGE) {
        return None;
    }
    let url = Box::pin(pull.redirect(repository, digest, size, &context.peer.name)).await?;
    headers::redirect(digest, &url)
}

/// Adds the size of a blob to a response without its bytes, and returns the outcome.
fn add_metadata(response: &mut Response<Body>, served: &Served<BlobSnapshot>) -> Outcome {
    if response.status() == StatusCode::OK && !served.value.is_stored {
        response.headers_mut().remove(header::ETAG);
    }
    match served.value.size {
        Some(size) => _ = response.headers_mut().insert(header::CONTENT_LENGTH, size.into()),
        // A body of unknown length, so that the response has no Content-Length.
        None => *response.body_mut() = Body::from_stream(stream::empty::<Result<Bytes, Infallible>>()),
    }
    served.outcome
}

/// Returns the source of a blob. Another replica may want only what is here.
async fn source(
    context: &RequestContext<'_>,
    repository: &Repository,
    digest: &Digest,
    wanted: &Wanted,
) -> Result<Served<Source>, RegistryError> {
    let pull = &context.app.pull;
    if context.is_of_replica() && peer_port::is_only_if_cached(context.headers) {
        let held = pull.held_blob(repository, digest).await;
        return held.map(Served::hit).ok_or_else(RegistryError::not_held);
    }
    Ok(pull.blob(repository, digest, wanted, &context.peer.name).await?)
}

/// Returns the size of a fill; waits for it if the client could not detect a truncated body without Content-Length.
async fn size_of(context: &RequestContext<'_>, fill: &Fill) -> Result<Option<u64>, PullError> {
    let mut progress = fill.progress();
    if progress.size.is_none() && !context.detects_truncation {
        progress = fill.ended().await;
    }
    match progress.phase {
        Phase::Failed(failure) if !context.detects_truncation => Err(failure),
        Phase::NoRoom if !context.detects_truncation && progress.size.is_none() => {
            Err(PullError::unavailable(
                "the cache has no room for the blob, and upstream does not announce its size",
            ))
        }
        _ => Ok(progress.size),
    }
}

/// Parses a digest of a path; the error is 400 `DIGEST_INVALID`.
pub(in crate::http) fn parse(digest: &str) -> Result<Digest, RegistryError> {
    digest
        .parse()
        .map_err(|error| RegistryError::digest_invalid(format!("{error}")))
}

/// Puts the requested parts of `size` bytes into the response.
fn send(response: &mut Response, reader: BlobReader, size: u64, wanted: &Wanted) {
    match wanted.resolve(size) {
        Resolved::Whole => {
            response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
            *response.body_mut() = body::part(reader, 0..size);
        }
        Resolved::Parts(parts) => match <[_; 1]>::try_from(parts) {
            Ok([part]) => {
                partial(response, &part, Some(size));
                *response.body_mut() = body::part(reader, part);
            }
            Err(parts) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let multipart = body::multipart(reader, parts, size);
                let own = response.headers_mut();
                own.insert(header::CONTENT_LENGTH, multipart.length.into());
                own.remove(header::CONTENT_TYPE);
                *response.body_mut() = multipart.body;
                let kind = format!("multipart/byteranges; boundary={}", multipart.boundary);
                insert(response, header::CONTENT_TYPE, &kind);
            }
        },
        Resolved::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            insert(response, header::CONTENT_RANGE, &format!("bytes */{size}"));
            let own = response.headers_mut();
            own.insert(header::CONTENT_LENGTH, 0.into());
            own.remove(header::CACHE_CONTROL);
        }
    }
}

/// Puts a pass-through response into the response.
fn send_passed(response: &mut Response, passed: PassThrough, memory: Arc<ConnectionMemory>) {
    match (&passed.part, passed.size) {
        (Some(part), size) => partial(response, part, size),
        (None, Some(size)) => {
            response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
        }
        (None, None) => {}
    }
    *response.body_mut() = body::passed(passed.body, memory);
}

fn partial(response: &mut Response, part: &std::ops::Range<u64>, size: Option<u64>) {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, (part.end - part.start).into());
    let size = size.map_or_else(|| "*".into(), |size| size.to_string());
    insert(
        response,
        header::CONTENT_RANGE,
        &format!("bytes {}-{}/{size}", part.start, part.end - 1),
    );
}

fn insert(response: &mut Response, name: header::HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert(name, value);
    }
}
