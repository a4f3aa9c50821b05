//! Docker: `/etc/docker/daemon.json`. It mirrors Docker Hub only, names no registry, and always falls back.

use crds::node_configuration::Fallback;
use serde_json::json;

use super::{DOCKER_HUB, NodeConfigError, NodeFile, NodeFiles, Source};

/// Returns the daemon's configuration and, for https, the CA certificates of the mirror.
pub(super) fn files(source: &Source<'_>) -> Result<NodeFiles, NodeConfigError> {
    let text = daemon_json(source).ok_or_else(|| {
        let reason = match source.fallback {
            Fallback::Never => {
                "Docker always falls back to the registry: it can't keep nodeConfiguration.fallback Never"
            }
            Fallback::Allow => {
                "Docker uses mirrors for Docker Hub only: docker.io has to be the first of spec.upstreams"
            }
        };
        NodeConfigError::Unsupported(reason)
    })?;
    let authority = &source.endpoint.authority;
    let ca = source.ca_file(&format!("etc/docker/certs.d/{authority}"));
    let others = source.hosts.len() > 1;
    Ok(NodeFiles {
        files: ca
            .into_iter()
            .chain([NodeFile::new("etc/docker/daemon.json", text)])
            .collect(),
        notes: others
            .then(|| {
                "Docker uses mirrors for Docker Hub only, and pulls from the other upstreams directly"
                    .to_owned()
            })
            .into_iter()
            .collect(),
    })
}

/// Returns the text of `daemon.json`, if Docker can use the mirror.
pub(super) fn daemon_json(source: &Source<'_>) -> Option<String> {
    let endpoint = source.endpoint;
    let fits = source.hosts.first() == Some(&DOCKER_HUB) && source.fallback == Fallback::Allow;
    let mut file = json!({"registry-mirrors": [endpoint.url]});
    if endpoint.is_plain() {
        file["insecure-registries"] = json!([endpoint.authority]);
    }
    fits.then(|| format!("{file:#}\n"))
}
