//! The spec and the Secret that are shown.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Documents as they stand in the file.
pub(crate) struct Example(Vec<Value>);

impl Example {
    /// Reads them.
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let yaml = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(serde_saphyr::from_multiple(&yaml)?))
    }

    /// Returns the time for which the mirror serves a tag without asking the upstream.
    pub(crate) fn freshness(&self) -> Result<Duration, Box<dyn Error>> {
        let tag_ttl = self.find("RegistryMirror")?.pointer("/spec/cache/tagTTL");
        let text = tag_ttl
            .and_then(Value::as_str)
            .ok_or("the example has no cache.tagTTL")?;
        Ok(text.parse::<kube::core::Duration>()?.into())
    }

    /// Returns the name and password of the Secret.
    pub(crate) fn user(&self) -> Result<(String, String), Box<dyn Error>> {
        let data = &self.find("Secret")?["stringData"];
        let text = |key| {
            data[key]
                .as_str()
                .map(str::to_owned)
                .ok_or("the example's Secret has no username or password")
        };
        Ok((text("username")?, text("password")?))
    }

    /// Returns the documents for a registry at `url`, as YAML.
    pub(crate) fn with_registry(&self, url: &str) -> String {
        yaml(&self.of_registry(url))
    }

    /// Returns the documents for a registry at `url` with a certificate of this CA, as YAML.
    pub(crate) fn with_tls_registry(&self, url: &str, authority: &str) -> String {
        let mut documents = self.of_registry(url);
        for document in documents
            .iter_mut()
            .filter(|document| document["kind"] == "RegistryMirror")
        {
            document["spec"]["upstreams"][0]["tls"] =
                json!({"caBundleRef": {"kind": "ConfigMap", "name": "demo-ca"}});
        }
        documents.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "demo-ca"},
            "data": {"ca.crt": authority},
        }));
        yaml(&documents)
    }

    fn of_registry(&self, url: &str) -> Vec<Value> {
        let mut documents = self.0.clone();
        for document in documents
            .iter_mut()
            .filter(|document| document["kind"] == "RegistryMirror")
        {
            document["spec"]["upstreams"][0]["remoteURL"] = json!(url);
        }
        // JSON is YAML.
        documents
    }

    fn find(&self, kind: &str) -> Result<&Value, String> {
        let found = self.0.iter().find(|document| document["kind"] == kind);
        found.ok_or_else(|| format!("the example has no {kind}"))
    }
}

/// Returns the documents as JSON, which is YAML.
fn yaml(documents: &[Value]) -> String {
    let documents: Vec<_> = documents.iter().map(|document| format!("{document:#}")).collect();
    documents.join("\n---\n")
}
