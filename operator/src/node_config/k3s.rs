//! k3s and RKE2: `/etc/rancher/PRODUCT/registries.yaml`.

use std::collections::BTreeMap;

use crds::node_configuration::Fallback;
use serde_json::json;

use super::{CA_FILE, NodeFile, NodeFiles, Source};

/// Returns the registries and, for https, the CA certificates next to them.
pub(super) fn files(source: &Source<'_>, product: &str) -> NodeFiles {
    let directory = format!("etc/rancher/{product}");
    let text = registries_yaml(source, product);
    let registries = NodeFile::new(format!("{directory}/registries.yaml"), text);
    let mut notes = vec![format!("{product} reads these files when it starts: restart it")];
    if source.fallback == Fallback::Never {
        notes.push(format!(
            "{product} falls back to the registries unless it runs with --disable-default-registry-endpoint"
        ));
    }
    NodeFiles {
        files: source
            .ca_file(&directory)
            .into_iter()
            .chain([registries])
            .collect(),
        notes,
    }
}

/// Returns the text of `registries.yaml`, in JSON, which is YAML. The fallback of nodes is not in it, but a flag of the
/// program (`--disable-default-registry-endpoint`).
pub(super) fn registries_yaml(source: &Source<'_>, product: &str) -> String {
    let endpoint = source.endpoint;
    let hosts = source.hosts.iter();
    let mirrors: BTreeMap<_, _> = hosts
        .map(|host| (*host, json!({"endpoint": [endpoint.url]})))
        .collect();
    let mut file = json!({"mirrors": mirrors});
    if endpoint.certificates.is_some() {
        let ca_file = format!("/etc/rancher/{product}/{CA_FILE}");
        file["configs"] = json!({&endpoint.authority: {"tls": {"ca_file": ca_file}}});
    }
    format!("{file:#}\n")
}
