//! The upstreams of the server, each with its credential rotator.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::UpstreamStatus;
use crate::config::{self, Proxy};
use crate::credential::Credential;
use crate::credentials::rotator::CredentialRotator;
use crate::credentials::watch::Watch;
use crate::credentials::{
    CredentialSink, CredentialVerdict, Report, RetryIntervals, RotationState, Snapshot,
};
use crate::file_read::{self, MAX_FILE};
use crate::metrics::UpstreamSnapshot;
use crate::name::Host;
use crate::pull::Origin;
use crate::upstream::{self, BuildError, Options, RateLimit, Upstream};

/// The upstreams of a configuration, the default one first.
#[derive(Default)]
pub(super) struct UpstreamSet {
    all: Vec<ManagedUpstream>,
    directory: Option<(PathBuf, Watch)>,
    /// The source of snapshots if there is no directory.
    no_directory: watch::Sender<Arc<Snapshot>>,
    /// `true` if the server must not send requests to upstreams.
    offline: bool,
}

/// An upstream with its rotator.
struct ManagedUpstream {
    built: BuiltClient,
    rotation: watch::Receiver<RotationState>,
    /// `None` if no credential was ever configured.
    rotator: Option<AbortOnDropHandle<()>>,
}

/// The client of an upstream, and the settings that it was built from.
#[derive(Clone)]
struct BuiltClient {
    settings: config::Upstream,
    /// The content of its CA file.
    authorities: Option<Vec<u8>>,
    client: Arc<Upstream>,
}

/// A handle that reports the state of one upstream.
#[derive(Clone)]
pub(super) struct UpstreamHandle {
    pub(super) host: Host,
    client: Arc<Upstream>,
    rotation: watch::Receiver<RotationState>,
}

/// Builds a client for each upstream, to validate the settings.
pub(super) fn validate_all(proxy: &Proxy) -> Result<(), BuildError> {
    let mut settings = proxy.upstreams.iter();
    settings.try_for_each(|settings| Upstream::with_options(settings, Options::default()).map(drop))
}

impl BuiltClient {
    /// Returns the existing client if neither its settings nor its CA file changed, else a new one. Blocks.
    fn build(settings: &config::Upstream, options: &Options, before: &[Self]) -> Result<Self, BuildError> {
        let ca_file = settings.tls.ca_file.as_deref();
        let authorities = ca_file.and_then(|path| file_read::read(path, MAX_FILE).ok());
        let same = |old: &&Self| old.settings == *settings && old.authorities == authorities;
        if let Some(old) = before.iter().find(same) {
            return Ok(old.clone());
        }
        Ok(Self {
            client: Arc::new(Upstream::with_options(settings, options.clone())?),
            settings: settings.clone(),
            authorities,
        })
    }
}

impl UpstreamSet {
    /// Applies a configuration. An unchanged upstream keeps its client with connections and tokens, and every host
    /// keeps the credential in use.
    ///
    /// # Errors
    /// A client cannot be built; then nothing changes.
    pub(super) async fn reconfigure(&mut self, proxy: &Proxy, options: &Options) -> Result<(), BuildError> {
        let all = self.build_all(proxy, options).await?;
        let moved = self.directory.as_ref().map(|(path, _)| path) != proxy.credentials_directory.as_ref();
        if moved {
            self.directory = match &proxy.credentials_directory {
                Some(path) => Some((path.clone(), Watch::start(path).await)),
                None => None,
            };
        }
        let is_same = !moved && self.offline == proxy.cache.offline;
        self.offline = proxy.cache.offline;
        let mut before = std::mem::take(&mut self.all);
        for built in all {
            let held = before
                .iter()
                .position(|old| old.built.settings.host == built.settings.host);
            let held = held.map(|index| before.swap_remove(index));
            let managed = match held {
                Some(held) if is_same && Arc::ptr_eq(&held.built.client, &built.client) => held,
                held => self.manage(built, held),
            };
            self.all.push(managed);
        }
        Ok(())
    }

    /// Returns a client for each upstream. Works on a thread that may block, as clients read CA files.
    async fn build_all(&self, proxy: &Proxy, options: &Options) -> Result<Vec<BuiltClient>, BuildError> {
        let before: Vec<_> = self.all.iter().map(|old| old.built.clone()).collect();
        let (settings, options) = (proxy.upstreams.clone(), options.clone());
        let build = move || {
            let settings = settings.iter();
            settings
                .map(|settings| BuiltClient::build(settings, &options, &before))
                .collect()
        };
        let clients = tokio::task::spawn_blocking(build).await;
        clients.unwrap_or_else(|_| Err(BuildError::Stopping))
    }

    fn manage(&self, built: BuiltClient, held: Option<ManagedUpstream>) -> ManagedUpstream {
        let held = held.filter(|held| held.rotator.is_some());
        let is_anonymous = built.settings.credential == Credential::Anonymous;
        if self.directory.is_none() && is_anonymous && held.is_none() {
            let (_, rotation) = watch::channel(RotationState::default());
            return ManagedUpstream {
                built,
                rotation,
                rotator: None,
            };
        }
        let held = held.map(|held| held.rotation.borrow().clone());
        let (sender, rotation) = watch::channel(held.unwrap_or_default());
        let snapshots = match &self.directory {
            Some((_, watch)) => watch.snapshots(),
            None => self.no_directory.subscribe(),
        };
        let rotator = CredentialRotator::new(
            built.settings.clone(),
            built.client.clone(),
            RetryIntervals::default(),
            sender,
        );
        let task = tokio::spawn(rotator.offline(self.offline).run(snapshots));
        ManagedUpstream {
            built,
            rotation,
            rotator: Some(AbortOnDropHandle::new(task)),
        }
    }

    /// Returns the upstreams for the pull path.
    pub(super) fn origins(&self) -> Vec<Origin> {
        let origin = |managed: &ManagedUpstream| Origin {
            settings: managed.built.settings.clone(),
            client: managed.built.client.clone(),
        };
        self.all.iter().map(origin).collect()
    }

    /// Returns a handle for each upstream.
    pub(super) fn handles(&self) -> Vec<UpstreamHandle> {
        let handle = |managed: &ManagedUpstream| UpstreamHandle {
            host: managed.built.settings.host.clone(),
            client: managed.built.client.clone(),
            rotation: managed.rotation.clone(),
        };
        self.all.iter().map(handle).collect()
    }

    /// Reads the credentials directory immediately.
    pub(super) fn reload_credentials(&self) {
        if let Some((_, watch)) = &self.directory {
            watch.reload();
        }
    }
}

impl UpstreamHandle {
    pub(super) fn credentials(&self) -> Report {
        self.rotation.borrow().report.clone()
    }

    /// Returns the rate limit for the credential in use, as the upstream last reported it.
    pub(super) fn rate_limit(&self) -> RateLimit {
        self.client.rate_limit()
    }

    /// Returns the part of the status report about this upstream.
    pub(super) fn status(&self) -> UpstreamStatus {
        let (limit, error) = (self.rate_limit(), self.client.last_error());
        UpstreamStatus {
            host: self.host.to_string(),
            state: self.state().to_owned(),
            rate_limit_remaining: limit.remaining,
            rate_limit: limit.limit,
            rate_limit_reset: limit.reset.map(|reset| reset.to_string()),
            last_error_time: error.as_ref().map(|error| error.at.to_string()),
            last_error: error.map(|error| error.message),
            next_try: self.client.next_try().map(|time| time.to_string()),
            credentials: self.credentials(),
        }
    }

    /// Returns the values of the upstream's gauges.
    pub(super) fn gauges(&self) -> UpstreamSnapshot {
        let limit = self.rate_limit();
        UpstreamSnapshot {
            up: self.client.state() != upstream::UpstreamState::Unreachable,
            rate_limit: limit.limit,
            remaining: limit.remaining,
            reset: limit.reset.map(Timestamp::as_second),
            credential: self.credentials().state.as_str(),
        }
    }

    /// Returns the state as `/status` names it.
    pub(super) fn state(&self) -> &'static str {
        match self.client.state() {
            upstream::UpstreamState::Reachable => "Reachable",
            upstream::UpstreamState::Unreachable => "Unreachable",
            upstream::UpstreamState::RateLimited => "RateLimited",
            upstream::UpstreamState::Unknown => "Unknown",
        }
    }
}

impl CredentialSink for Upstream {
    async fn verify(&self, candidate: &Credential) -> CredentialVerdict {
        Upstream::verify(self, candidate).await
    }

    fn use_credential(&self, credential: Credential, version: u64) {
        Upstream::use_credential(self, credential, version);
    }

    fn refuse(&self, reason: String) {
        Upstream::refuse(self, reason);
    }

    fn suspend(&self, reason: String) {
        Upstream::suspend(self, reason);
    }

    async fn refused(&self) {
        Upstream::refused(self).await;
    }
}

/// Returns the CA files of a configuration.
pub(super) fn ca_files(proxy: &Proxy) -> impl Iterator<Item = &Path> {
    proxy
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.tls.ca_file.as_deref())
}
