//! Several replicas of one mirror on loopback: three processes that have a port for each other.

use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::time::Instant;

use aws_lc_rs::hmac;
use mirror::digest::{Algorithm, Digest};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::LIMIT;
use crate::hub::Hub;
use crate::server::{Head, Server};

/// The secret that all replicas of a test share.
pub(crate) const SECRET: &str = "the-secret-of-these-replicas";

/// The replicas of one mirror; killed when dropped.
pub(crate) struct Replicas {
    pub(crate) servers: Vec<Option<Server>>,
    /// The peer port of each.
    pub(crate) peer_ports: Vec<String>,
    pub(crate) secret: PathBuf,
    proxy: String,
    /// The addresses that each replica is given; empty: all of `peer_ports`.
    pub(crate) views: Vec<Vec<String>>,
    /// Further variables of the environment of each replica.
    pub(crate) environment: Vec<Vec<(String, String)>>,
    home: tempfile::TempDir,
}

/// Returns addresses on loopback that nothing listens on.
pub(crate) fn free_addresses(count: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..count)
        .map(|_| StdListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let address = |listener: &StdListener| listener.local_addr().unwrap().to_string();
    listeners.iter().map(address).collect()
}

impl Replicas {
    /// Starts replicas that know each other's ports, and waits until each serves the others.
    pub(crate) async fn start(count: usize, hub: &Hub, proxy: &str) -> Self {
        let mut replicas = Self::planned(count, proxy, &[]);
        for index in 0..count {
            replicas.add(index, hub).await;
        }
        replicas.until_complete().await;
        replicas
    }

    /// Returns replicas of which none runs; `strangers` are further addresses that each one is given.
    pub(crate) fn planned(count: usize, proxy: &str, strangers: &[String]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let secret = home.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let mut peer_ports = free_addresses(count);
        peer_ports.extend_from_slice(strangers);
        Self {
            servers: (0..count).map(|_| None).collect(),
            peer_ports,
            secret,
            proxy: proxy.to_owned(),
            views: vec![Vec::new(); count],
            environment: vec![Vec::new(); count],
            home,
        }
    }

    /// Starts one of the replicas, on the disk that it had before if it ran before.
    pub(crate) async fn add(&mut self, index: usize, hub: &Hub) {
        let mut environment = vec![
            ("REGISTRY_PEERS_ADDR".to_owned(), self.peer_ports[index].clone()),
            (
                "REGISTRY_PEERS_SECRETFILE".to_owned(),
                self.secret.display().to_string(),
            ),
        ];
        let view = Some(&self.views[index]).filter(|view| !view.is_empty());
        for (number, address) in view.unwrap_or(&self.peer_ports).iter().enumerate() {
            environment.push((format!("REGISTRY_PEERS_ADDRESSES_{number}"), address.clone()));
        }
        environment.extend(self.environment[index].iter().cloned());
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let root = self.home.path().join(format!("cache{index}"));
        let server = Server::start_in(&root, hub, &self.proxy, &environment).await;
        self.servers[index] = Some(server);
    }

    pub(crate) fn get(&self, index: usize) -> &Server {
        self.servers[index].as_ref().unwrap()
    }

    /// Waits until each replica that runs is served by all others that run.
    pub(crate) async fn until_complete(&self) {
        let running = self.servers.iter().flatten().count();
        for server in self.servers.iter().flatten() {
            until_peers(server, "serving", running - 1).await;
        }
    }
}

/// Waits until so many peers of a server have this state.
pub(crate) async fn until_peers(server: &Server, state: &str, count: usize) {
    let start = Instant::now();
    loop {
        let peers = status(server).await["peers"].clone();
        let peers = peers.as_array().cloned().unwrap_or_default();
        if peers.iter().filter(|peer| peer["state"] == state).count() == count {
            return;
        }
        assert!(
            start.elapsed() < LIMIT,
            "not {count} peers are {state}: {peers:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Returns `/status` of a server.
pub(crate) async fn status(server: &Server) -> Value {
    serde_json::from_str(&admin(server, "/status").await).unwrap()
}

/// Returns the sum of the series of a family, all or those with a label; 0 where there is none.
pub(crate) async fn metric(server: &Server, name: &str) -> f64 {
    let metrics = admin(server, "/metrics").await;
    let (family, label) = name.split_once('{').unwrap_or((name, ""));
    let (start, label) = (format!("{family}{{"), label.trim_end_matches('}'));
    let series = metrics
        .lines()
        .filter(|line| line.starts_with(&start) && line.contains(label));
    series
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}

async fn admin(server: &Server, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n");
    send(&server.admin, &request).await.body().await.unwrap()
}

/// Returns the head of the answer of any server.
pub(crate) async fn send(address: &str, request: &str) -> Head {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    Head::read(stream).await.unwrap()
}

/// Returns the `Authorization` of a peer for a request at this time, in seconds since 1970.
pub(crate) fn authorization(secret: &str, method: &str, target: &str, time: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{method} {target} {time}").as_bytes());
    format!("Mirror {time}.{}", hex::encode(tag))
}

/// Returns the present time in seconds since 1970.
pub(crate) fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap()
}

/// Returns the weight of a member for the shard of a digest; the member with the greatest owns it.
pub(crate) fn weight(id: &str, digest: &Digest) -> String {
    let shard = u8::from_str_radix(&digest.hex()[..2], 16).unwrap();
    let text = [id.as_bytes(), &[shard]].concat();
    Digest::compute(Algorithm::Sha256, &text).hex().to_owned()
}

/// Returns a field of the hello of a replica.
pub(crate) async fn hello_of(replicas: &Replicas, index: usize, field: &str) -> String {
    let target = "/peer/v1/hello";
    let value = authorization(SECRET, "GET", target, now());
    let request =
        format!("GET {target} HTTP/1.1\r\nhost: m\r\nconnection: close\r\nauthorization: {value}\r\n\r\n");
    let head = send(&replicas.peer_ports[index], &request).await;
    let hello: Value = serde_json::from_str(&head.body().await.unwrap()).unwrap();
    hello[field].as_str().unwrap().to_owned()
}
