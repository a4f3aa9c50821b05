//! Replicas of one mirror, and as many servers of Distribution 3, that share a prefix of the bucket.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Target;
use crate::content::Content;
use crate::servers::{DISTRIBUTION_3, Keys, OURS, Server, Site, free_port};

/// The longest wait for replicas that find each other, and for uploads.
const LIMIT: Duration = Duration::from_mins(1);

/// The server of which the replicas are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Distribution,
}

/// Replicas that run until they are dropped.
pub(crate) struct Replicas {
    pub(crate) servers: Vec<Server>,
    /// The admin ports of this server; Distribution has none.
    admins: Vec<Target>,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Ours, Self::Distribution];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => OURS,
            Self::Distribution => DISTRIBUTION_3,
        }
    }

    /// Returns a prefix in the part of the bucket that this kind of server has.
    pub(crate) fn prefix(self, name: &str) -> String {
        match self {
            Self::Ours => format!("ours/{name}"),
            Self::Distribution => format!("distribution/{name}"),
        }
    }

    /// Starts so many replicas with empty local tiers on these keys of `storage`, or without a bucket where there are none.
    pub(crate) fn start(
        self,
        site: &Site<'_>,
        count: usize,
        storage: &str,
        cache: &str,
    ) -> io::Result<Replicas> {
        match self {
            Self::Ours => Replicas::start(site, count, storage, cache),
            Self::Distribution => {
                let storage =
                    format!("{storage}, redirect: {{disable: true}}, cache: {{blobdescriptor: inmemory}}");
                let servers = (0..count).map(|_| site.distribution_on(&storage));
                Ok(Replicas {
                    servers: servers.collect::<io::Result<_>>()?,
                    admins: Vec::new(),
                })
            }
        }
    }
}

impl Replicas {
    fn start(site: &Site<'_>, count: usize, storage: &str, cache: &str) -> io::Result<Self> {
        let secret = site.scratch.join("peers");
        fs::write(&secret, "the-secret-of-these-replicas")?;
        let peers: Vec<_> = (0..count)
            .map(|_| format!("'127.0.0.1:{}'", free_port()))
            .collect();
        let mut replicas = Self {
            servers: Vec::new(),
            admins: Vec::new(),
        };
        for peer in &peers {
            let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let top = format!(
                "peers: {{addr: {peer}, addresses: [{}], secretfile: {}}}\n",
                peers.join(", "),
                secret.display()
            );
            let keys = Keys {
                storage: if storage.is_empty() {
                    String::new()
                } else {
                    format!(", {storage}")
                },
                http: format!(", debug: {{addr: '{admin}'}}"),
                // One replica has no peers.
                top: if count == 1 { String::new() } else { top },
            };
            let proxy = format!("cache: {{maxsize: 8Gi, {cache}}}");
            replicas.servers.push(site.ours_with(&keys, &proxy)?);
            replicas.admins.push(Target::plain(admin));
        }
        replicas.until_complete()?;
        Ok(replicas)
    }

    /// Restarts a replica with the cache that it has, and waits until all serve each other.
    pub(crate) fn restart(&mut self, index: usize) -> io::Result<()> {
        self.servers[index].restart()?;
        self.until_complete()
    }

    fn until_complete(&self) -> io::Result<()> {
        self.until("peers that serve", |status| {
            let peers = status["peers"].as_array();
            let serving = peers
                .into_iter()
                .flatten()
                .filter(|peer| peer["state"] == "serving");
            serving.count() == self.servers.len() - 1
        })
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        self.servers.iter().map(|server| server.target.clone()).collect()
    }

    /// Pulls the small content of the bench once at each.
    pub(crate) fn warm(&self, content: &Content) -> io::Result<()> {
        for server in &self.servers {
            let mut connection = server.target.connect()?;
            for path in [server.tag(), server.manifest(content), server.small(content)] {
                connection.get(&path)?;
            }
        }
        Ok(())
    }

    /// Waits until this server has uploaded all.
    pub(crate) fn until_uploaded(&self) -> io::Result<()> {
        self.until("end of the uploads", |status| {
            status["bucket"]["pendingUploads"] == 0
        })
    }

    /// Returns the number of answers of upstreams that a replica got.
    pub(crate) fn upstream_answers(&self, index: usize) -> io::Result<f64> {
        let metrics = self.admins[index].connect()?.text("/metrics")?;
        let series = metrics
            .lines()
            .filter(|line| line.starts_with("registry_mirror_upstream_requests_total{"));
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> io::Result<()> {
        for admin in &self.admins {
            let started = Instant::now();
            loop {
                let status: Value = serde_json::from_str(&admin.connect()?.text("/status")?)?;
                if is_so(&status) {
                    break;
                }
                if started.elapsed() > LIMIT {
                    return Err(io::Error::other(format!("no {what}: {status}")));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}
