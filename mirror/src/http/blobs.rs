//! `GET` and `HEAD /v2/<name>/blobs/<digest>` (distribution-spec, "Pulling blobs"), with ranges.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, StatusCode, header};

use super::body::{self, Bytes as Readable};
use super::error::RegistryError;
use super::stored::Stored;
use super::{Answer, Asked, conditional};
use crate::digest::Digest;
use crate::fill::{Fill, Phase};
use crate::metrics::Outcome;
use crate::pull::{Failure, Served, Source, Through};
use crate::range::{Resolved, Wanted};

pub(super) async fn get(asked: &Asked<'_>, name: &str, digest: &str) -> Result<Answer, RegistryError> {
    let digest = parse(digest)?;
    let repository = asked.repository(name)?;
    let etag = conditional::etag(&digest);
    let mut response = conditional::response(asked.headers, &etag);
    let own = response.headers_mut();
    own.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    own.insert(header::CACHE_CONTROL, conditional::IMMUTABLE);
    own.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if asked.method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED {
        let served = asked.app.pull.blob_size(&repository, &digest).await?;
        match served.value {
            Some(size) => _ = response.headers_mut().insert(header::CONTENT_LENGTH, size.into()),
            // Of some length, which is all that the header says then.
            None => *response.body_mut() = Body::from_stream(stream::empty::<Result<Bytes, Infallible>>()),
        }
        return Ok(Answer::new(response, served.outcome, repository));
    }
    let wanted = Wanted::of(asked.headers, &etag);
    let Served { value, mut outcome } = asked.app.pull.blob(&repository, &digest, &wanted).await?;
    match value {
        Source::Stored(blob) => {
            let (size, pull) = (blob.size, Arc::clone(&asked.app.pull));
            let digest = digest.clone();
            let stored = Stored { blob, digest, pull };
            let readable = Readable::Stored(stored, asked.pieces.cloned());
            send(&mut response, readable, size, &wanted);
        }
        Source::Filling(fill) => match size_of(asked, &fill).await? {
            Some(size) => send(
                &mut response,
                Readable::Filling(fill, asked.pieces.cloned()),
                size,
                &wanted,
            ),
            None => *response.body_mut() = body::until_the_end(fill),
        },
        Source::Through(through) => {
            if through.size.is_none() && !asked.cuts_show {
                return Err(RegistryError::needs_chunks());
            }
            outcome = Outcome::PassThrough;
            pass(&mut response, through);
        }
    }
    Ok(Answer {
        digest: Some(digest),
        ..Answer::new(response, outcome, repository)
    })
}

/// The blob's size, where it has to be known before the end.
async fn size_of(asked: &Asked<'_>, fill: &Fill) -> Result<Option<u64>, Failure> {
    let mut progress = fill.progress();
    if progress.size.is_none() && !asked.cuts_show {
        progress = fill.ended().await;
    }
    match progress.phase {
        Phase::Failed(failure) if !asked.cuts_show => Err(failure),
        _ => Ok(progress.size),
    }
}

pub(super) fn parse(digest: &str) -> Result<Digest, RegistryError> {
    digest
        .parse()
        .map_err(|error| RegistryError::digest_invalid(format!("{error}")))
}

/// Puts the wanted parts of `size` bytes into the answer.
fn send(response: &mut Response, bytes: Readable, size: u64, wanted: &Wanted) {
    match wanted.resolve(size) {
        Resolved::Whole => {
            response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
            *response.body_mut() = body::part(bytes, 0..size);
        }
        Resolved::Parts(parts) => match <[_; 1]>::try_from(parts) {
            Ok([part]) => {
                partial(response, &part, Some(size));
                *response.body_mut() = body::part(bytes, part);
            }
            Err(parts) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let multipart = body::multipart(bytes, parts, size);
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

fn pass(response: &mut Response, through: Through) {
    match (&through.part, through.size) {
        (Some(part), size) => partial(response, part, size),
        (None, Some(size)) => {
            response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
        }
        (None, None) => {}
    }
    *response.body_mut() = Body::from_stream(through.body);
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
