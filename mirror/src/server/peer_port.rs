//! The peer port of a server, and its part in the fleet.

use std::sync::Arc;

use ::http::HeaderMap;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Error, listen};
use crate::clock::Clock;
use crate::config::{Config, PeerSettings};
use crate::health::Health;
use crate::http;
use crate::http::connection::{self, ConnectionOptions, Listener};
use crate::metrics::Metrics;
use crate::peers::{self, Fleet};
use crate::pull::Pull;
use crate::store::Store;

/// The most connections to the peer port: 128 of each of eight peers.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// A peer port that listens.
pub(super) struct PeerPort {
    listener: Listener,
    joined: Option<(Arc<Fleet>, http::Service)>,
}

impl PeerPort {
    /// Listens, if the configuration has peers.
    pub(super) async fn listen(settings: Option<&PeerSettings>) -> Result<Option<Self>, Error> {
        let Some(settings) = settings else { return Ok(None) };
        let listener = listen::peers(&settings.addr).await?;
        let joined = None;
        Ok(Some(Self { listener, joined }))
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
        let fleet = Fleet::new(settings.clone(), &config.proxy, id, clock).map_err(Error::Peers)?;
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
        tokio::spawn(fleet.run(tasks.clone()));
        let options = ConnectionOptions {
            tls: None,
            http2: false,
            drain: clients.drain,
            max_connections: MAX_CONNECTIONS.min(clients.max_connections),
        };
        tokio::spawn(connection::serve(
            self.listener,
            service,
            options,
            closing.clone(),
        ))
    }
}
