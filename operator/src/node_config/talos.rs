//! Talos: a patch of the machine configuration, `machine.registries`.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use crds::node_configuration::Fallback;
use serde_json::{Value, json};

use super::{NodeConfigError, NodeFile, NodeFiles, Source};

const FILE: &str = "talos-registries.yaml";

/// Returns the patch for `talosctl patch machineconfig`.
pub(super) fn files(source: &Source<'_>) -> Result<NodeFiles, NodeConfigError> {
    let text = serde_saphyr::to_string(&patch(source)).map_err(|source| NodeConfigError::Yaml {
        document: "patch for Talos",
        source,
    })?;
    Ok(NodeFiles {
        files: vec![NodeFile::new(FILE, text)],
        notes: vec![format!(
            "apply it with: talosctl patch machineconfig --patch @{FILE}"
        )],
    })
}

fn patch(source: &Source<'_>) -> Value {
    let endpoint = source.endpoint;
    let mirror = match source.fallback {
        Fallback::Allow => json!({"endpoints": [endpoint.url]}),
        Fallback::Never => json!({"endpoints": [endpoint.url], "skipFallback": true}),
    };
    let hosts = source.hosts.iter();
    let mirrors: BTreeMap<_, _> = hosts.map(|host| (*host, mirror.clone())).collect();
    let mut registries = json!({"mirrors": mirrors});
    if let Some(pem) = &endpoint.certificates {
        registries["config"] = json!({&endpoint.authority: {"tls": {"ca": STANDARD.encode(pem)}}});
    }
    json!({"machine": {"registries": registries}})
}
