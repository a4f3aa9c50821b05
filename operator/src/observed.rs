//! What the cluster holds of a mirror, as far as the operator acts on it or tells of it.

use std::net::IpAddr;

use crds::{status::Endpoint, tls::TlsMode};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Service},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::quantity::amount;

mod configuration;
mod life;
mod rendered;
mod server;

pub use configuration::{Configuration, Text};
pub use life::Life;
pub use rendered::Rendered;
pub use server::{Answer, Report, Server};

/// A mirror's objects as they were last seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What runs the Pods.
    pub workload: Option<Workload>,
    /// Where the Service is, once the cluster gave it an address.
    pub service: Option<ServiceAddress>,
    /// The numbers that the cluster gave the Service.
    pub allocation: Allocation,
    /// Every address and name that the cluster gave the Service: of either family, and of load balancers.
    pub service_names: Vec<String>,
    /// The servers' configuration as it stands.
    pub configuration: Option<Configuration>,
    /// The claims that the operator made.
    pub claims: Vec<Claim>,
    /// The claim that an admin is to make, where the spec names one.
    pub existing_claim: Option<ExistingClaim>,
    /// The Pods that run servers, and what these say of themselves.
    pub servers: Vec<Server>,
    /// How long the certificate is good that servers were handed; looked at only where nothing else says it.
    pub certificate: Option<Life>,
    /// When they were observed.
    pub at: Timestamp,
    /// The `StatefulSet`'s claim templates, as they were created.
    pub claim_templates: Option<Vec<PersistentVolumeClaim>>,
}

impl Observed {
    /// Every claim that there is.
    pub fn all_claims(&self) -> impl Iterator<Item = &Claim> {
        let existing = self.existing_claim.as_ref();
        self.claims
            .iter()
            .chain(existing.and_then(|existing| existing.claim.as_ref()))
    }

    /// Whether every server runs with a configuration, by its SHA-256, and there is one.
    pub fn all_run_with(&self, configuration: &str) -> bool {
        let runs = |server: &Server| {
            let report = server.report();
            report.is_some_and(|report| report.configuration == configuration)
        };
        !self.servers.is_empty() && self.servers.iter().all(runs)
    }

    /// A server was not asked yet: what it was known to say stands until it is.
    pub fn has_unasked(&self) -> bool {
        self.servers.iter().any(|server| server.answer == Answer::Unasked)
    }

    /// The claim that an admin is to make has no volume, or is not there.
    pub fn lacks_claim(&self) -> bool {
        self.existing_claim
            .as_ref()
            .is_some_and(|existing| !existing.claim.as_ref().is_some_and(|claim| claim.bound))
    }
}

/// The numbers that a cluster gave a Service, which clients outside of it may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Its addresses in the cluster, at most one of each family.
    pub cluster_ips: Vec<String>,
    /// Its port on every node.
    pub node_port: Option<i32>,
}

impl Allocation {
    /// Returns the numbers of a Service as it is.
    pub fn from_service(service: &Service) -> Self {
        let Some(spec) = &service.spec else {
            return Self::default();
        };
        let port = spec.ports.iter().flatten().next();
        Self {
            cluster_ips: spec.cluster_ips.clone().unwrap_or_default(),
            node_port: port.and_then(|port| port.node_port).filter(|port| *port > 0),
        }
    }

    /// Returns the numbers that a status recorded. A status of an earlier version has the URL alone.
    pub fn recorded(endpoint: &Endpoint) -> Self {
        let authority = endpoint
            .url
            .split_once("://")
            .map_or("", |(_, authority)| authority);
        let host = authority.rsplit_once(':').map_or("", |(host, _)| host);
        let ip = host.trim_start_matches('[').trim_end_matches(']');
        let mut cluster_ips = endpoint.cluster_ips.clone();
        if cluster_ips.is_empty() && ip.parse::<IpAddr>().is_ok() {
            cluster_ips.push(ip.to_owned());
        }
        Self {
            cluster_ips,
            node_port: endpoint.node_port,
        }
    }
}

/// Where clients reach the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The cluster's address.
    pub ip: String,
    /// Its port for pulls.
    pub port: i32,
}

impl ServiceAddress {
    /// As it is, not as the spec wants it: what is paused or rejected is not applied.
    pub fn of(service: Service) -> Option<Self> {
        let spec = service.spec?;
        Some(Self {
            ip: spec.cluster_ip.filter(|ip| !ip.is_empty())?,
            port: spec.ports?.first()?.port,
        })
    }

    /// `IP:PORT`.
    pub fn authority(&self) -> String {
        if self.ip.contains(':') {
            format!("[{}]:{}", self.ip, self.port)
        } else {
            format!("{}:{}", self.ip, self.port)
        }
    }

    /// Where clients pull from.
    pub fn url(&self, tls: TlsMode) -> String {
        let scheme = if tls == TlsMode::Disabled { "http" } else { "https" };
        format!("{scheme}://{}", self.authority())
    }
}

/// A claim that the operator does not make.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExistingClaim {
    /// Its name.
    pub name: String,
    /// What is there of that name.
    pub claim: Option<Claim>,
}

/// What a workload's status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its status is about its present spec.
    pub current: bool,
    /// Pods that its spec asks for.
    pub wanted: i32,
    /// Pods there are.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that have the present template.
    pub updated: i32,
    /// Why Pods can't be made: a quota or admission.
    pub obstacle: Option<String>,
    /// How its Pods were rendered.
    pub rendered: Option<Rendered>,
}

impl Workload {
    /// Every Pod runs what the spec asks for, and there is none too many.
    pub fn rolled_out(&self) -> bool {
        self.current
            && self.updated == self.wanted
            && self.replicas == self.wanted
            && self.ready == self.wanted
    }

    /// It was given what a new version of the operator brought.
    pub fn is_upgraded(&self) -> bool {
        self.upgraded().is_some()
    }

    /// Since when.
    pub fn upgraded(&self) -> Option<Timestamp> {
        self.rendered.as_ref()?.upgraded
    }
}

/// A claim's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// The replica that it is for.
    pub ordinal: u32,
    /// It has a volume.
    pub bound: bool,
    /// What is asked for.
    pub requested: Option<Quantity>,
    /// What it has.
    pub capacity: Option<Quantity>,
    /// It is deleted with the mirror, by its owner references.
    pub goes_with_mirror: bool,
    /// How far its growth is, where more is asked for than it has.
    pub growth: Growth,
}

/// How far a claim's growth is, by the conditions of who grows it: the storage driver, then the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// Nobody has said anything yet.
    #[default]
    Asked,
    /// The volume is being grown.
    Volume,
    /// The volume has grown; the file system on it is the node's to grow.
    FileSystem,
    /// It fails, is tried again, and this was said last.
    Failing(String),
    /// It will not be tried again.
    Infeasible(String),
}

impl Claim {
    /// More is asked for than there is.
    pub fn is_growing(&self) -> bool {
        self.requested
            .as_ref()
            .is_some_and(|requested| self.is_more_than_there_is(requested))
    }

    /// Whether a size is above what the claim has: such a one may be asked for, also instead of a larger one.
    pub fn is_more_than_there_is(&self, size: &Quantity) -> bool {
        let capacity = self.capacity.as_ref().and_then(|capacity| amount(&capacity.0));
        amount(&size.0)
            .zip(capacity)
            .is_some_and(|(size, capacity)| size > capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_url_gives_address_back() {
        let recorded = |url: &str| {
            let endpoint = serde_json::from_value(serde_json::json!({ "url": url })).unwrap();
            Allocation::recorded(&endpoint).cluster_ips.pop()
        };
        assert_eq!(recorded("http://10.96.0.7:5000").as_deref(), Some("10.96.0.7"));
        assert_eq!(recorded("https://[fd00::7]:80").as_deref(), Some("fd00::7"));
        assert_eq!(recorded("http://mirror.example:80"), None);
        assert_eq!(recorded("nonsense"), None);
    }

    #[test]
    fn an_address_is_a_url_for_either_family() {
        let url = |ip: &str, port| {
            let ip = ip.to_owned();
            ServiceAddress { ip, port }.url(TlsMode::Disabled)
        };
        assert_eq!(url("10.96.0.7", 5000), "http://10.96.0.7:5000");
        assert_eq!(url("fd00::7", 80), "http://[fd00::7]:80");
    }
}
