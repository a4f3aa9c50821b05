//! Bottlerocket: user data, `settings.container-registry.mirrors`.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use crds::node_configuration::Fallback;

use super::{NodeConfigError, NodeFile, NodeFiles, Source};

/// Returns the user data. Bottlerocket always asks the registry itself if the mirror fails.
pub(super) fn files(source: &Source<'_>) -> Result<NodeFiles, NodeConfigError> {
    if source.fallback == Fallback::Never {
        return Err(NodeConfigError::Unsupported(
            "Bottlerocket always falls back to the registry: it can't keep nodeConfiguration.fallback Never",
        ));
    }
    let file = NodeFile::new("bottlerocket-user-data.toml", user_data(source));
    Ok(NodeFiles {
        files: vec![file],
        notes: vec!["add it to the nodes' user data, or apply it with apiclient".to_owned()],
    })
}

fn user_data(source: &Source<'_>) -> String {
    let endpoint = source.endpoint;
    let mut text = String::new();
    for host in &source.hosts {
        // Writing to a String can't fail.
        let _ = write!(
            text,
            "[[settings.container-registry.mirrors]]\nregistry = \"{host}\"\nendpoint = [\"{}\"]\n\n",
            endpoint.url
        );
    }
    if let Some(pem) = &endpoint.certificates {
        let data = STANDARD.encode(pem);
        let _ = write!(
            text,
            "[settings.pki.registry-mirror]\ndata = \"{data}\"\ntrusted = true\n"
        );
    }
    text
}
