//! Computes the desired objects. Pure: a spec in, objects out.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use mirror::request_host::PageHosts;
use sha2::{Digest, Sha256};

use crate::{
    certificates::IssuedCertificates,
    dereference::{Contents, References},
    kind::Kind,
    names,
    observed::{Observed, PodTemplateSource, Server},
    validate::{Accepted, Rejection},
};

mod child;
pub mod config;
mod container;
mod credentials;
mod disruption;
pub mod files;
mod hosts;
mod pod;
mod service;
mod service_account;
mod size_limit;
mod storage;
mod template_source;
mod workload;

pub use child::Child;
pub use credentials::IssuedCredentials;
pub use hosts::files as files_for_nodes;
/// The port of the servers' listeners of actions, on the loopback address of each Pod.
pub const ACTIONS_PORT: u16 = workload::ACTIONS_PORT;
/// The port of the servers' registries in their Pods.
pub const REGISTRY_PORT: u16 = workload::REGISTRY_PORT.number;
/// The port of the servers' admin endpoints.
pub const ADMIN_PORT: u16 = workload::ADMIN_PORT.number;

/// The settings of a release of the operator.
#[derive(Clone, Debug)]
pub struct Release {
    /// The server image of specs that name none.
    pub server_image: String,
    /// Keeps the stored configuration of servers, which may be of an older version.
    pub keeps_configuration: bool,
    /// The kind of cluster.
    pub platform: Platform,
    /// The names by which browsers open the pages of the servers.
    pub page_hosts: PageHosts,
}

/// A kind of cluster with other defaults for Pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Platform {
    /// Pods have a fixed user and group
    #[default]
    Kubernetes,
    /// Pods have the user and groups that security context constraints assign
    #[value(name = "openshift")]
    OpenShift,
}

impl Default for Release {
    fn default() -> Self {
        Self {
            server_image: concat!("registry-mirror:", env!("CARGO_PKG_VERSION")).to_owned(),
            keeps_configuration: false,
            platform: Platform::default(),
            page_hosts: PageHosts::default(),
        }
    }
}

/// The desired objects of a mirror.
pub struct Desired {
    /// The objects that Pods mount, and the Services: applied first.
    pub configuration: Vec<Child>,
    /// The PVCs, one a replica: applied before the workload, whose claim template would create smaller or older ones.
    pub claims: Vec<Child>,
    /// The workload: applied last, so that its Pods can mount everything.
    pub workload: Child,
    /// The source of its Pod template.
    pub template_source: PodTemplateSource,
    /// The rollout is queued: the Pod template stays.
    pub is_held: bool,
    /// A hash of all files that running Pods reload. Pods are notified until the workload carries it.
    pub reload: String,
    /// The configuration of the servers.
    pub config: mirror::config::file::File,
    /// The SHA-256 of the configuration file, by which servers report it.
    pub configuration_version: String,
    /// The credentials that are issued to the servers.
    pub issued: IssuedCredentials,
}

impl Desired {
    /// Returns every object in the order of application.
    pub fn children(&self) -> impl Iterator<Item = &Child> {
        self.configuration
            .iter()
            .chain(&self.claims)
            .chain([&self.workload])
    }

    /// Returns whether a server has not read its issued files yet.
    pub fn needs_reload(&self, server: &Server) -> bool {
        let Some(report) = server.report() else {
            return false;
        };
        let older = |seen: Option<u64>| seen != Some(self.issued.version);
        let mut hosts = self.issued.hosts();
        report.configuration != self.configuration_version && report.configuration_error.is_empty()
            || hosts.any(|host| {
                report
                    .upstream(host)
                    .is_none_or(|u| older(u.credentials.version_seen))
            })
    }

    /// Sets or removes the time of the admission to a rollout.
    pub fn set_upgraded(&mut self, since: Option<Timestamp>) {
        self.template_source.upgraded = since;
        template_source::annotate(&self.template_source, &mut self.workload);
    }

    /// Returns the objects of earlier specs that this one does not ask for. PVCs are never among them.
    pub fn superseded(&self, mirror: &str) -> Vec<(Kind, String)> {
        let wanted: Vec<_> = self
            .children()
            .map(|child| (child.kind, child.name.as_str()))
            .collect();
        names::every(mirror)
            .into_iter()
            .filter(|(kind, name)| !wanted.contains(&(*kind, name.as_str())))
            .collect()
    }
}

/// Computes the objects of a mirror.
///
/// `references` holds the issued files, `observed` the existing PVCs.
///
/// # Errors
/// `InvalidSpec`: the servers would refuse the configuration of the spec. `ReferenceMalformed`: what the spec names does not
/// fit into an object.
pub fn objects(
    accepted: &Accepted<'_>,
    references: &References,
    observed: &Observed,
    release: &Release,
) -> Result<Desired, Rejection> {
    let config = config::file(accepted, &release.page_hosts)?;
    let live = observed.configuration.as_ref().map(|live| &live.current);
    let kept = live.filter(|live| release.keeps_configuration && live.is_as_written());
    let yaml = kept.map_or_else(|| config.to_yaml(), |kept| kept.yaml.clone());
    let configuration_version = hex::encode(Sha256::digest(&yaml));
    let issued = IssuedCredentials::new(accepted, references.credentials.as_ref(), observed);
    let reload = reload(accepted, &yaml, &issued);
    let mut configuration = vec![
        config::object(accepted, &yaml, &configuration_version, observed),
        issued.object(accepted),
    ];
    configuration.extend(files::object(accepted));
    configuration.extend(files::ca_key(accepted.mirror, accepted.ca.as_ref()));
    configuration.extend(files::shared(accepted.mirror, accepted.peers.as_ref()));
    configuration.push(service_account::object(accepted.mirror));
    configuration.push(service::clients(accepted.mirror, observed));
    configuration.push(service::headless(accepted));
    configuration.extend(files::ca_bundle(accepted.mirror, accepted.serving.as_ref()));
    configuration.extend(hosts::object(accepted, observed));
    configuration.extend(disruption::object(accepted.mirror));
    for child in &configuration {
        size_limit::check(accepted.mirror, child)?;
    }
    let mut workload = workload::object(accepted, observed, release, &reload);
    let source = template_source::compute(accepted.mirror, &workload, release, observed);
    template_source::annotate(&source, &mut workload);
    Ok(Desired {
        configuration,
        claims: storage::claims(accepted, observed),
        workload,
        template_source: source,
        is_held: false,
        reload,
        configuration_version,
        config,
        issued,
    })
}

/// Returns the objects with certificates, with renewed ones and no other change, for a mirror whose spec is rejected.
pub fn renewed(
    mirror: &RegistryMirror,
    files: Option<&Contents>,
    published: Option<BTreeMap<String, String>>,
    renewed: &IssuedCertificates,
) -> Vec<Child> {
    let serving = renewed.serving.as_ref();
    let published = published.zip(serving);
    let published = published.and_then(|(published, serving)| hosts::renewed(mirror, published, serving));
    let own = files.zip(serving);
    files::ca_key(mirror, renewed.ca.as_ref())
        .into_iter()
        .chain(own.map(|(files, serving)| files::renewed(mirror, files, serving)))
        .chain(files::shared(mirror, renewed.peers.as_ref()))
        .chain(files::ca_bundle(mirror, serving))
        .chain(published)
        .collect()
}

/// Returns a hash of all files that a server reloads, with the version in place of secret values.
fn reload(accepted: &Accepted<'_>, yaml: &str, issued: &IssuedCredentials) -> String {
    let mut hash = Sha256::new();
    hash.update(accepted.mirror.uid().unwrap_or_default());
    hash.update(yaml);
    hash.update(issued.version.to_be_bytes());
    if issued.replaced > 0 {
        // A server that starts again begins with the last good ones: not with those that are no longer good.
        hash.update(issued.replaced.to_be_bytes());
    }
    for bundle in accepted
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.bundle.as_ref())
    {
        hash.update(&bundle.pem);
    }
    if let Some(version) = issued.bucket_version() {
        hash.update(version.to_be_bytes());
    }
    let bucket = accepted
        .bucket
        .as_ref()
        .and_then(|bucket| bucket.bundle.as_deref());
    hash.update(bucket.unwrap_or_default());
    if let Some(serving) = &accepted.serving {
        // The key goes with it.
        hash.update(&serving.certificate);
    }
    hash.update(accepted.client_ca.as_deref().unwrap_or_default());
    hash.update(accepted.users.as_deref().unwrap_or_default());
    hex::encode(&hash.finalize()[..16])
}
