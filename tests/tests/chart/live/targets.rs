//! The targets that Prometheus scrapes: a server with a client, and the operator's admin port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use mirror::server::Server;
use operator::admin_server::{self, Health};
use operator::metrics::Upgrades;
use serde_json::json;
use testbed::process::free_ports;
use testbed::prometheus::server::Target;
use testbed::scratch::Scratch;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::faults::Registry;

/// A server with two upstreams, of which one is down, and a certificate that ends in the year 2100.
pub(super) struct MirrorServer {
    scratch: Scratch,
    client: reqwest::Client,
    address: String,
    admin: String,
    reloader: mirror::server::Reloader,
    registry: Registry,
    down: SocketAddr,
    /// Holds the port of the upstream that is down: nothing listens on it yet.
    reserved: Option<TcpSocket>,
    _end: tokio_util::sync::DropGuard,
}

fn certificate(scratch: &Scratch, end: i32) {
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(end, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    scratch.write("tls.key", key.serialize_pem()).unwrap();
    scratch.write("tls.crt", certificate.pem()).unwrap();
}

fn configuration(scratch: &Scratch, registry: &Registry, down: SocketAddr) -> mirror::config::Config {
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let upstream =
        |host: &str, address: SocketAddr| json!({"host": host, "remoteurl": format!("http://{address}")});
    let file = json!({
        "version": "0.1",
        "http": {
            "addr": "127.0.0.1:0",
            "tls": {"certificate": at("tls.crt"), "key": at("tls.key")},
            "debug": {"addr": "127.0.0.1:0"},
        },
        "storage": {"filesystem": {"rootdirectory": at("cache")}},
        "proxy": {
            "upstreams": [upstream("up.test", registry.address), upstream("down.test", down)],
            "cache": {"maxsize": "3Mi"},
        },
    });
    let path = scratch.write("config.yml", file.to_string()).unwrap();
    mirror::config::load(Some(&path), std::iter::empty()).unwrap().0
}

impl MirrorServer {
    pub(super) async fn start(registry: &Registry) -> Self {
        testbed::install_crypto_provider();
        let scratch = Scratch::new("observed").unwrap();
        certificate(&scratch, 2100);
        let reserved = TcpSocket::new_v4().unwrap();
        reserved.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let down = reserved.local_addr().unwrap();
        let server = Server::start(configuration(&scratch, registry, down))
            .await
            .unwrap();
        let end = CancellationToken::new();
        let this = Self {
            client: reqwest::Client::builder()
                .danger_accept_invalid_certs(true)
                .build()
                .unwrap(),
            address: server.address().to_owned(),
            admin: server.admin_address().unwrap(),
            reloader: server.reloader(),
            registry: registry.clone(),
            down,
            reserved: Some(reserved),
            scratch,
            _end: end.clone().drop_guard(),
        };
        tokio::spawn(server.run(end));
        this
    }

    pub(super) fn target(&self) -> Target {
        Target {
            address: self.admin.clone(),
            honor_labels: false,
            labels: json!({"namespace": "mirrors", "name": "hub", "pod": "hub-0"}),
        }
    }

    async fn get(&self, path: &str) {
        let url = format!("https://{}/v2/{path}", self.address);
        if let Ok(answer) = self.client.get(url).timeout(Duration::from_secs(5)).send().await {
            // Some are cut on purpose.
            let _ = answer.bytes().await;
        }
    }

    /// Pulls what fails in each way, and what fills the cache.
    pub(super) async fn provoke(&self, registry: &Registry) {
        self.get("app/manifests/v1?ns=down.test").await;
        self.get("app/manifests/v1?ns=up.test").await;
        self.get("app/manifests/v1?ns=up.test").await;
        let (wrong, missing) = (registry.wrong_digest(), registry.missing_digest());
        let new = registry.add_blob();
        for digest in [&new, &new, &wrong, &missing] {
            self.get(&format!("app/blobs/{digest}?ns=up.test")).await;
        }
    }

    /// Asks for a manifest that the registry does not have: a use of the mirror, and no fault of it.
    pub(super) async fn pull_unknown_tag(&self) {
        self.get("app/manifests/none?ns=up.test").await;
    }

    /// Reports a configuration that could not be read.
    pub(super) fn refuse_configuration(&self) {
        self.reloader.refused(&std::io::Error::other("no YAML"));
    }

    /// Starts the upstream that is down, renews the certificate, and loads a good configuration.
    pub(super) async fn repair(&mut self) {
        self.registry
            .clone()
            .serve(self.reserved.take().unwrap().listen(64).unwrap());
        certificate(&self.scratch, 4096);
        self.reloader
            .reload(configuration(&self.scratch, &self.registry, self.down))
            .await;
    }

    /// Returns the metrics in the text format.
    pub(super) async fn metrics(&self) -> String {
        text(&self.admin).await
    }
}

async fn text(address: &str) -> String {
    let request = reqwest::Client::new().get(format!("http://{address}/metrics"));
    let answer = request.header("accept", "text/plain").send().await.unwrap();
    assert_eq!(
        answer.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    answer.text().await.unwrap()
}

/// The operator's admin port, with mirrors whose status a test sets.
pub(super) struct OperatorServer {
    address: SocketAddr,
    health: Health,
    mirrors: Writer<operator::cluster::triggers::StoredMirror>,
    end: CancellationToken,
}

impl OperatorServer {
    /// Chooses a port, on which nothing listens yet.
    pub(super) fn reserve() -> Self {
        let [port] = free_ports().unwrap();
        Self {
            address: ([127, 0, 0, 1], port).into(),
            health: Health::default(),
            mirrors: Writer::default(),
            end: CancellationToken::new(),
        }
    }

    pub(super) fn target(&self) -> Target {
        Target {
            address: self.address.to_string(),
            honor_labels: true,
            labels: json!({"namespace": "operators", "pod": "operator-0"}),
        }
    }

    /// Serves the metrics of a mirror whose conditions are all of this status.
    pub(super) async fn start(&mut self, is_well: bool) {
        let metrics = Arc::clone(&self.health.metrics);
        metrics.initialize_errors(&["apply"]);
        metrics.add_mirrors(self.mirrors.as_reader());
        self.set(is_well);
        let listener = TcpListener::bind(self.address).await.unwrap();
        tokio::spawn(admin_server::serve(
            listener,
            self.health.clone(),
            self.end.clone(),
        ));
    }

    fn set(&mut self, is_well: bool) {
        let (status, reason) = if is_well {
            ("True", "CertificateReady")
        } else {
            ("False", "Expiring")
        };
        let types = [
            "Ready",
            "Accepted",
            "Available",
            "CredentialsValid",
            "UpstreamReachable",
            "StorageReady",
            "TLSReady",
        ];
        let conditions = types.map(|kind| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        });
        let mirror = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors", "uid": "u"},
            "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
            "status": {"conditions": conditions, "storage": {"capacity": "1Gi"}, "serverVersion": "1"},
        });
        let mirror = serde_json::from_value(mirror).unwrap();
        self.mirrors
            .apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(mirror))));
        let failed = usize::from(!is_well);
        self.health.metrics.upgrades(&Upgrades {
            failed,
            ..Upgrades::default()
        });
        self.health.metrics.apply_rejected("u", !is_well);
    }

    pub(super) fn fail_reconcile(&self) {
        self.health
            .metrics
            .reconciled(Duration::from_millis(5), Some("apply"));
    }

    pub(super) fn repair(&mut self) {
        self.set(true);
    }

    /// Returns the metrics in the text format.
    pub(super) async fn metrics(&self) -> String {
        text(&self.address.to_string()).await
    }
}

impl Drop for OperatorServer {
    fn drop(&mut self) {
        self.end.cancel();
    }
}
