//! The upstreams that are asked, and what keeps them supplied with credentials.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{self, Proxy};
use crate::credentials::keeper::Keeper;
use crate::credentials::watch::Watch;
use crate::credentials::{Credential, Kept, Pace, Report, Snapshot, Target, Verdict};
use crate::name::Host;
use crate::pull::Origin;
use crate::upstream::{self, BuildError, Options, Upstream};

/// All upstreams of one configuration, the default one first.
#[derive(Default)]
pub(super) struct Upstreams {
    all: Vec<Supplied>,
    directory: Option<(PathBuf, Watch)>,
    /// Stands in for the directory where there is none.
    no_directory: watch::Sender<Arc<Snapshot>>,
    /// Whether upstreams must not be asked.
    offline: bool,
}

/// One upstream, and what keeps it supplied.
struct Supplied {
    made: Made,
    kept: watch::Receiver<Kept>,
    /// None where no credential was ever configured.
    keeper: Option<AbortOnDropHandle<()>>,
}

/// The client of an upstream, and what it was made of.
#[derive(Clone)]
struct Made {
    settings: config::Upstream,
    /// What its CA file held.
    authorities: Option<Vec<u8>>,
    client: Arc<Upstream>,
}

/// How it stands with one upstream.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) host: Host,
    client: Arc<Upstream>,
    kept: watch::Receiver<Kept>,
}

/// Makes a client for each upstream.
pub(super) fn try_all(proxy: &Proxy) -> Result<(), BuildError> {
    let mut settings = proxy.upstreams.iter();
    settings.try_for_each(|settings| Upstream::with_options(settings, Options::default()).map(drop))
}

impl Upstreams {
    /// Becomes what the configuration says. What did not change keeps its client with connections and tokens,
    /// and every host the credential in use.
    ///
    /// # Errors
    /// A client cannot be made; then everything stays as it was.
    pub(super) async fn become_of(&mut self, proxy: &Proxy, options: &Options) -> Result<(), BuildError> {
        let settings = proxy.upstreams.iter();
        let all = settings
            .map(|settings| self.make(settings, options))
            .collect::<Result<Vec<_>, _>>()?;
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
        for made in all {
            let held = before
                .iter()
                .position(|old| old.made.settings.host == made.settings.host);
            let held = held.map(|index| before.swap_remove(index));
            let supplied = match held {
                Some(held) if is_same && Arc::ptr_eq(&held.made.client, &made.client) => held,
                held => self.supply(made, held),
            };
            self.all.push(supplied);
        }
        Ok(())
    }

    /// The client that there is, if it would be made the same.
    fn make(&self, settings: &config::Upstream, options: &Options) -> Result<Made, BuildError> {
        let authorities = settings
            .tls
            .ca_file
            .as_ref()
            .and_then(|path| std::fs::read(path).ok());
        let same = |old: &&Supplied| old.made.settings == *settings && old.made.authorities == authorities;
        if let Some(old) = self.all.iter().find(same) {
            return Ok(old.made.clone());
        }
        Ok(Made {
            client: Arc::new(Upstream::with_options(settings, options.clone())?),
            settings: settings.clone(),
            authorities,
        })
    }

    fn supply(&self, made: Made, held: Option<Supplied>) -> Supplied {
        let held = held.filter(|held| held.keeper.is_some());
        let is_anonymous = made.settings.credential == Credential::Anonymous;
        if self.directory.is_none() && is_anonymous && held.is_none() {
            let (_, kept) = watch::channel(Kept::default());
            return Supplied {
                made,
                kept,
                keeper: None,
            };
        }
        let held = held.map(|held| held.kept.borrow().clone());
        let (sender, kept) = watch::channel(held.unwrap_or_default());
        let snapshots = match &self.directory {
            Some((_, watch)) => watch.snapshots(),
            None => self.no_directory.subscribe(),
        };
        let keeper = Keeper::new(
            made.settings.clone(),
            made.client.clone(),
            Pace::default(),
            sender,
        );
        let task = tokio::spawn(keeper.offline(self.offline).run(snapshots));
        Supplied {
            made,
            kept,
            keeper: Some(AbortOnDropHandle::new(task)),
        }
    }

    /// What the pull path asks.
    pub(super) fn origins(&self) -> Vec<Origin> {
        let origin = |supplied: &Supplied| Origin {
            settings: supplied.made.settings.clone(),
            client: supplied.made.client.clone(),
        };
        self.all.iter().map(origin).collect()
    }

    /// How it stands with each.
    pub(super) fn standings(&self) -> Vec<Standing> {
        let standing = |supplied: &Supplied| Standing {
            host: supplied.made.settings.host.clone(),
            client: supplied.made.client.clone(),
            kept: supplied.kept.clone(),
        };
        self.all.iter().map(standing).collect()
    }

    /// Reads the credentials directory at once.
    pub(super) fn look(&self) {
        if let Some((_, watch)) = &self.directory {
            watch.look();
        }
    }
}

impl Standing {
    pub(super) fn credentials(&self) -> Report {
        self.kept.borrow().report.clone()
    }

    /// See [`Upstream::requests_left`].
    pub(super) fn requests_left(&self) -> Option<i64> {
        self.client.requests_left()
    }

    /// As `/status` names it.
    pub(super) fn state(&self) -> &'static str {
        match self.client.state() {
            upstream::State::Reachable => "Reachable",
            upstream::State::Unreachable => "Unreachable",
            upstream::State::RateLimited => "RateLimited",
            upstream::State::Unknown => "Unknown",
        }
    }
}

impl Target for Upstream {
    async fn verify(&self, candidate: &Credential) -> Verdict {
        Upstream::verify(self, candidate).await
    }

    fn use_credential(&self, credential: Credential, version: u64) {
        Upstream::use_credential(self, credential, version);
    }

    fn refuse(&self, reason: String) {
        Upstream::refuse(self, reason);
    }

    async fn refused(&self) {
        Upstream::refused(self).await;
    }
}

/// The CA files of a configuration.
pub(super) fn authorities(proxy: &Proxy) -> impl Iterator<Item = &Path> {
    proxy
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.tls.ca_file.as_deref())
}
