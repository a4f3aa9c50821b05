//! The observed state of a mirror's objects and servers.

use std::net::IpAddr;

use crds::{status::Endpoint, tls::TlsMode};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Service},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::quantity::amount;

mod configuration;
mod nodes;
mod server;
mod template_source;
mod validity;

pub use configuration::{Configuration, Text};
pub use nodes::{FaultyNodes, NodeSummary};
pub use server::{BucketReport, BucketState, PollResult, Server, ServerReport, UpstreamReport};
pub use template_source::PodTemplateSource;
pub use validity::Validity;

/// The last observed state of a mirror.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The workload that runs the Pods.
    pub workload: Option<Workload>,
    /// The address of the Service, once the cluster gave it one.
    pub service: Option<ServiceAddress>,
    /// The numbers that the cluster gave the Service.
    pub allocation: Allocation,
    /// Every address and name that the cluster gave the Service: of either family, and of load balancers.
    pub service_names: Vec<String>,
    /// The servers' configuration in its `ConfigMap`.
    pub configuration: Option<Configuration>,
    /// The PVCs that the operator created.
    pub claims: Vec<Claim>,
    /// The PVC that an admin creates, if the spec names one.
    pub existing_claim: Option<ExistingClaim>,
    /// The Pods that run servers, with the reports of the servers.
    pub servers: Vec<Server>,
    /// The nodes, if agents manage the mirror and were polled.
    pub nodes: Option<NodeSummary>,
    /// The validity of the certificate that servers have; read only if the outcome of the reconcile has none.
    pub certificate: Option<Validity>,
    /// The time of the observation.
    pub at: Timestamp,
    /// The claim templates of the existing `StatefulSet`.
    pub claim_templates: Option<Vec<PersistentVolumeClaim>>,
}

impl Observed {
    /// Returns every PVC.
    pub fn all_claims(&self) -> impl Iterator<Item = &Claim> {
        let existing = self.existing_claim.as_ref();
        self.claims
            .iter()
            .chain(existing.and_then(|existing| existing.claim.as_ref()))
    }

    /// Returns whether there is a server and every server runs with a configuration, by its SHA-256.
    pub fn all_run_with(&self, configuration: &str) -> bool {
        let runs = |server: &Server| {
            let report = server.report();
            report.is_some_and(|report| report.configuration == configuration)
        };
        !self.servers.is_empty() && self.servers.iter().all(runs)
    }

    /// Returns whether a server was not polled yet: its last known state counts until then.
    pub fn has_unpolled(&self) -> bool {
        self.servers
            .iter()
            .any(|server| server.poll == PollResult::NotPolled)
    }

    /// Returns whether a server cannot use its bucket, or has not asked it yet.
    pub fn awaits_bucket(&self) -> bool {
        let mut buckets = self
            .servers
            .iter()
            .filter_map(|server| server.report()?.bucket.as_ref());
        buckets.any(|bucket| bucket.state != Some(BucketState::Reachable))
    }

    /// Returns whether the PVC that an admin creates is missing or has no volume.
    pub fn lacks_claim(&self) -> bool {
        self.existing_claim
            .as_ref()
            .is_some_and(|existing| !existing.claim.as_ref().is_some_and(|claim| claim.bound))
    }
}

/// The addresses and the node port that the API server allocated to a Service, which clients may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// The cluster IPs, at most one of each family.
    pub cluster_ips: Vec<String>,
    /// The port on every node.
    pub node_port: Option<i32>,
}

impl Allocation {
    /// Returns the allocation of a live Service.
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

    /// Returns the allocation that a status records. A status of an earlier version has the URL alone.
    pub fn from_status(endpoint: &Endpoint) -> Self {
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

/// The address at which clients reach the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The cluster IP.
    pub ip: String,
    /// The port for pulls.
    pub port: i32,
}

impl ServiceAddress {
    /// Returns the address of the live Service. The spec may differ while it is paused or rejected.
    pub fn from_service(service: Service) -> Option<Self> {
        let spec = service.spec?;
        Some(Self {
            ip: spec.cluster_ip.filter(|ip| !ip.is_empty())?,
            port: spec.ports?.first()?.port,
        })
    }

    /// Returns `IP:PORT`.
    pub fn authority(&self) -> String {
        if self.ip.contains(':') {
            format!("[{}]:{}", self.ip, self.port)
        } else {
            format!("{}:{}", self.ip, self.port)
        }
    }

    /// Returns the URL that clients pull from.
    pub fn url(&self, tls: TlsMode) -> String {
        let scheme = if tls == TlsMode::Disabled { "http" } else { "https" };
        format!("{scheme}://{}", self.authority())
    }
}

/// A PVC that the operator does not create.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExistingClaim {
    /// The name.
    pub name: String,
    /// The PVC, if it exists.
    pub claim: Option<Claim>,
    /// The value of its annotation that allows a mirror to use it.
    pub allowed_mirror: Option<String>,
}

/// The state of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The status is about the current spec.
    pub current: bool,
    /// The number of Pods in the spec.
    pub wanted: i32,
    /// The number of existing Pods.
    pub replicas: i32,
    /// The number of ready Pods.
    pub ready: i32,
    /// The number of Pods with the current template.
    pub updated: i32,
    /// The message of a rejection of Pods, e.g. by a quota.
    pub obstacle: Option<String>,
    /// The source of the Pod template.
    pub template_source: Option<PodTemplateSource>,
}

impl Workload {
    /// Returns whether exactly the Pods of the spec exist, are current and ready.
    pub fn is_rolled_out(&self) -> bool {
        self.current
            && self.updated == self.wanted
            && self.replicas == self.wanted
            && self.ready == self.wanted
    }

    /// Returns whether the workload was admitted to the rollout of a new version.
    pub fn is_upgraded(&self) -> bool {
        self.upgraded().is_some()
    }

    /// Returns the time of that admission.
    pub fn upgraded(&self) -> Option<Timestamp> {
        self.template_source.as_ref()?.upgraded
    }
}

/// The state of a PVC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// The name.
    pub name: String,
    /// The ordinal of its replica.
    pub ordinal: u32,
    /// The PVC has a volume.
    pub bound: bool,
    /// The requested size.
    pub requested: Option<Quantity>,
    /// The size of the volume.
    pub capacity: Option<Quantity>,
    /// The PVC is deleted with the mirror, by its owner references.
    pub goes_with_mirror: bool,
    /// The state of its growth, if it requests more than it has.
    pub growth: Growth,
}

/// The state of a PVC's growth, from the conditions that the storage driver and the node set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// No condition is set yet.
    #[default]
    Requested,
    /// The storage driver grows the volume.
    Volume,
    /// The volume has grown; the node grows the file system.
    FileSystem,
    /// The growth fails with this message and is retried.
    Failing(String),
    /// The growth fails with this message for good.
    Infeasible(String),
}

impl Claim {
    /// Returns whether the PVC requests more than it has.
    pub fn is_growing(&self) -> bool {
        self.requested
            .as_ref()
            .is_some_and(|requested| self.exceeds_capacity(requested))
    }

    /// Returns whether a size is above the capacity: only such a size may be requested, also in place of a larger one.
    pub fn exceeds_capacity(&self, size: &Quantity) -> bool {
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
    fn allocation_is_read_from_the_url() {
        let recorded = |url: &str| {
            let endpoint = serde_json::from_value(serde_json::json!({ "url": url })).unwrap();
            Allocation::from_status(&endpoint).cluster_ips.pop()
        };
        assert_eq!(recorded("http://10.96.0.7:5000").as_deref(), Some("10.96.0.7"));
        assert_eq!(recorded("https://[fd00::7]:80").as_deref(), Some("fd00::7"));
        assert_eq!(recorded("http://mirror.example:80"), None);
        assert_eq!(recorded("nonsense"), None);
    }

    #[test]
    fn url_brackets_ipv6_addresses() {
        let url = |ip: &str, port| {
            let ip = ip.to_owned();
            ServiceAddress { ip, port }.url(TlsMode::Disabled)
        };
        assert_eq!(url("10.96.0.7", 5000), "http://10.96.0.7:5000");
        assert_eq!(url("fd00::7", 80), "http://[fd00::7]:80");
    }
}
