//! The server: opens the cache, builds the upstreams, listens, and stops in order.

mod bucket;
mod descriptors;
mod error;
mod listen;
mod peer_port;
mod reload;
mod state;
mod umask;
mod upstream_set;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use error::Error;
pub use reload::Reloader;
pub use umask::restrict_new_files;

use crate::clock::Clock;
use crate::config::http::Tls;
use crate::config::log::Level;
use crate::config::{Config, Notice};
use crate::health::Health;
use crate::http::connection::tls::Certificates;
use crate::http::connection::{self, ConnectionOptions, Listener};
use crate::http::{self, Htpasswd};
use crate::metrics::Metrics;
use crate::pull::{Live, Pull};
use crate::store::{self, Store};
use crate::traces;
use crate::upstream::{BuildError, Options};
use crate::{admin, expiry, peers};
use peer_port::PeerPort;
use state::ServerState;
use upstream_set::UpstreamSet;

/// A server that listens and answers no client before [`Server::run`].
pub struct Server {
    listener: Listener,
    address: String,
    admin: Option<(TcpListener, Router)>,
    peers: Option<PeerPort>,
    actions: Option<(TcpListener, Router)>,
    service: http::Service,
    connections: ConnectionOptions,
    lame_duck: Duration,
    state: Arc<ServerState>,
    reloader: Reloader,
    /// Stops the background tasks.
    tasks: CancellationToken,
}

/// Serves until `shutdown`, then waits for requests in flight.
///
/// # Errors
/// The reason why the server cannot start, or why it ended before `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    Server::start(config).await?.run(shutdown).await
}

/// Checks the files that a configuration names, as a start does, and returns notices.
///
/// # Errors
/// The first file that is missing or malformed. A missing htpasswd file is only a notice: without it no client is let in,
/// which is safe, and the file may appear later. A running server skips an htpasswd line that is an error here.
pub fn check(config: &Config) -> Result<Vec<Notice>, Error> {
    certificates(config)?;
    upstream_set::validate_all(&config.proxy)?;
    config.bucket.as_ref().map(crate::bucket::check).transpose()?;
    let warning = |key: &str, message| Notice {
        key: key.to_owned(),
        message,
        level: Level::Warn,
    };
    let mut notices = Vec::new();
    let peer_tls = config.peers.as_ref().and_then(|peers| peers.tls.clone());
    peer_tls.map(|tls| Certificates::load(tls, false)).transpose()?;
    if let Some(peers) = &config.peers
        && let Err(error) = peers::read_secret(&peers.secret_file)
    {
        notices.push(warning("peers.secretfile", error.to_string()));
    }
    if let Some(access) = &config.access {
        let trouble = http::check_htpasswd(&access.path).map_err(Error::Users)?;
        notices.extend(trouble.map(|message| warning("auth.htpasswd.path", message)));
    }
    Ok(notices)
}

impl Server {
    /// Opens the cache and listens.
    ///
    /// # Errors
    /// A file that the configuration names is missing or malformed, the cache is in use or cannot be written,
    /// or an address is taken.
    pub async fn start(config: Config) -> Result<Self, Error> {
        descriptors::raise_limit();
        let (clock, metrics, tasks) = (Clock::system(), metrics(), CancellationToken::new());
        let (config, certificates, users) = read_files(config).await?;
        // The addresses first, so that a second server on the same address fails before it touches the cache.
        let (listener, address) = listen::clients(&config.http.listen).await?;
        let admin = listen::admin(config.http.admin.as_ref()).await?;
        let peers = PeerPort::listen(config.peers.as_ref()).await?;
        let actions = listen::actions(config.http.actions.as_deref()).await?;
        let mut upstreams = UpstreamSet::default();
        let options = Options {
            clock: clock.clone(),
            metrics: metrics.clone(),
            ..Options::default()
        };
        // In parallel: the store waits for the disk, the upstreams read the CAs of the system.
        let (store, made) = tokio::join!(
            open(&config, &clock, &metrics),
            upstreams.reconfigure(&config.proxy, &options)
        );
        let (store, ()) = (store?, made?);
        let live = live(&config, &upstreams);
        let pull = Pull::new(store.clone(), live, clock.clone(), &metrics);
        let peers = match peers {
            Some(port) => Some(port.join(&config, &store, &pull, clock.clone()).await?),
            None => None,
        };
        let fleet = peers.as_ref().and_then(PeerPort::fleet);
        let uploader = bucket::uploader(&config, &store, &pull).await?;
        bucket::share_uploads(uploader.as_ref(), fleet.as_ref(), &pull);
        let ledger = bucket::ledger(uploader.as_ref(), &store, fleet.as_ref(), &clock, &metrics);
        let health = Health::start(&config.health, &config.root, &tasks);
        let settings = settings(&config, users.clone(), health.clone());
        let service = http::service(pull.clone(), settings, metrics.clone());
        let connections = connection_options(&config, certificates.clone());
        let lame_duck = config.http.lame_duck;
        let (files, content) = ((certificates.clone(), users.clone()), (store, pull.clone()));
        let state = ServerState::new(config, content, metrics, health, files, &upstreams);
        let state = state.with_clients(service.clients()).with_fleet(fleet);
        let state = Arc::new(state.with_uploader(uploader).with_ledger(ledger));
        let admin = admin.map(|(listener, admin)| {
            let path = admin.metrics_path.as_deref();
            (listener, admin::service(state.clone(), path, admin.page))
        });
        let actions = actions.map(|listener| (listener, crate::actions::service(pull.clone())));
        Ok(Self {
            listener,
            address,
            admin,
            peers,
            actions,
            service,
            connections,
            lame_duck,
            reloader: Reloader::new(state.clone(), pull, options, (certificates, users), upstreams),
            state,
            tasks,
        })
    }

    /// Returns the address that clients connect to: `host:port` with the actual port, or the path of a socket.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the address of the admin port, if there is one.
    pub fn admin_address(&self) -> Option<String> {
        let (listener, _) = self.admin.as_ref()?;
        listener.local_addr().ok().map(|address| address.to_string())
    }

    /// Returns the address of the listener of actions, if there is one.
    pub fn actions_address(&self) -> Option<String> {
        let (listener, _) = self.actions.as_ref()?;
        listener.local_addr().ok().map(|address| address.to_string())
    }

    /// Returns a handle that applies new configurations at run time.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Serves until `shutdown` and through the lame-duck time that follows, then waits for requests in flight.
    ///
    /// # Errors
    /// The panic of the task that serves clients; the state of the cache is written nevertheless.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let (admin, actions) = (self.admin_address(), self.actions_address());
        if self.state.readonly() {
            info!("the cache is read-only (proxy.cache.readonly): nothing is added, nothing expires");
        }
        let tasks = self.tasks;
        let _end = tasks.clone().drop_guard();
        let store = self.state.store.clone();
        let uploads = self.state.current().config.uploads;
        tokio::spawn(expiry::sweep_uploads(store.clone(), uploads, tasks.clone()));
        let expiry = tokio::spawn(expiry::run(store, self.reloader.cache(), tasks.clone()));
        let bucket_tasks = bucket::BucketTasks::spawn(&self.state, &self.reloader, &tasks);
        tokio::spawn(
            tasks
                .clone()
                .run_until_cancelled_owned(self.reloader.follow_files()),
        );
        if self.state.has_page() {
            let sample = self.state.clone().sample_history();
            tokio::spawn(tasks.clone().run_until_cancelled_owned(sample));
        }
        for (listener, service) in self.admin.into_iter().chain(self.actions) {
            // Until the end, so that probes see that the server is stopping.
            tokio::spawn(admin::serve(listener, service, tasks.clone()));
        }
        let closing = CancellationToken::new();
        let peers = self
            .peers
            .map(|port| port.serve(&self.connections, &closing, &tasks));
        let state = Arc::clone(&self.state);
        tokio::spawn(leave(shutdown, self.state, self.lame_duck, closing.clone()));
        info!(address = %self.address, admin, actions, "serving");
        // In a task, because the main thread is not a runtime worker: each connection would cost two more thread
        // switches.
        let serving = connection::serve(self.listener, self.service, self.connections, closing);
        let served = tokio::spawn(serving).await.map_err(Error::Serving);
        if let Some(peers) = peers {
            // A panic of it was logged.
            let _ = peers.await;
        }
        if state.has_page() {
            state.add_sample();
        }
        tasks.cancel();
        // The expiry task writes the in-memory state of the store last. An error of it was logged.
        let _ = expiry.await;
        bucket_tasks.finish().await;
        info!("stopped");
        served
    }
}

/// Reports not ready after the shutdown and keeps accepting connections during the lame-duck time: load balancers
/// notice with a delay, and route clients here until then.
async fn leave(
    shutdown: CancellationToken,
    state: Arc<ServerState>,
    lame_duck: Duration,
    closing: CancellationToken,
) {
    shutdown.cancelled().await;
    state.drain();
    tokio::time::sleep(lame_duck).await;
    closing.cancel();
}

/// Creates the metrics of the process, with exemplars if traces are exported.
fn metrics() -> Metrics {
    Metrics::with_exemplars(traces::are_exported())
}

/// Reads the certificate and the htpasswd file, on a thread that may block.
async fn read_files(config: Config) -> Result<(Config, Option<Arc<Certificates>>, Option<Htpasswd>), Error> {
    let read = move || {
        let certificates = certificates(&config)?.map(Arc::new);
        let users = users(&config);
        Ok((config, certificates, users))
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or(Err(Error::Upstream(BuildError::Stopping)))
}

fn certificates(config: &Config) -> Result<Option<Certificates>, Error> {
    let load = |tls: &Tls| Certificates::load(tls.clone(), config.http.http2);
    Ok(config.http.tls.as_ref().map(load).transpose()?)
}

fn connection_options(config: &Config, tls: Option<Arc<Certificates>>) -> ConnectionOptions {
    ConnectionOptions {
        tls,
        http2: config.http.http2,
        drain: config.http.drain_timeout,
        max_connections: descriptors::max_connections(config.http.max_connections),
    }
}

async fn open(config: &Config, clock: &Clock, metrics: &Metrics) -> Result<Store, Error> {
    // Below its root the store repairs damage. A file as the root is no damage, but a mistake.
    if std::fs::metadata(&config.root).is_ok_and(|root| !root.is_dir()) {
        return Err(Error::NoDirectory(config.root.clone()));
    }
    let options = store::StoreOptions {
        default_host: config.proxy.upstreams[0].host.clone(),
        max_size: config.proxy.cache.max_size,
        pinned: config.proxy.cache.pinned.clone(),
        readonly: config.proxy.cache.readonly,
        clock: clock.clone(),
        metrics: metrics.clone(),
    };
    Ok(Store::open(&config.root, options).await?)
}

fn live(config: &Config, upstreams: &UpstreamSet) -> Live {
    Live {
        upstreams: upstreams.origins(),
        cache: config.proxy.cache.clone(),
    }
}

fn users(config: &Config) -> Option<Htpasswd> {
    let access = config.access.as_ref()?;
    Some(Htpasswd::new(access.path.clone(), &access.realm))
}

fn settings(config: &Config, users: Option<Htpasswd>, health: Health) -> http::Settings {
    http::Settings {
        scheme: if config.http.tls.is_some() {
            "https"
        } else {
            "http"
        },
        prefix: config.http.prefix.trim_end_matches('/').to_owned(),
        headers: config.http.headers.clone(),
        access: users,
        access_log: config.log.access,
        health,
    }
}
