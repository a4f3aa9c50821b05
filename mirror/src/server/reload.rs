//! Reloads of the configuration: applies changes that need no restart, and names the others.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tracing::{error, info, warn};

use super::state::ServerState;
use super::upstream_set::{self, UpstreamSet};
use crate::config::{BucketSettings, Cache, Config};
use crate::file_read;
use crate::file_watch::FileWatch;
use crate::http::Htpasswd;
use crate::http::connection::tls::Certificates;
use crate::pull::{Live, Pull};
use crate::upstream::{BuildError, Options};

/// The interval between two reads of files that could not be read for the moment.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A handle that applies new configurations; clones share the server.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    state: Arc<ServerState>,
    pull: Arc<Pull>,
    options: Options,
    cache: watch::Sender<Cache>,
    certificates: Option<Arc<Certificates>>,
    users: Option<Htpasswd>,
    upstreams: Mutex<UpstreamSet>,
    /// A configuration whose files are missing or broken; a change of them triggers another attempt.
    waiting: parking_lot::Mutex<Option<Config>>,
    /// Notified when the configuration may name other files.
    renamed: Notify,
}

/// The reason why a configuration is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "the default upstream cannot become {0} while the server runs, as it owns the unprefixed cache: restart"
    )]
    DefaultUpstream(String),
    #[error(transparent)]
    Upstream(#[from] BuildError),
}

impl Reloader {
    pub(super) fn new(
        state: Arc<ServerState>,
        pull: Arc<Pull>,
        options: Options,
        (certificates, users): (Option<Arc<Certificates>>, Option<Htpasswd>),
        upstreams: UpstreamSet,
    ) -> Self {
        let cache = state.current().config.proxy.cache.clone();
        Self(Arc::new(Inner {
            state,
            pull,
            options,
            cache: watch::Sender::new(cache),
            certificates,
            users,
            upstreams: Mutex::new(upstreams),
            waiting: parking_lot::Mutex::default(),
            renamed: Notify::new(),
        }))
    }

    /// Returns the settings of the cache, and each change of them.
    pub(super) fn cache(&self) -> watch::Receiver<Cache> {
        self.0.cache.subscribe()
    }

    /// Applies another configuration. Errors, and keys that need a restart, go to the log and `/status`.
    pub async fn reload(&self, config: Config) {
        let old = self.0.state.current().config.clone();
        for key in restart_keys(&old, &config) {
            warn!(key, "the change takes effect with the next start");
        }
        self.attempt(&old, config).await;
        self.0.renamed.notify_one();
    }

    async fn attempt(&self, old: &Config, config: Config) {
        match self.take(old, &config).await {
            Ok(()) => self.taken(config),
            Err(refused) => {
                self.refused(&refused);
                if matches!(refused, Refused::Upstream(_)) {
                    *self.0.waiting.lock() = Some(config);
                }
            }
        }
    }

    /// Records a configuration that could not be read; the previous one stays in use.
    pub fn refused(&self, error: &dyn std::error::Error) {
        *self.0.waiting.lock() = None;
        error!(%error, "the new configuration is not taken, the old one stays");
        self.0.state.metrics.reload(false);
        self.0.state.current().error = error.to_string();
    }

    async fn take(&self, old: &Config, new: &Config) -> Result<(), Refused> {
        let (before, after) = (&old.proxy.upstreams[0].host, &new.proxy.upstreams[0].host);
        if before != after {
            return Err(Refused::DefaultUpstream(after.to_string()));
        }
        self.renew(new).await?;
        let store = &self.0.state.store;
        store.set_limits(new.proxy.cache.max_size);
        store.set_readonly(new.proxy.cache.readonly);
        if let Some(uploader) = &self.0.state.uploader {
            uploader.bucket().set_ttl(&new.proxy.cache);
        }
        self.0.cache.send_replace(new.proxy.cache.clone());
        Ok(())
    }

    /// Rebuilds all parts whose settings or files changed.
    async fn renew(&self, config: &Config) -> Result<(), BuildError> {
        let mut upstreams = self.0.upstreams.lock().await;
        upstreams.reconfigure(&config.proxy, &self.0.options).await?;
        upstreams.reload_credentials();
        self.0.state.current().handles = upstreams.handles().into();
        if let Some(fleet) = self.0.state.fleet() {
            fleet.reload(&config.proxy);
        }
        self.0.pull.reload(Live {
            upstreams: upstreams.origins(),
            cache: config.proxy.cache.clone(),
        });
        if let Some(users) = self.0.users.clone() {
            // The reload logs its result itself.
            let _ = tokio::task::spawn_blocking(move || users.reload()).await;
        }
        self.renew_bucket().await;
        if let Some(certificates) = self.0.certificates.clone() {
            let reloaded = tokio::task::spawn_blocking(move || certificates.reload()).await;
            // An incomplete renewal triggers another reload when it completes.
            if let Ok(Err(error)) = reloaded {
                warn!(%error, "the old certificate stays in use");
            }
        }
        Ok(())
    }

    /// Reads the files of the bucket again, off the threads that serve.
    async fn renew_bucket(&self) {
        let Some(uploader) = self.0.state.uploader.clone() else {
            return;
        };
        match tokio::task::spawn_blocking(move || uploader.renew()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(%error, "the bucket's old credentials stay in use"),
            Err(error) => error!(%error, "the bucket's credentials cannot be read"),
        }
    }

    fn taken(&self, new: Config) {
        *self.0.waiting.lock() = None;
        let mut current = self.0.state.current();
        current.config.log.level = new.log.level;
        current.config.proxy = new.proxy;
        current.config.page_hosts = new.page_hosts;
        current.config.version = new.version;
        current.error.clear();
        self.0.state.metrics.reload(true);
        info!(version = %current.config.version, "the new configuration is in force");
    }

    /// Watches the files that the configuration names, and reloads them after a change.
    pub(super) async fn follow_files(self) {
        loop {
            // Stamps are taken before the files are read, so that no change is missed.
            let paths = self.referenced_files();
            let Ok(mut files) = tokio::task::spawn_blocking(|| FileWatch::new(paths)).await else {
                // The runtime stops.
                return;
            };
            let mut is_renewed = self.renew_files().await;
            loop {
                tokio::select! {
                    () = files.changed() => info!("a file that the configuration names changed"),
                    () = self.0.renamed.notified() => break,
                    () = tokio::time::sleep(RETRY_INTERVAL), if !is_renewed => {}
                }
                is_renewed = self.renew_files().await;
            }
        }
    }

    /// Returns the files of the configuration in use, and of the one that waits for its files.
    fn referenced_files(&self) -> Vec<PathBuf> {
        let mut paths = referenced_files(&self.0.state.current().config);
        paths.extend(self.0.waiting.lock().iter().flat_map(referenced_files));
        paths
    }

    /// Reads the files again; returns `false` if one could not be read for the moment.
    async fn renew_files(&self) -> bool {
        let config = self.0.state.current().config.clone();
        let waiting = self.0.waiting.lock().take();
        if let Some(waiting) = waiting {
            self.attempt(&config, waiting).await;
            return true;
        }
        let Err(error) = self.renew(&config).await else {
            return true;
        };
        error!(%error, "the old certificate authorities stay in use");
        !matches!(&error, BuildError::CaUnreadable { source, .. } if file_read::is_transient(source))
    }
}

/// Returns the certificates, keys, CA files and the htpasswd file of a configuration.
fn referenced_files(config: &Config) -> Vec<PathBuf> {
    let tls = config.http.tls.iter();
    let own = tls.flat_map(|tls| [&tls.certificate, &tls.key].into_iter().chain(&tls.client_cas));
    let theirs = upstream_set::ca_files(&config.proxy).map(PathBuf::from);
    let users = config.access.iter().map(|access| access.path.clone());
    let bucket = config.bucket.iter();
    let bucket = bucket.flat_map(|bucket| bucket.credentials_file.iter().chain(&bucket.ca_file));
    own.cloned()
        .chain(theirs)
        .chain(users)
        .chain(bucket.cloned())
        .collect()
}

/// Returns the keys that differ and need a restart.
fn restart_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    let keys = [
        ("log.formatter", old.log.format != new.log.format),
        ("log.fields", old.log.fields != new.log.fields),
        ("log.accesslog.disabled", old.log.access != new.log.access),
        ("storage.filesystem.rootdirectory", old.root != new.root),
        (bucket_key(old, new), old.bucket != new.bucket),
        ("storage.maintenance.uploadpurging", old.uploads != new.uploads),
        ("http.addr", old.http.listen != new.http.listen),
        ("http.prefix", old.http.prefix != new.http.prefix),
        ("http.headers", old.http.headers != new.http.headers),
        ("http.tls", old.http.tls != new.http.tls),
        ("http.http2", old.http.http2 != new.http.http2),
        (
            "http.draintimeout",
            old.http.drain_timeout != new.http.drain_timeout,
        ),
        ("http.lameduck", old.http.lame_duck != new.http.lame_duck),
        (
            "http.maxconnections",
            old.http.max_connections != new.http.max_connections,
        ),
        ("http.debug", old.http.admin != new.http.admin),
        ("health", old.health != new.health),
        ("auth", old.access != new.access),
        ("peers", old.peers != new.peers),
    ];
    let differing = keys.into_iter().filter(|(_, differs)| *differs);
    differing.map(|(key, _)| key).collect()
}

/// Returns the key of the section that has the bucket.
fn bucket_key(old: &Config, new: &Config) -> &'static str {
    let bucket = new.bucket.as_ref().or(old.bucket.as_ref());
    bucket.map_or("storage", BucketSettings::section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    fn config(yaml: &str) -> Config {
        let yaml = format!("{{proxy: {{remoteurl: 'https://a.example'}}, {yaml}}}");
        Config::new(&File::parse(&yaml).unwrap()).unwrap()
    }

    /// A reload names the settings that only a restart can apply.
    #[test_case("" => Vec::<&str>::new())]
    #[test_case("log: {level: debug}" => Vec::<&str>::new(); "the level is taken")]
    #[test_case("log: {formatter: json}" => vec!["log.formatter"])]
    #[test_case("http: {addr: ':5001', prefix: /a/}" => vec!["http.addr", "http.prefix"])]
    #[test_case("storage: {filesystem: {rootdirectory: /x}}" => vec!["storage.filesystem.rootdirectory"])]
    #[test_case("storage: {s3: {bucket: b, region: r, accesskey: a, secretkey: s}}" => vec!["storage.s3"])]
    #[test_case("health: {storagedriver: {enabled: true}}" => vec!["health"])]
    #[test_case("peers: {addr: ':5002', secretfile: /s}" => vec!["peers"])]
    #[test_case("auth: {htpasswd: {realm: r, path: /p}}" => vec!["auth"])]
    fn restart_only_settings_are_named(yaml: &str) -> Vec<&'static str> {
        restart_keys(&config(""), &config(yaml))
    }

    /// The reload watches all files that can be renewed.
    #[test]
    fn renewable_files_are_watched() {
        let tls = "http: {tls: {certificate: /c, key: /k, clientcas: [/ca]}}";
        let config = config(&format!("{tls}, auth: {{htpasswd: {{realm: r, path: /u}}}}"));
        assert_eq!(
            referenced_files(&config),
            [PathBuf::from("/c"), "/k".into(), "/ca".into(), "/u".into()]
        );
    }
}
