//! Files for the container runtimes of nodes. Pure: a mirror and its address in, texts out. [`NodeRoot`] writes them.

use std::collections::BTreeMap;

use crds::{RegistryMirror, node_configuration::Fallback};
use kube::ResourceExt;

use crate::names::CA_BUNDLE_KEY as CA_FILE;

mod bottlerocket;
mod containerd;
mod containers;
mod docker;
mod endpoint;
mod entry;
mod k3s;
mod marker;
mod openshift;
mod root;
mod talos;

pub use endpoint::{InvalidEndpoint, NodeEndpoint};
pub use entry::InvalidEntry;
pub use marker::Marker;
pub use root::NodeRoot;

/// The registry that Docker can use a mirror for.
const DOCKER_HUB: &str = "docker.io";

/// A container runtime, or a system with its own form of a runtime's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// /etc/containerd/certs.d/HOST/hosts.toml
    Containerd,
    /// /etc/containers/registries.conf.d: CRI-O, podman, skopeo
    Crio,
    /// /etc/docker/daemon.json
    Docker,
    /// /etc/rancher/k3s/registries.yaml
    K3s,
    /// /etc/rancher/rke2/registries.yaml
    Rke2,
    /// A patch of the machine configuration
    Talos,
    /// User data (TOML)
    Bottlerocket,
    /// `ImageDigestMirrorSet` and `ImageTagMirrorSet`
    #[value(name = "openshift-idms")]
    OpenShiftIdms,
}

/// A file for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFile {
    /// The path below the root directory of the node, such as `etc/docker/daemon.json`.
    pub path: String,
    /// The content.
    pub text: String,
}

/// The files for one runtime, in the order in which they have to be written, and the limits that apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFiles {
    /// Certificates come before the files that name them.
    pub files: Vec<NodeFile>,
    /// Limits of the runtime, and the steps that remain, each a sentence.
    pub notes: Vec<String>,
}

/// An error: there are no files for a runtime.
#[derive(Debug, thiserror::Error)]
pub enum NodeConfigError {
    /// The runtime can't express the mirror's configuration, for this reason.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A document can't be written as YAML.
    #[error("{document} not written as YAML: {source}")]
    Yaml {
        /// The document.
        document: &'static str,
        /// The cause.
        #[source]
        source: serde_saphyr::ser::Error,
    },
}

/// The input of every format.
struct Source<'a> {
    mirror: &'a RegistryMirror,
    /// The upstreams, the default first.
    hosts: Vec<&'a str>,
    endpoint: &'a NodeEndpoint,
    fallback: Fallback,
}

impl<'a> Source<'a> {
    fn new(mirror: &'a RegistryMirror, endpoint: &'a NodeEndpoint) -> Self {
        let upstreams = mirror.spec.upstreams.iter();
        Self {
            mirror,
            hosts: upstreams.map(|upstream| upstream.host.as_str()).collect(),
            endpoint,
            fallback: mirror.spec.node_configuration.fallback,
        }
    }

    /// Returns the file with the CA certificates at a path, if nodes need it.
    fn ca_file(&self, directory: &str) -> Option<NodeFile> {
        let text = self.endpoint.certificates.clone()?;
        Some(NodeFile::new(format!("{directory}/{CA_FILE}"), text))
    }
}

impl NodeFile {
    fn new(path: impl Into<String>, text: String) -> Self {
        let path = path.into();
        Self { path, text }
    }
}

/// Returns the data of the `ConfigMap` for nodes, by key.
pub fn published(mirror: &RegistryMirror, endpoint: &NodeEndpoint) -> BTreeMap<String, String> {
    let source = &Source::new(mirror, endpoint);
    let hosts = source.hosts.iter();
    let mut files: BTreeMap<_, _> = hosts
        .map(|host| {
            (
                containerd::published_name(host),
                containerd::hosts_toml(source, CA_FILE),
            )
        })
        .collect();
    files.insert("registries.yaml".to_owned(), k3s::registries_yaml(source, "k3s"));
    let certificates = endpoint.certificates.clone();
    files.extend(certificates.map(|pem| (CA_FILE.to_owned(), pem)));
    let registries_conf = containers::registries_conf(source);
    files.extend(registries_conf.map(|file| ("registries.conf".to_owned(), file)));
    files.extend(docker::daemon_json(source).map(|file| ("daemon.json".to_owned(), file)));
    files
}

/// Returns the text of containerd's `hosts.toml`, the same for each registry of the mirror. `ca_file` is the path of the
/// CA certificates, relative to the file.
pub fn hosts_toml(mirror: &RegistryMirror, endpoint: &NodeEndpoint, ca_file: &str) -> String {
    containerd::hosts_toml(&Source::new(mirror, endpoint), ca_file)
}

/// Returns the entry in `registries.conf` of each registry for which CRI-O can use the mirror, or that it has to block.
pub fn registries_conf_entries(mirror: &RegistryMirror, endpoint: &NodeEndpoint) -> BTreeMap<String, String> {
    let entries = containers::entries(&Source::new(mirror, endpoint)).into_iter();
    entries.map(|(host, entry)| (host.to_owned(), entry)).collect()
}

/// Returns the files for one runtime at their paths on a node.
///
/// # Errors
/// The runtime can't use the mirror for any of its registries, or can't keep `fallback: Never`.
pub fn files(
    runtime: Runtime,
    mirror: &RegistryMirror,
    endpoint: &NodeEndpoint,
) -> Result<NodeFiles, NodeConfigError> {
    let source = &Source::new(mirror, endpoint);
    match runtime {
        Runtime::Containerd => Ok(containerd::files(source)),
        Runtime::Crio => containers::files(source),
        Runtime::Docker => docker::files(source),
        Runtime::K3s => Ok(k3s::files(source, "k3s")),
        Runtime::Rke2 => Ok(k3s::files(source, "rke2")),
        Runtime::Talos => talos::files(source),
        Runtime::Bottlerocket => bottlerocket::files(source),
        Runtime::OpenShiftIdms => openshift::files(source),
    }
}

/// Returns the mirror's name as `NAMESPACE/NAME`, or its name alone if it has no namespace.
pub fn mirror_id(mirror: &RegistryMirror) -> String {
    let name = mirror.name_any();
    mirror
        .namespace()
        .map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"))
}
