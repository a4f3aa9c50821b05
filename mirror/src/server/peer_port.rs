//! The peer port of a server, and its part in the fleet.

use std::path::PathBuf;
use std::sync::Arc;

use ::http::HeaderMap;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::reload::RETRY_INTERVAL;
use super::{Error, listen};
use crate::clock::Clock;
use crate::config::{Config, PeerSettings};
use crate::file_watch::FileWatch;
use crate::health::Health;
use crate::http;
use crate::http::connection::tls::Certificates;
use crate::http::connection::{self, ConnectionOptions, Listener};
use crate::metrics::Metrics;
use crate::peers::{self, Fleet, PeerClientError};
use crate::pull::Pull;
use crate::store::Store;
use crate::upstream::BuildError;

/// The most connections to the peer port: 128 of each of eight peers.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// A peer port that listens.
pub(super) struct PeerPort {
    listener: Listener,
    files: PeerFiles,
    joined: Option<(Arc<Fleet>, http::Service)>,
}

/// The files of the peer port, which are read again when they change.
struct PeerFiles {
    paths: Vec<PathBuf>,
    certificates: Option<Arc<Certificates>>,
}

impl PeerFiles {
    /// Reads the certificate for other replicas.
    async fn load(settings: &PeerSettings) -> Result<Self, Error> {
        let (paths, tls) = (settings.files(), settings.tls.clone());
        let read = move || tls.map(|tls| Certificates::load(tls, false)).transpose();
        let certificates = match tokio::task::spawn_blocking(read).await {
            Ok(read) => read?.map(Arc::new),
            Err(_) => return Err(Error::Upstream(BuildError::Stopping)),
        };
        Ok(Self { paths, certificates })
    }

    /// Reads the files again after each change. Open connections keep the previous certificate.
    async fn follow(self, fleet: Arc<Fleet>) {
        // Stamps are taken before the files are read, so that no change is missed.
        let Ok(mut watch) = tokio::task::spawn_blocking(|| FileWatch::new(self.paths)).await else {
            return;
        };
        loop {
            let (fleet, certificates) = (Arc::clone(&fleet), self.certificates.clone());
            let reload = move || {
                let is_read = fleet.reload_files();
                if let Some(Err(error)) = certificates.map(|certificates| certificates.reload()) {
                    warn!(%error, "the old certificate of the peer port stays in use");
                }
                is_read
            };
            // A panic of it was logged.
            let is_read = tokio::task::spawn_blocking(reload).await.unwrap_or(true);
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(RETRY_INTERVAL), if !is_read => {}
            }
        }
    }
}

impl PeerPort {
    /// Listens, if the configuration has peers.
    pub(super) async fn listen(settings: Option<&PeerSettings>) -> Result<Option<Self>, Error> {
        let Some(settings) = settings else { return Ok(None) };
        let files = PeerFiles::load(settings).await?;
        let listener = listen::peers(&settings.addr).await?;
        let joined = None;
        Ok(Some(Self {
            listener,
            files,
            joined,
        }))
    }

    /// Joins the fleet: the pull path asks the other replicas from now on.
    pub(super) async fn join(
        self,
        config: &Config,
        store: &Store,
        pull: &Arc<Pull>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let Some(settings) = &config.peers else {
            return Ok(self);
        };
        let id = store.instance_id(peers::random_id()).await;
        let fleet = Fleet::new(settings.clone(), &config.proxy, id, clock);
        let fleet = fleet.map_err(|error| match error {
            PeerClientError::Files(error) => Error::Tls(error),
            PeerClientError::Http(error) => Error::Peers(error),
        })?;
        pull.join(Arc::clone(&fleet));
        let settings = http::Settings {
            scheme: "http",
            prefix: String::new(),
            headers: HeaderMap::new(),
            access: None,
            access_log: false,
            health: Health::default(),
        };
        // Counters of their own: what replicas take is not served to clients.
        let service = http::peer_service(Arc::clone(pull), settings, Metrics::new(), Arc::clone(&fleet));
        Ok(Self {
            joined: Some((fleet, service)),
            ..self
        })
    }

    /// Returns the fleet that the server joined.
    pub(super) fn fleet(&self) -> Option<Arc<Fleet>> {
        self.joined.as_ref().map(|(fleet, _)| Arc::clone(fleet))
    }

    /// Serves the other replicas until `closing`, then waits for requests in flight.
    pub(super) fn serve(
        self,
        clients: &ConnectionOptions,
        closing: &CancellationToken,
        tasks: &CancellationToken,
    ) -> JoinHandle<()> {
        let Some((fleet, service)) = self.joined else {
            return tokio::spawn(async {});
        };
        tokio::spawn(Arc::clone(&fleet).run(tasks.clone()));
        let options = ConnectionOptions {
            tls: self.files.certificates.clone(),
            http2: false,
            drain: clients.drain,
            max_connections: MAX_CONNECTIONS.min(clients.max_connections),
        };
        tokio::spawn(tasks.clone().run_until_cancelled_owned(self.files.follow(fleet)));
        tokio::spawn(connection::serve(
            self.listener,
            service,
            options,
            closing.clone(),
        ))
    }
}
