//! Clients of upstream registries.
//!
//! A request goes from `manifests`, `tags`, `referrers` or `blobs` through `request` (authorization, rate limits,
//! redirects) to `transport` (one HTTP exchange, reachability, addresses). `auth` holds the credential with its tokens,
//! and decides which servers may receive it.

mod accept;
mod auth;
mod blob_body;
mod blobs;
mod coalesce;
mod error;
mod error_body;
mod host_cooldown;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod json_body;
mod last_error;
mod link;
mod manifests;
mod min_throughput;
mod options;
mod rate_limit;
mod referrers;
mod request;
mod response;
mod tags;
mod transport;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore};
use url::Url;

pub use accept::Accept;
pub use blob_body::BlobBody;
pub(crate) use blob_body::BodyStream;
pub use blobs::BlobAnswer;
pub use error::{BuildError, Error};
pub(crate) use json_body::MAX_SMALL;
pub use last_error::LastError;
pub use manifests::{MAX_MANIFEST, ManifestAnswer, ManifestHead};
pub(crate) use min_throughput::meets_minimum;
pub use options::{Limits, Options, Timeouts};
pub use tags::ListAnswer;

use auth::Authorizer;
use auth::trust::Policy;
use host_cooldown::HostCooldowns;
use json_body::MAX_LARGE_DOCUMENTS;
use last_error::ErrorRecord;
pub use rate_limit::RateLimit;
use rate_limit::RequestClass;
use transport::Transport;
use transport::address_policy::AddressPolicy;
use transport::clients::Clients;
use transport::reachability::{Reachability, ReachabilityState};

use crate::clock::Clock;
use crate::config;
use crate::credential::Credential;
use crate::name::{Host, RepositoryName};

/// The client of an upstream registry.
pub struct Upstream {
    transport: Arc<Transport>,
    prefix: Option<RepositoryName>,
    policy: Policy,
    clock: Clock,
    authorizer: ArcSwap<Authorizer>,
    /// The authorizer without a credential, for registries that redirects lead to and that may not receive it.
    anonymous: Authorizer,
    credential: AtomicU64,
    /// Notified when the upstream refuses a request for want of a better credential.
    refused: Notify,
    blobs: Arc<Semaphore>,
    passing: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

/// The state of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// The upstream answered the last request.
    Reachable,
    /// The upstream is down: requests fail at once until a probe succeeds.
    Unreachable,
    /// The upstream limits the rate of at least one class of requests.
    RateLimited,
    /// No request was sent yet.
    Unknown,
}

impl Upstream {
    /// Creates a client with default options.
    ///
    /// # Errors
    /// The CA file cannot be used.
    pub fn new(config: &config::Upstream, clock: Clock) -> Result<Self, BuildError> {
        let options = Options {
            clock,
            ..Options::default()
        };
        Self::with_options(config, options)
    }

    /// Creates a client.
    ///
    /// # Errors
    /// The CA file cannot be used.
    pub fn with_options(config: &config::Upstream, options: Options) -> Result<Self, BuildError> {
        let remote = bare(&config.remote);
        let trust = &config.trust;
        let trusted = trust.redirects.iter().chain(&trust.realms).map(String::as_str);
        let verifies = !config.tls.insecure_skip_verify;
        let addresses = AddressPolicy::new(&remote, verifies, trust.key, trusted);
        let clients = Clients::new(config, &options.timeouts, &addresses)?;
        let policy = Policy::new(remote.clone(), config);
        let authorizer = |credential| Authorizer::new(Ok(credential), policy.clone(), options.clock.clone());
        let (own, anonymous) = (
            authorizer(config.credential.clone()),
            authorizer(Credential::Anonymous),
        );
        Ok(Self {
            transport: Arc::new(Transport {
                host: config.host.clone(),
                remote,
                timeouts: options.timeouts,
                metrics: options.metrics.add_upstream(&config.host),
                reachability: ReachabilityState::default(),
                addresses,
                cooldowns: HostCooldowns::new(options.clock.clone()),
                errors: ErrorRecord::new(options.clock.clone()),
                clients,
                large_documents: Arc::new(Semaphore::new(MAX_LARGE_DOCUMENTS)),
            }),
            prefix: config.repository_prefix.clone(),
            authorizer: ArcSwap::from_pointee(own),
            anonymous,
            policy,
            clock: options.clock,
            credential: AtomicU64::default(),
            refused: Notify::new(),
            blobs: Arc::new(Semaphore::new(options.limits.blobs)),
            passing: Arc::new(Semaphore::new(options.limits.passing)),
            others: Arc::new(Semaphore::new(options.limits.others)),
        })
    }

    /// Returns the name of the upstream as clients write it.
    pub fn host(&self) -> &Host {
        &self.transport.host
    }

    /// Uses this credential from now on; tokens and cooldowns of the previous one are forgotten.
    pub fn use_credential(&self, credential: Credential, version: u64) {
        let message = match credential {
            Credential::Anonymous => "requests are anonymous",
            Credential::Basic { .. } | Credential::IdentityToken { .. } => "credential in use",
        };
        tracing::info!(host = %self.host(), version, "{message}");
        self.change(Ok(credential));
    }

    /// Rejects all requests: without a usable credential, anonymous requests would hide the misconfiguration.
    pub fn refuse(&self, reason: String) {
        tracing::warn!(host = %self.host(), reason, "no usable credential");
        self.change(Err(Error::no_credential(reason)));
    }

    /// Fails all requests while the credential can't be read.
    pub fn suspend(&self, reason: String) {
        self.change(Err(Error::unavailable(reason)));
    }

    fn change(&self, credential: Result<Credential, Error>) {
        let authorizer = Authorizer::new(credential, self.policy.clone(), self.clock.clone());
        self.authorizer.store(Arc::new(authorizer));
        self.credential.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the generation of the credential in use, so that a response to a previous one is not attributed to it.
    pub fn credential_generation(&self) -> u64 {
        self.credential.load(Ordering::Relaxed)
    }

    /// Waits until the upstream refuses a request for want of a better credential.
    pub async fn refused(&self) {
        self.refused.notified().await;
    }

    /// Returns the state of the upstream.
    pub fn state(&self) -> UpstreamState {
        let authorizer = self.authorizer();
        let limited = |class| authorizer.rate_limits.cooldown(class).is_some();
        match self.transport.reachability.observed() {
            Reachability::Down { .. } => UpstreamState::Unreachable,
            _ if RequestClass::ALL.into_iter().any(limited) => UpstreamState::RateLimited,
            Reachability::Up => UpstreamState::Reachable,
            Reachability::Unknown => UpstreamState::Unknown,
        }
    }

    /// Returns the last error of the upstream, if there was one.
    pub fn last_error(&self) -> Option<LastError> {
        self.transport.errors.last()
    }

    /// Returns the time of the next request to an upstream that is down or limits the rate of requests: that of the next
    /// probe, or the end of the first cooldown.
    pub fn next_try(&self) -> Option<Timestamp> {
        if let Reachability::Down { next_probe, .. } = self.transport.reachability.observed() {
            return Some(next_probe);
        }
        let authorizer = self.authorizer();
        let cooldowns = RequestClass::ALL.map(|class| authorizer.rate_limits.cooldown(class));
        let first = cooldowns.into_iter().flatten().min()?;
        self.clock.now().checked_add(first).ok()
    }

    /// Returns `true` if a request failed or hangs and no response arrived since; callers with a cached copy should not
    /// wait.
    pub fn is_probing(&self) -> bool {
        self.transport.reachability.is_probing()
    }

    /// Returns the rate limit for the credential in use, as the upstream last reported it.
    pub fn rate_limit(&self) -> RateLimit {
        self.authorizer().rate_limits.reported()
    }

    fn authorizer(&self) -> Arc<Authorizer> {
        self.authorizer.load_full()
    }

    /// Returns the name of a repository at the upstream.
    fn name(&self, name: &RepositoryName) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}/{name}"),
            None => name.to_string(),
        }
    }
}

/// Returns the URL without user, query and fragment, which would go with every request.
fn bare(remote: &Url) -> Url {
    let mut bare = remote.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    // Fails only for URLs that have no host, which can't have a user either.
    let _ = bare.set_username("").and_then(|()| bare.set_password(None));
    bare
}
