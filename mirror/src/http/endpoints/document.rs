//! Documents of responses, which are in memory as a whole: manifests and lists.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;

use crate::http::connection::{ConnectionMemory, Permit, hold};
use crate::http::error::RegistryError;

/// The longest document, in bytes, that is not counted against the memory of its client.
const SMALL: usize = 8 * 1024;
/// The time that a document waits for memory, which other responses to the same client hold.
const PATIENCE: Duration = Duration::from_secs(10);

/// A document with memory for its bytes.
pub(super) struct HeldDocument<D> {
    pub(super) document: D,
    permit: Option<Permit>,
}

impl<D> HeldDocument<D> {
    /// Returns a part of the document with its memory.
    pub(super) fn map<P>(self, part: impl FnOnce(D) -> P) -> HeldDocument<P> {
        HeldDocument {
            document: part(self.document),
            permit: self.permit,
        }
    }

    /// Returns a body with the bytes of the document.
    pub(super) fn body(self, bytes: impl FnOnce(D) -> Bytes) -> Body {
        let bytes = bytes(self.document);
        Body::from(match self.permit {
            Some(permit) => hold(bytes, permit),
            None => bytes,
        })
    }
}

/// Fetches a document, and takes memory for it. While there is none, the document is dropped, and fetched again once
/// there is.
///
/// # Errors
/// 503 if no memory is freed in time.
pub(super) async fn hold_document<D, F>(
    memory: &ConnectionMemory,
    fetch: impl Fn() -> F,
    length: impl Fn(&D) -> usize,
) -> Result<HeldDocument<D>, RegistryError>
where
    F: Future<Output = Result<D, RegistryError>>,
{
    let document = fetch().await?;
    let needed = length(&document);
    if needed <= SMALL {
        return Ok(HeldDocument {
            document,
            permit: None,
        });
    }
    if let Some(permit) = memory.try_document(needed) {
        return Ok(HeldDocument {
            document,
            permit: Some(permit),
        });
    }
    drop(document);
    // Boxed, because it is rare and would enlarge each request.
    Box::pin(async {
        let permit = tokio::time::timeout(PATIENCE, memory.document(needed)).await;
        let permit = permit.map_err(|_| RegistryError::too_many_responses())?;
        let document = fetch().await?;
        if length(&document) > needed {
            return Err(RegistryError::too_many_responses());
        }
        Ok(HeldDocument {
            document,
            permit: Some(permit),
        })
    })
    .await
}
