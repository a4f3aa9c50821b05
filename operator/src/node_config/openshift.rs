//! `OpenShift`: an `ImageDigestMirrorSet` and an `ImageTagMirrorSet`, from which the machine configuration operator writes
//! `registries.conf` on every node.

use crds::node_configuration::Fallback;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{CA_FILE, NodeConfigError, NodeFile, NodeFiles, Source, containers};

/// Returns the manifests, one in each file.
pub(super) fn files(source: &Source<'_>) -> Result<NodeFiles, NodeConfigError> {
    let mut notes = Vec::new();
    let mirrors = mirrors(source, &mut notes);
    if mirrors.is_empty() {
        return Err(NodeConfigError::Unsupported(
            "OpenShift can't name the mirror for any of its registries in image names: give it an IPv4 address or a \
             name (--endpoint)",
        ));
    }
    let name = format!("registry-mirror-{}", source.mirror.name_any());
    let set = |kind: &str, field: &str| {
        json!({
            "apiVersion": "config.openshift.io/v1", "kind": kind, "metadata": {"name": name}, "spec": {field: mirrors},
        })
    };
    let mut manifests: Vec<_> = trusted(source, &name, &mut notes).into_iter().collect();
    manifests.push((
        "image-digest-mirror-set.yaml",
        set("ImageDigestMirrorSet", "imageDigestMirrors"),
    ));
    manifests.push((
        "image-tag-mirror-set.yaml",
        set("ImageTagMirrorSet", "imageTagMirrors"),
    ));
    let files = manifests.into_iter().map(|(path, manifest)| {
        let text = serde_saphyr::to_string(&manifest).map_err(|source| NodeConfigError::Yaml {
            document: "manifest for OpenShift",
            source,
        })?;
        Ok(NodeFile::new(path, text))
    });
    Ok(NodeFiles {
        files: files.collect::<Result<_, _>>()?,
        notes,
    })
}

/// Returns an entry for each registry that has a place on the mirror, and notes the others.
fn mirrors(source: &Source<'_>, notes: &mut Vec<String>) -> Vec<Value> {
    let policy = match source.fallback {
        Fallback::Allow => "AllowContactingSource",
        Fallback::Never => "NeverContactSource",
    };
    let mut mirrors = Vec::new();
    for (index, host) in source.hosts.iter().enumerate() {
        match containers::place(source, host, index == 0) {
            Some(place) => {
                mirrors.push(json!({"source": host, "mirrors": [place], "mirrorSourcePolicy": policy}));
            }
            None => notes.push(format!(
                "the mirror can't be named for {host} in image names: nodes pull from it directly"
            )),
        }
    }
    mirrors
}

/// Returns the `ConfigMap` with the CA certificates, and notes the change of the cluster's Image configuration.
fn trusted(source: &Source<'_>, name: &str, notes: &mut Vec<String>) -> Option<(&'static str, Value)> {
    let endpoint = source.endpoint;
    let authority = &endpoint.authority;
    if endpoint.is_plain() {
        notes.push(format!(
            "the mirror serves http: add {authority} to spec.registrySources.insecureRegistries of image.config.openshift.io/cluster"
        ));
    }
    let pem = endpoint.certificates.as_ref()?;
    notes.push(format!(
        "name ConfigMap {name} in spec.additionalTrustedCA of image.config.openshift.io/cluster; if it names another one, \
         add the keys of {CA_FILE} to that"
    ));
    let manifest = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "openshift-config"},
        // A key has no colon: two dots stand for it.
        "data": {authority.replace(':', ".."): pem},
    });
    Some(("trusted-ca.yaml", manifest))
}
