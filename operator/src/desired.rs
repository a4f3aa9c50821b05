//! Step three: what the cluster should hold. Pure: a spec in, objects out.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sha2::{Digest, Sha256};

use crate::{
    dereference::{Contents, References},
    kind::Kind,
    names,
    observed::{Observed, PodTemplateSource, Server},
    validate::{Accepted, Rejection, Serving},
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
mod storage;
mod template_source;
mod workload;

pub use child::Child;
pub use credentials::IssuedCredentials;
pub use hosts::files as files_for_nodes;
/// Where servers tell their state.
pub const ADMIN_PORT: u16 = workload::ADMIN_PORT.number;

/// What a release of the operator brings along.
#[derive(Clone, Debug)]
pub struct Release {
    /// The server's image, where a spec names none.
    pub server_image: String,
    /// Servers keep the configuration that they have: it may be of an older version, and know less.
    pub keeps_configuration: bool,
    /// The kind of cluster.
    pub platform: Platform,
}

/// A kind of cluster, as far as its defaults for Pods differ.
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
        }
    }
}

/// All objects of a mirror.
pub struct Desired {
    /// What the Pods mount, and their Services: applied first.
    pub configuration: Vec<Child>,
    /// The claims, one a replica: applied before the workload, whose claim template would make smaller or older ones.
    pub claims: Vec<Child>,
    /// What runs the Pods: applied last, so that no Pod waits for something to mount.
    pub workload: Child,
    /// What is noted of it.
    pub template_source: PodTemplateSource,
    /// Its Pods go on as they were rendered before, as this mirror's turn has not come.
    pub is_held: bool,
    /// A mark of everything that running Pods reload. While the workload does not carry it, Pods are told.
    pub reload: String,
    /// The server's configuration.
    pub config: mirror::config::file::File,
    /// The SHA-256 of its file, by which servers name it.
    pub configuration_version: String,
    /// What the servers are handed to show to upstreams.
    pub issued: IssuedCredentials,
}

impl Desired {
    /// Every object, in the order in which they are applied.
    pub fn children(&self) -> impl Iterator<Item = &Child> {
        self.configuration
            .iter()
            .chain(&self.claims)
            .chain([&self.workload])
    }

    /// Whether a server has yet to read what it is handed.
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

    /// Notes that the workload takes up a new version from now on, or no longer does.
    pub fn set_upgraded(&mut self, since: Option<Timestamp>) {
        self.template_source.upgraded = since;
        template_source::annotate(&self.template_source, &mut self.workload);
    }

    /// The objects of an earlier spec that this one does not ask for. Claims never are.
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

/// Works out the objects of a mirror.
///
/// `references` says what its servers were handed before, `observed` which claims there are.
///
/// # Errors
/// `InvalidSpec`: the servers would refuse the configuration that the spec comes to.
pub fn objects(
    accepted: &Accepted<'_>,
    references: &References,
    observed: &Observed,
    release: &Release,
) -> Result<Desired, Rejection> {
    let config = config::file(accepted)?;
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
    configuration.push(service_account::object(accepted.mirror));
    configuration.push(service::clients(accepted.mirror, observed));
    configuration.push(service::headless(accepted.mirror));
    configuration.extend(files::ca_bundle(accepted.mirror, accepted.serving.as_ref()));
    configuration.extend(hosts::object(accepted, observed));
    configuration.extend(disruption::object(accepted.mirror));
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

/// What a mirror holds of its certificate, renewed, and nothing else changed: for one whose spec is not acted on.
pub fn renewed(
    mirror: &RegistryMirror,
    files: &Contents,
    published: Option<BTreeMap<String, String>>,
    serving: &Serving,
    ca: Option<&BTreeMap<String, Vec<u8>>>,
) -> Vec<Child> {
    let published = published.and_then(|published| hosts::renewed(mirror, published, serving));
    files::ca_key(mirror, ca)
        .into_iter()
        .chain([files::renewed(mirror, files, serving)])
        .chain(files::ca_bundle(mirror, Some(serving)))
        .chain(published)
        .collect()
}

/// Moves with everything that a server reads anew, by its version where it is secret.
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
    if let Some(serving) = &accepted.serving {
        // The key goes with it.
        hash.update(&serving.certificate);
    }
    hash.update(accepted.client_ca.as_deref().unwrap_or_default());
    hash.update(accepted.users.as_deref().unwrap_or_default());
    hex::encode(&hash.finalize()[..16])
}
