//! Files for the container runtimes of nodes, so that they pull through the mirror. By IP: nodes do not resolve the
//! cluster's names.

use std::collections::BTreeMap;

use crds::{
    NodeConfiguration, RegistryMirror,
    node_configuration::{Fallback, NodeConfigurationMode},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde_json::json;

use super::child::Child;
use crate::names;
use crate::{
    kind::Kind,
    observed::{Observed, ServiceAddress},
    validate::{Accepted, Serving},
};

/// The registry that Docker's own mirrors are for, and the only one.
const DOCKER_HUB: &str = "docker.io";

/// The `ConfigMap`, once the Service has an address.
pub(super) fn object(accepted: &Accepted<'_>, observed: &Observed) -> Option<Child> {
    let mirror = accepted.mirror;
    if mirror.spec.node_configuration.mode == NodeConfigurationMode::None {
        return None;
    }
    let service = observed.service.as_ref()?;
    let certificate = accepted.serving.as_ref().and_then(Serving::ca_text);
    Some(map(mirror, files(mirror, service, certificate)))
}

/// The `ConfigMap` as it is, with other authorities to trust; `None` where it has none.
pub(super) fn renewed(
    mirror: &RegistryMirror,
    mut published: BTreeMap<String, String>,
    serving: &Serving,
) -> Option<Child> {
    *published.get_mut(names::CA_BUNDLE_KEY)? = serving.ca_text()?;
    Some(map(mirror, published))
}

fn map(mirror: &RegistryMirror, files: BTreeMap<String, String>) -> Child {
    let name = names::hosts(&mirror.name_any());
    let map = ConfigMap {
        metadata: names::owned(mirror, name.clone()),
        data: Some(files),
        ..ConfigMap::default()
    };
    Child::new(Kind::ConfigMap, name, &map)
}

/// The mirror's address and certificate for nodes.
struct Endpoint {
    url: String,
    /// `IP:PORT`.
    authority: String,
    /// The certificates that nodes have to trust, in PEM.
    certificate: Option<String>,
}

impl Endpoint {
    fn is_plain(&self) -> bool {
        self.url.starts_with("http://")
    }

    fn is_ipv6(&self) -> bool {
        self.authority.starts_with('[')
    }
}

/// Returns the files for the nodes of a mirror at this address. `certificate` holds the certificates, in PEM, that clients
/// have to trust.
pub fn files(
    mirror: &RegistryMirror,
    address: &ServiceAddress,
    certificate: Option<String>,
) -> BTreeMap<String, String> {
    let service = &Endpoint {
        url: address.url(mirror.spec.tls.mode),
        authority: address.authority(),
        certificate,
    };
    let wanted = &mirror.spec.node_configuration;
    let hosts: Vec<_> = mirror
        .spec
        .upstreams
        .iter()
        .map(|upstream| upstream.host.as_str())
        .collect();
    let mut files: BTreeMap<_, _> = hosts
        .iter()
        .map(|host| (hosts_file(host), hosts_toml(service, wanted)))
        .collect();
    files.insert("registries.yaml".to_owned(), registries_yaml(&hosts, service));
    let certificate = service.certificate.clone();
    files.extend(certificate.map(|pem| (names::CA_BUNDLE_KEY.to_owned(), pem)));
    let registries_conf = registries_conf(&hosts, service, wanted.fallback);
    files.extend(registries_conf.map(|file| ("registries.conf".to_owned(), file)));
    files.extend(daemon_json(&hosts, service, wanted.fallback).map(|file| ("daemon.json".to_owned(), file)));
    files
}

/// A key of a `ConfigMap` has neither colons nor brackets.
fn hosts_file(host: &str) -> String {
    format!("{}.hosts.toml", host.replace([':', '[', ']'], "_"))
}

/// Returns the file for containerd, `/etc/containerd/certs.d/HOST/hosts.toml`. containerd asks the `[host]` tables in
/// order, then `server`, whose default is the registry itself: with fallback `Never`, `server` is the mirror, too.
fn hosts_toml(service: &Endpoint, wanted: &NodeConfiguration) -> String {
    let url = &service.url;
    // Rounded up: 0 is no limit at all to containerd.
    let timeout = std::time::Duration::from(wanted.dial_timeout)
        .as_nanos()
        .div_ceil(1_000_000);
    // A path relative to the file, next to which nodes have the ConfigMap's ca.crt.
    let ca = service.certificate.as_ref().map_or("", |_| "ca = \"ca.crt\"\n");
    let options = format!("capabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"{timeout}ms\"\n{ca}");
    let host = format!("[host.\"{url}\"]\n{options}");
    let server = format!("server = \"{url}\"\n{options}");
    match wanted.fallback {
        Fallback::Allow if service.is_ipv6() => format!("{NEEDS_CONTAINERD_2}{host}"),
        Fallback::Allow => host,
        // No containerd 1.7 reads brackets in a table's name, and 1.7.27 reads no file without [host].
        Fallback::Never if service.is_ipv6() => format!("{server}\n[host]\n"),
        Fallback::Never => format!("{server}\n{host}"),
    }
}

/// A comment for administrators: containerd 1.7 ignores the file, and pulls from the registry itself.
const NEEDS_CONTAINERD_2: &str =
    "# Needs containerd 2.0 or later: containerd 1.7 can't read the IPv6 address in the next line.\n";

/// Returns the file for CRI-O, podman and skopeo in `/etc/containers/registries.conf.d/`, if it has an entry. Their
/// requests name no registry, so that its host goes into the path. A registry for which they can't use the mirror has no
/// entry with fallback `Allow`, and is blocked with `Never`.
fn registries_conf(hosts: &[&str], service: &Endpoint, fallback: Fallback) -> Option<String> {
    let entries = hosts.iter().enumerate().filter_map(|(index, host)| {
        let entry = format!("[[registry]]\nprefix = \"{host}\"\n");
        let itself = format!("location = \"{host}\"\n");
        match (location(host, index == 0, service), fallback) {
            (Some(location), Fallback::Allow) => {
                Some(format!("{entry}{itself}\n[[registry.mirror]]\n{location}\n"))
            }
            (Some(location), Fallback::Never) => Some(format!("{entry}{location}\n")),
            (None, Fallback::Allow) => None,
            (None, Fallback::Never) => Some(format!("{entry}{itself}blocked = true\n\n")),
        }
    });
    let file: String = entries.collect();
    (!file.is_empty()).then_some(file)
}

/// Returns the place of a registry on the mirror for image names, which have no IPv6 address, and no port in the path.
fn location(host: &str, is_default: bool, service: &Endpoint) -> Option<String> {
    let authority = &service.authority;
    let location = match host.contains(':') {
        _ if service.is_ipv6() => return None,
        false => format!("{authority}/{host}"),
        true if is_default => authority.clone(),
        true => return None,
    };
    Some(format!(
        "location = \"{location}\"\ninsecure = {}\n",
        service.is_plain()
    ))
}

/// Docker, `/etc/docker/daemon.json`. It mirrors Docker Hub only, names no registry, and always falls back.
fn daemon_json(hosts: &[&str], service: &Endpoint, fallback: Fallback) -> Option<String> {
    let fits = hosts.first() == Some(&DOCKER_HUB) && fallback == Fallback::Allow;
    let mut file = json!({"registry-mirrors": [service.url]});
    if service.is_plain() {
        file["insecure-registries"] = json!([service.authority]);
    }
    fits.then(|| format!("{file:#}\n"))
}

/// k3s, `/etc/rancher/k3s/registries.yaml`, and RKE2. Whether nodes fall back is a flag of theirs
/// (`--disable-default-registry-endpoint`). JSON is YAML.
fn registries_yaml(hosts: &[&str], service: &Endpoint) -> String {
    let mirrors: BTreeMap<_, _> = hosts
        .iter()
        .map(|host| (*host, json!({"endpoint": [service.url]})))
        .collect();
    let mut file = json!({"mirrors": mirrors});
    if service.certificate.is_some() {
        file["configs"] = json!({&service.authority: {"tls": {"ca_file": "/etc/rancher/k3s/ca.crt"}}});
    }
    format!("{file:#}\n")
}
