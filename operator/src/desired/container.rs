//! The server's container: how it is started, watched and confined.

use std::collections::BTreeMap;

use crds::{Pod, RegistryMirror, observability::AccessLog};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, Probe, ResourceRequirements,
        SecurityContext, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use kube::ResourceExt;
use serde_json::json;

use super::{config, storage, workload};
use crate::{
    certificates::peers,
    desired::Release,
    peer_secret,
    validate::{Accepted, bundle, serving, users},
};

/// The directory of `config.yml`.
const CONFIG: &str = "/etc/registry-mirror";
/// The credentials directory.
const CREDENTIALS: &str = "/etc/registry-mirror/credentials";
/// Certificates and users. Bundles are named in the configuration, by upstream; the rest in the environment.
const FILES: &str = "/etc/registry-mirror/files";
/// The secret that the servers share.
const PEERS: &str = "/etc/registry-mirror/peers";
/// The cache.
const CACHE: &str = "/var/lib/registry";

/// Renders the container of the server.
pub(super) fn server(accepted: &Accepted<'_>, wanted: &Pod, release: &Release) -> Container {
    let port = |port: workload::Port| ContainerPort {
        name: Some(port.name.to_owned()),
        container_port: port.number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let peers = accepted.peers.as_ref().map(|_| workload::PEER_PORT);
    let ports = [workload::REGISTRY_PORT, workload::ADMIN_PORT]
        .into_iter()
        .chain(peers);
    Container {
        name: "mirror".to_owned(),
        image: Some(
            wanted
                .image
                .clone()
                .unwrap_or_else(|| release.server_image.clone()),
        ),
        image_pull_policy: wanted.image_pull_policy.map(|policy| policy.as_str().to_owned()),
        command: Some(vec!["mirror".to_owned()]),
        args: Some(vec!["serve".to_owned(), format!("{CONFIG}/{}", config::FILE)]),
        env: Some(environment(accepted)),
        ports: Some(ports.map(port).collect()),
        volume_mounts: Some(mounts(accepted)),
        resources: Some(wanted.resources.clone().unwrap_or_else(default_resources)),
        // A large index takes a while to open; nothing else may take that long.
        startup_probe: Some(probe("/livez", 1, 120)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        // Short, because load balancers route to a terminating Pod until it fails.
        readiness_probe: Some(probe("/readyz", 1, 2)),
        security_context: Some(container_security(wanted.container_security_context.clone())),
        ..Container::default()
    }
}

/// Returns the addresses and directories of the Pod. None is part of the configuration that servers reload.
fn environment(accepted: &Accepted<'_>) -> Vec<EnvVar> {
    let address = |port: workload::Port| format!(":{}", port.number);
    let format = config::formatter(accepted.mirror.spec.observability.log_format);
    let mut variables = vec![
        ("REGISTRY_HTTP_ADDR".to_owned(), address(workload::REGISTRY_PORT)),
        (
            "REGISTRY_HTTP_DEBUG_ADDR".to_owned(),
            address(workload::ADMIN_PORT),
        ),
        (
            "REGISTRY_HTTP_ACTIONS_ADDR".to_owned(),
            format!("127.0.0.1:{}", workload::ACTIONS_PORT),
        ),
        (
            "REGISTRY_HTTP_DEBUG_PROMETHEUS_ENABLED".to_owned(),
            "true".to_owned(),
        ),
        ("REGISTRY_LOG_FORMATTER".to_owned(), format.to_owned()),
        (
            "REGISTRY_PROXY_CREDENTIALSDIRECTORY".to_owned(),
            CREDENTIALS.to_owned(),
        ),
        ("REGISTRY_PROXY_FILESDIRECTORY".to_owned(), FILES.to_owned()),
        (
            "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY".to_owned(),
            CACHE.to_owned(),
        ),
    ];
    variables.extend(bucket(accepted));
    variables.extend(served(accepted));
    variables.extend(answered(accepted.mirror));
    variables.extend(traced(accepted));
    variables.extend(shared(accepted));
    variables
        .into_iter()
        .map(|(name, value)| EnvVar {
            name,
            value: Some(value),
            value_from: None,
        })
        .collect()
}

/// Returns the trace collector and the name of the service.
fn traced(accepted: &Accepted<'_>) -> Vec<(String, String)> {
    let mirror = accepted.mirror;
    let Some(endpoint) = &mirror.spec.observability.otlp_endpoint else {
        return Vec::new();
    };
    let namespace = mirror.namespace().unwrap_or_default();
    let variable = |name: &str, value: String| (format!("OTEL_{name}"), value);
    vec![
        variable("EXPORTER_OTLP_ENDPOINT", endpoint.clone()),
        variable("RESOURCE_ATTRIBUTES", format!("k8s.namespace.name={namespace}")),
        variable("SERVICE_NAME", format!("{namespace}/{}", mirror.name_any())),
    ]
}

/// Returns the sections of the bucket and of redirects to it. The credentials are a file.
fn bucket(accepted: &Accepted<'_>) -> Vec<(String, String)> {
    let storage = accepted
        .bucket
        .as_ref()
        .map(|bucket| bucket.storage(CREDENTIALS, FILES));
    let Some(Ok(serde_json::Value::Object(sections))) = storage.map(serde_json::to_value) else {
        return Vec::new();
    };
    // JSON is YAML, which the server expects. The kubelet reads `$` as the beginning of a reference.
    let variable = |(key, section): (String, serde_json::Value)| {
        let name = format!("REGISTRY_STORAGE_{}", key.to_uppercase());
        (name, section.to_string().replace('$', "$$"))
    };
    sections.into_iter().map(variable).collect()
}

/// Returns the port for the other servers, their name in the cluster, and the files that all of them have.
fn shared(accepted: &Accepted<'_>) -> Vec<(String, String)> {
    let Some(files) = &accepted.peers else {
        return Vec::new();
    };
    let host = peers::host(accepted.mirror);
    let port = workload::PEER_PORT.number;
    let variable = |name: &str, value: String| (format!("REGISTRY_PEERS_{name}"), value);
    let file = |name: &str, file: &str| variable(name, format!("{PEERS}/{file}"));
    let mut variables = vec![
        variable("ADDR", format!(":{port}")),
        variable("ADDRESSES_0", format!("{host}:{port}")),
        file("SECRETFILE", peer_secret::KEY),
    ];
    if peers::is_held(files) {
        let [certificate, key, ca] = peers::FILES;
        variables.push(file("TLS_CERTIFICATE", certificate));
        variables.push(file("TLS_KEY", key));
        variables.push(file("TLS_CLIENTCAS_0", ca));
    }
    variables
}

/// Returns the variables for response headers and the access log. The kubelet reads `$` as the beginning of a reference
/// to another variable, and `$$` as `$`.
fn answered(mirror: &RegistryMirror) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let headers = config::headers(mirror);
    if !headers.is_empty() {
        // JSON is YAML, which the server expects.
        let headers = json!(headers).to_string().replace('$', "$$");
        variables.push(("REGISTRY_HTTP_HEADERS".to_owned(), headers));
    }
    if mirror.spec.observability.access_log == AccessLog::Disabled {
        variables.push(("REGISTRY_LOG_ACCESSLOG_DISABLED".to_owned(), "true".to_owned()));
    }
    variables
}

/// Returns the files of the certificate and the users.
fn served(accepted: &Accepted<'_>) -> Vec<(String, String)> {
    let file = |variable: &str, file: &str| (format!("REGISTRY_{variable}"), format!("{FILES}/{file}"));
    let mut variables = Vec::new();
    if accepted.serving.is_some() {
        let [certificate, key, _] = serving::FILES;
        variables.push(file("HTTP_TLS_CERTIFICATE", certificate));
        variables.push(file("HTTP_TLS_KEY", key));
        let minimum = accepted.mirror.spec.tls.minimum_version;
        let minimum = minimum.map(|version| config::minimum_tls(version).to_owned());
        variables.extend(minimum.map(|version| ("REGISTRY_HTTP_TLS_MINIMUMTLS".to_owned(), version)));
        if accepted.client_ca.is_some() {
            variables.push(file("HTTP_TLS_CLIENTCAS_0", bundle::CLIENT_CA));
        }
    }
    if accepted.users.is_some() {
        variables.push((
            "REGISTRY_AUTH_HTPASSWD_REALM".to_owned(),
            accepted.mirror.name_any(),
        ));
        variables.push(file("AUTH_HTPASSWD_PATH", users::FILE));
    }
    variables
}

fn mounts(accepted: &Accepted<'_>) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let peers = accepted.peers.as_ref().map(|_| mount("peers", PEERS, true));
    let mounts = vec![
        mount("config", CONFIG, true),
        mount("credentials", CREDENTIALS, true),
        mount("files", FILES, true),
        mount(storage::VOLUME, CACHE, false),
    ];
    mounts.into_iter().chain(peers).collect()
}

/// Returns the default resources, enough for a busy mirror: content is streamed from the upstream to disk and client.
fn default_resources() -> ResourceRequirements {
    let amounts = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    ResourceRequirements {
        requests: amounts("100m", "128Mi"),
        limits: amounts("2", "512Mi"),
        ..ResourceRequirements::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(workload::ADMIN_PORT.name.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

/// Returns the container's security context, hardened where the spec says nothing else.
fn container_security(wanted: Option<SecurityContext>) -> SecurityContext {
    let wanted = wanted.unwrap_or_default();
    let drop_all = || Capabilities {
        drop: Some(vec!["ALL".to_owned()]),
        add: None,
    };
    SecurityContext {
        allow_privilege_escalation: wanted.allow_privilege_escalation.or(Some(false)),
        read_only_root_filesystem: wanted.read_only_root_filesystem.or(Some(true)),
        capabilities: wanted.capabilities.or_else(|| Some(drop_all())),
        ..wanted
    }
}
