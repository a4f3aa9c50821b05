//! The bucket behind the local tier: content and links under the keys of Distribution.
//!
//! A read is one GET for each object, never a HEAD and never a LIST. Whatever fails here is a miss: the next origin is
//! asked, and a bucket that keeps failing is skipped for a while.

mod breaker;
mod client;
mod connector;
mod credentials;
mod error;
mod identity;
mod keys;
mod leftovers;
mod listing;
mod objects;
mod owner;
mod read;
mod redirect;
mod replicas;
mod tags;
mod upload;
mod uploader;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub(crate) use client::check;
pub use client::check_contents;
pub use error::BucketError;
use read::MAX_LINK;
pub(crate) use read::{SMALL, StoredContent, WaitLimit};
pub(crate) use uploader::Uploader;
#[cfg(test)]
pub(crate) use uploader::tests::unreachable_uploader;

use crate::config::{self, TtlFrom};
use crate::digest::Digest;
use crate::name::Host;
pub(crate) use breaker::Breaker;
use client::Client;
pub(crate) use error::Error as ObjectError;
use error::Error;
use keys::Keys;
use upload::Upload;

/// The reads at once; a further one waits, and passes by the bucket after [`TURN`].
const MAX_READS: usize = 256;
/// The pages of listings that are read at once.
const MAX_LISTINGS: usize = 4;
/// The longest wait of a read for its turn.
const TURN: Duration = Duration::from_secs(5);
/// The most digests whose bytes in the bucket are known to be wrong.
const MAX_WRONG: u64 = 10_000;
/// The time for which wrong bytes in the bucket are not read again; the upload that follows replaces them.
const WRONG_FOR: Duration = Duration::from_mins(10);
/// The most digests of which the bucket is known to have the content, or to lack it.
const MAX_PRESENT: u64 = 10_000;
/// The time for which that is known.
const PRESENT_FOR: Duration = Duration::from_mins(1);
/// The time for which an upload need not ask for content again: the links to it are uploaded one after the other.
const RECENT: Duration = Duration::from_secs(5);

/// The state of the bucket, as `/status` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BucketState {
    /// No request was answered yet.
    Unknown,
    /// The last request was answered.
    Reachable,
    /// The store refused the credentials, or the permission.
    Denied,
    /// The store has no bucket of this name.
    NotFound,
    /// The store did not answer, or with an error.
    Unreachable,
}

impl BucketState {
    /// Returns the name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Reachable => "Reachable",
            Self::Denied => "Denied",
            Self::NotFound => "NotFound",
            Self::Unreachable => "Unreachable",
        }
    }
}

/// The bucket, as all requests share it.
pub(crate) struct Bucket {
    settings: config::BucketSettings,
    client: ArcSwap<Client>,
    default_host: Host,
    /// The keys, once the owner of the repositories without a prefix is known.
    keys: ArcSwap<Option<Keys>>,
    finding_owner: tokio::sync::Mutex<()>,
    /// The circuit breaker of reads.
    breaker: Breaker,
    /// The one of listings: a store may deny or limit them alone.
    list_breaker: Breaker,
    reads: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    wrong: Cache<Digest, ()>,
    /// The answers of the last minute about the presence of content.
    present: moka::future::Cache<Digest, bool>,
    /// The content that an upload found or made a short time ago.
    recent: Cache<Digest, Upload>,
    /// The age from which content is a miss, in ms; 0: none.
    max_age: AtomicU64,
    /// The bucket names the owner of the repositories without a prefix.
    claimed: AtomicBool,
    observed: Mutex<(BucketState, String)>,
}

impl Bucket {
    /// Creates the client of a bucket; `default_host` owns the repositories without a prefix, unless the bucket has
    /// another owner already.
    ///
    /// # Errors
    /// The credentials or the CA file cannot be used.
    pub(crate) fn new(
        settings: &config::BucketSettings,
        default_host: Host,
    ) -> Result<Arc<Self>, BucketError> {
        let client = Client::new(settings)?;
        Ok(Arc::new(Self {
            client: ArcSwap::from_pointee(client),
            settings: settings.clone(),
            default_host,
            keys: ArcSwap::from_pointee(None),
            finding_owner: tokio::sync::Mutex::default(),
            breaker: Breaker::default(),
            list_breaker: Breaker::default(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            listings: Arc::new(Semaphore::new(MAX_LISTINGS)),
            wrong: Cache::builder()
                .max_capacity(MAX_WRONG)
                .time_to_live(WRONG_FOR)
                .build(),
            present: moka::future::Cache::builder()
                .max_capacity(MAX_PRESENT)
                .time_to_live(PRESENT_FOR)
                .build(),
            recent: Cache::builder()
                .max_capacity(MAX_WRONG)
                .time_to_live(RECENT)
                .build(),
            max_age: AtomicU64::new(0),
            claimed: AtomicBool::new(false),
            observed: Mutex::new((BucketState::Unknown, String::new())),
        }))
    }

    /// Reads the files with credentials and CAs again, and returns whether they changed. Requests in flight end with the
    /// previous ones.
    ///
    /// # Errors
    /// A file cannot be used; the previous client stays in use.
    fn renew(&self) -> Result<bool, BucketError> {
        let client = Client::new(&self.settings)?;
        let is_new = client.fingerprint() != self.client.load().fingerprint();
        if is_new {
            tracing::info!(
                bucket = self.settings.name,
                "the bucket's new credentials are in use"
            );
            self.client.store(Arc::new(client));
            self.breaker.close();
            self.list_breaker.close();
        }
        Ok(is_new)
    }

    /// Sets the time to live of content. Where it counts from the fetch, an older object is a miss; a last use is not
    /// known of an object.
    pub(crate) fn set_ttl(&self, cache: &config::Cache) {
        let ttl = cache.ttl.filter(|_| cache.ttl_from == TtlFrom::FirstFetch);
        let ms = ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self.max_age.store(ms, Ordering::Relaxed);
    }

    /// Returns whether requests are sent to the bucket, which is skipped for a while after a failure.
    pub(crate) fn is_available(&self) -> bool {
        self.breaker.remaining().is_zero()
    }

    /// Returns the state of the bucket, with the message of the last error.
    pub(crate) fn state(&self) -> (BucketState, String) {
        self.observed.lock().clone()
    }

    /// Keeps clients from reading an object whose bytes were wrong, until an upload replaced it.
    pub(crate) fn mark_wrong(&self, digest: &Digest) {
        self.wrong.insert(digest.clone(), ());
    }

    fn observe<T>(&self, result: &Result<T, Error>) {
        let (state, message) = match result {
            Ok(_) | Err(Error::NotFound) => (BucketState::Reachable, String::new()),
            Err(error) => (error.state(), error.to_string()),
        };
        let mut observed = self.observed.lock();
        if observed.0 == state {
            return;
        }
        let (bucket, from) = (&self.settings.name, observed.0.as_str());
        if state == BucketState::Reachable {
            tracing::info!(bucket, from, "the bucket answers");
        } else {
            tracing::warn!(
                bucket,
                from,
                state = state.as_str(),
                message,
                "the bucket cannot be used"
            );
        }
        *observed = (state, message);
    }
}
