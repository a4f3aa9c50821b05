//! Files for the container runtimes of nodes, so that they pull through the mirror. By IP: nodes do not resolve the
//! cluster's names.

use std::{collections::BTreeMap, fmt::Write};

use crds::{
    NodeConfiguration, RegistryMirror,
    node_configuration::{Fallback, NodeConfigurationMode},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde_json::json;

use super::{child::Child, names};
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
    let certificate = accepted.serving.as_ref().and_then(Serving::authority);
    Some(map(mirror, files(mirror, service, certificate)))
}

/// The `ConfigMap` as it is, with other authorities to trust; `None` where it has none.
pub(super) fn renewed(
    mirror: &RegistryMirror,
    mut published: BTreeMap<String, String>,
    serving: &Serving,
) -> Option<Child> {
    *published.get_mut(names::AUTHORITY)? = serving.authority()?;
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

/// The mirror as nodes see it.
struct Endpoint {
    url: String,
    /// `IP:PORT`.
    authority: String,
    /// What they have to trust, in PEM.
    certificate: Option<String>,
}

impl Endpoint {
    fn is_plain(&self) -> bool {
        self.url.starts_with("http://")
    }
}

/// The files of a mirror at this address, whose certificate clients trust by this one, in PEM.
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
    files.insert(
        "registries.conf".to_owned(),
        registries_conf(&hosts, service, wanted.fallback),
    );
    files.insert("registries.yaml".to_owned(), registries_yaml(&hosts, service));
    let certificate = service.certificate.clone();
    files.extend(certificate.map(|pem| (names::AUTHORITY.to_owned(), pem)));
    files.extend(daemon_json(&hosts, service, wanted.fallback).map(|file| ("daemon.json".to_owned(), file)));
    files
}

/// A key of a `ConfigMap` has neither colons nor brackets.
fn hosts_file(host: &str) -> String {
    format!("{}.hosts.toml", host.replace([':', '[', ']'], "_"))
}

/// containerd, `/etc/containerd/certs.d/HOST/hosts.toml`. It asks `server` last, which is the registry itself where
/// nothing is said: never to fall back means to name the mirror there, too.
fn hosts_toml(service: &Endpoint, wanted: &NodeConfiguration) -> String {
    let url = &service.url;
    // Rounded up: 0 is no limit at all to containerd.
    let timeout = std::time::Duration::from(wanted.dial_timeout)
        .as_nanos()
        .div_ceil(1_000_000);
    // Beside the file, as it is in the ConfigMap.
    let ca = service.certificate.as_ref().map_or("", |_| "ca = \"ca.crt\"\n");
    let how = format!("capabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"{timeout}ms\"\n{ca}");
    match wanted.fallback {
        Fallback::Allow => format!("[host.\"{url}\"]\n{how}"),
        Fallback::Never => format!("server = \"{url}\"\n{how}"),
    }
}

/// CRI-O, podman and skopeo, a file in `/etc/containers/registries.conf.d/`. They name no registry in a request: its
/// host goes into the path, which a host with a port can't, unless it is the default.
fn registries_conf(hosts: &[&str], service: &Endpoint, fallback: Fallback) -> String {
    let mut file = String::new();
    let insecure = service.is_plain();
    for (index, host) in hosts.iter().enumerate() {
        let authority = &service.authority;
        let location = match host.contains(':') {
            false => format!("{authority}/{host}"),
            true if index == 0 => authority.clone(),
            true => continue,
        };
        // Writing to a text can't fail.
        let _ = match fallback {
            Fallback::Allow => writeln!(
                file,
                "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n[[registry.mirror]]\nlocation = \"{location}\"\ninsecure = {insecure}\n"
            ),
            Fallback::Never => writeln!(
                file,
                "[[registry]]\nprefix = \"{host}\"\nlocation = \"{location}\"\ninsecure = {insecure}\n"
            ),
        };
    }
    file
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
