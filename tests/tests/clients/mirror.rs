//! A mirror in this process, with a cache of its own.

use std::net::SocketAddr;

use ::mirror::config;
use ::mirror::server::Server;
use testbed::scratch::Scratch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Runs until it is dropped.
pub(crate) struct Mirror {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), mirror::server::Error>>>,
    _scratch: Scratch,
}

impl Mirror {
    /// With this section `proxy`.
    pub(crate) async fn start(proxy: &str) -> Self {
        testbed::install_crypto_provider();
        let scratch = Scratch::new("clients").expect("a directory");
        let yaml = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
             http: {{addr: '127.0.0.1:0', draintimeout: 1s}}\n\
             proxy: {{{proxy}}}\n",
            scratch.path().join("cache").display()
        );
        let path = scratch.write("config.yml", yaml).expect("a file");
        let (config, _) = config::load(Some(&path), std::iter::empty()).expect("a configuration");
        let server = Server::start(config).await.expect("a mirror");
        let (address, stop) = (server.address().parse(), CancellationToken::new());
        Self {
            address: address.expect("an address"),
            running: Some(tokio::spawn(server.run(stop.clone()))),
            stop,
            _scratch: scratch,
        }
    }

    /// Of one registry, as the default one.
    pub(crate) async fn start_for(url: &str) -> Self {
        Self::start(&format!("remoteurl: '{url}', cache: {{maxsize: 1Gi}}")).await
    }

    /// Of one registry that clients call by this name.
    pub(crate) async fn of_host(host: &str, url: &str) -> Self {
        let upstream = format!("upstreams: [{{host: {host}, remoteurl: '{url}'}}]");
        Self::start(&format!("{upstream}, cache: {{maxsize: 1Gi}}")).await
    }

    /// Refuses connections from now on.
    pub(crate) async fn go_down(&mut self) {
        self.stop.cancel();
        if let Some(running) = self.running.take() {
            running.await.expect("it ends").expect("no panic");
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
