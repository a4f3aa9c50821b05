//! The registries that are asked for what the cache has not.
//!
//! A question goes `manifests`, `tags`, `referrers` or `blobs` → `exchange` (authorization by `access`, `token_server`, `token`
//! and `challenge`; rests; redirects) → `wire` (one request, whether upstream is there at all) →
//! `clients`. `redirect`, `trust` and `address` decide where it may lead, and with which authorization.

mod accept;
mod access;
mod address;
mod answer;
mod blobs;
mod challenge;
mod clients;
mod error;
mod error_body;
mod exchange;
mod health;
mod host_cooldown;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod json_body;
mod link;
mod manifests;
mod options;
mod pace;
mod redirect;
mod referrers;
mod rest;
mod span;
mod tags;
mod token;
mod token_server;
mod trust;
mod verify;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use url::Url;

pub use accept::Accept;
pub use blobs::{BlobAnswer, BlobBody};
pub use error::{BuildError, Error};
pub(crate) use json_body::MAX_SMALL;
pub use manifests::{MOST_MANIFEST, ManifestAnswer, ManifestHead};
pub use options::{Limits, Options, Timeouts};
pub(crate) use pace::is_enough;
pub use tags::ListAnswer;

use access::Access;
use address::AddressPolicy;
use clients::Clients;
use health::{Contact, Health};
use host_cooldown::HostCooldowns;
use json_body::MAX_LARGE_DOCUMENTS;
use rest::Class;
use trust::Policy;
use wire::Wire;

use crate::clock::Clock;
use crate::config;
use crate::credential::Credential;
use crate::name::{Host, RepositoryName};

/// One upstream registry.
pub struct Upstream {
    wire: Arc<Wire>,
    prefix: Option<RepositoryName>,
    policy: Policy,
    clock: Clock,
    access: ArcSwap<Access>,
    /// For registries that redirects lead to and that may not see the credential: this one holds none.
    strangers: Access,
    credential: AtomicU64,
    /// Notified where the upstream refuses a request for want of a better credential.
    refused: Notify,
    blobs: Arc<Semaphore>,
    passing: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

/// What is known about an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answered last.
    Reachable,
    /// It is down; requests fail at once until a probe finds it back.
    Unreachable,
    /// It wants to be left alone for a while, at least with some requests.
    RateLimited,
    /// Nothing was asked yet.
    Unknown,
}

impl Upstream {
    /// An upstream with default options.
    ///
    /// # Errors
    /// If its CA file can't be used.
    pub fn new(config: &config::Upstream, clock: Clock) -> Result<Self, BuildError> {
        let options = Options {
            clock,
            ..Options::default()
        };
        Self::with_options(config, options)
    }

    /// An upstream.
    ///
    /// # Errors
    /// If its CA file can't be used.
    pub fn with_options(config: &config::Upstream, options: Options) -> Result<Self, BuildError> {
        let remote = bare(&config.remote);
        let trust = &config.trust;
        let trusted = trust.redirects.iter().chain(&trust.realms).map(String::as_str);
        let verifies = !config.tls.insecure_skip_verify;
        let addresses = AddressPolicy::new(&remote, verifies, trust.key, trusted);
        let clients = Clients::new(config, &options.timeouts, &addresses)?;
        let policy = Policy::new(remote.clone(), config);
        let access = |credential| Access::new(Ok(credential), policy.clone(), options.clock.clone());
        let (own, strangers) = (access(config.credential.clone()), access(Credential::Anonymous));
        Ok(Self {
            wire: Arc::new(Wire {
                host: config.host.clone(),
                remote,
                timeouts: options.timeouts,
                metrics: options.metrics,
                health: Health::default(),
                addresses,
                cooldowns: HostCooldowns::new(options.clock.clone()),
                clients,
                large_documents: Arc::new(Semaphore::new(MAX_LARGE_DOCUMENTS)),
            }),
            prefix: config.repository_prefix.clone(),
            access: ArcSwap::from_pointee(own),
            strangers,
            policy,
            clock: options.clock,
            credential: AtomicU64::default(),
            refused: Notify::new(),
            blobs: Arc::new(Semaphore::new(options.limits.blobs)),
            passing: Arc::new(Semaphore::new(options.limits.passing)),
            others: Arc::new(Semaphore::new(options.limits.others)),
        })
    }

    /// Its name as clients write it.
    pub fn host(&self) -> &Host {
        &self.wire.host
    }

    /// Shows this credential from now on; tokens and rests of the one before are forgotten.
    pub fn use_credential(&self, credential: Credential, version: u64) {
        tracing::info!(host = %self.host(), version, "credential in use");
        self.change(Ok(credential));
    }

    /// Asks nothing from now on: there is no usable credential, and to go on without would hide that.
    pub fn refuse(&self, reason: String) {
        tracing::warn!(host = %self.host(), reason, "no usable credential");
        self.change(Err(reason));
    }

    fn change(&self, credential: Result<Credential, String>) {
        let access = Access::new(credential, self.policy.clone(), self.clock.clone());
        self.access.store(Arc::new(access));
        self.credential.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the credential in use from those before it, so that what was said to one is not taken for the other.
    pub fn credential_generation(&self) -> u64 {
        self.credential.load(Ordering::Relaxed)
    }

    /// Waits until the upstream refuses a request for want of a better credential.
    pub async fn refused(&self) {
        self.refused.notified().await;
    }

    /// What is known about it.
    pub fn state(&self) -> State {
        let access = self.access();
        let limited = |class| access.rests.left(class).is_some();
        match self.wire.health.contact() {
            Contact::Down { .. } => State::Unreachable,
            _ if Class::ALL.into_iter().any(limited) => State::RateLimited,
            Contact::Up => State::Reachable,
            Contact::None => State::Unknown,
        }
    }

    /// Whether a request to it failed or hangs, and nothing was heard since: who has a copy need not wait.
    pub fn is_doubted(&self) -> bool {
        self.wire.health.is_doubted()
    }

    /// What it last said is left of its rate limit for the credential in use.
    pub fn requests_left(&self) -> Option<i64> {
        self.access().rests.requests_left()
    }

    fn access(&self) -> Arc<Access> {
        self.access.load_full()
    }

    /// A repository's name at the upstream.
    fn name(&self, name: &RepositoryName) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}/{name}"),
            None => name.to_string(),
        }
    }
}

/// The URL without what would be sent along with every request.
fn bare(remote: &Url) -> Url {
    let mut bare = remote.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    // Fails only for URLs that have no host, which can't have a user either.
    let _ = bare.set_username("").and_then(|()| bare.set_password(None));
    bare
}
