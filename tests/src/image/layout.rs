//! A directory in the OCI image layout (image-spec, "OCI Image Layout Specification").

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd names what it imports by this one.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The descriptor of a blob in an index or a manifest.
#[derive(Debug, Clone)]
pub struct Descriptor(Value);

/// A layer with the digest of its uncompressed form.
pub(super) struct Layer {
    descriptor: Descriptor,
    diff_id: String,
}

/// A file in a layer.
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// The layout, with what it holds so far.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
    tagged: Vec<Value>,
}

impl Layout {
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self {
            directory: directory.to_owned(),
            tagged: Vec::new(),
        })
    }

    /// Opens an existing layout.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let mut index: Value = serde_json::from_slice(&fs::read(directory.join("index.json"))?)?;
        Ok(Self {
            directory: directory.to_owned(),
            tagged: serde_json::from_value(index["manifests"].take())?,
        })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Returns the digest of the manifest or index with this tag.
    pub fn digest(&self, tag: &str) -> Option<&str> {
        let is_tag = |manifest: &&Value| manifest["annotations"][REF_NAME] == short(tag);
        self.tagged.iter().find(is_tag)?["digest"].as_str()
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> io::Result<Descriptor> {
        let hex = hex::encode(Sha256::digest(bytes));
        fs::write(self.directory.join("blobs/sha256").join(&hex), bytes)?;
        let media_type = format!("application/vnd.oci.image.{media_type}");
        let digest = format!("sha256:{hex}");
        Ok(Descriptor(
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}),
        ))
    }

    fn put_json(&self, media_type: &str, value: &Value) -> io::Result<Descriptor> {
        self.put(media_type, value.to_string().as_bytes())
    }

    pub(super) fn layer(&self, entries: &[Entry]) -> io::Result<Layer> {
        let mut archive = tar::Builder::new(Vec::new());
        for entry in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(entry.bytes.len() as u64);
            header.set_mode(entry.mode);
            archive.append_data(&mut header, &entry.path, &entry.bytes[..])?;
        }
        let plain = archive.into_inner()?;
        let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
        compressed.write_all(&plain)?;
        Ok(Layer {
            descriptor: self.put("layer.v1.tar+gzip", &compressed.finish()?)?,
            diff_id: format!("sha256:{}", hex::encode(Sha256::digest(&plain))),
        })
    }

    /// Returns a manifest with its configuration, for a platform given as `os/architecture`.
    pub(super) fn manifest(
        &self,
        platform: &str,
        layers: &[Layer],
        config: &Value,
    ) -> io::Result<Descriptor> {
        let (os, architecture) = platform.split_once('/').unwrap_or(("linux", platform));
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = self.put_json(
            "config.v1+json",
            &json!({
                "os": os, "architecture": architecture, "config": config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        )?;
        let layers: Vec<&Value> = layers.iter().map(|layer| &layer.descriptor.0).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = self.put_json(
            "manifest.v1+json",
            &json!({"schemaVersion": 2, "mediaType": media_type, "config": config.0, "layers": layers}),
        )?;
        manifest.0["platform"] = json!({"os": os, "architecture": architecture});
        Ok(manifest)
    }

    pub(super) fn index(&self, manifests: &[Descriptor]) -> io::Result<Descriptor> {
        let manifests: Vec<Value> = manifests.iter().map(|manifest| manifest.0.clone()).collect();
        self.put_json("index.v1+json", &index(&manifests))
    }

    /// Names a manifest or index: by a tag, or by a whole reference for containerd.
    pub(super) fn tag(&mut self, top: &Descriptor, name: &str) -> io::Result<()> {
        let mut named = top.0.clone();
        named["annotations"] = json!({REF_NAME: short(name)});
        if name != short(name) {
            named["annotations"][CONTAINERD_NAME] = json!(name);
        }
        self.tagged.push(named);
        fs::write(self.directory.join("index.json"), index(&self.tagged).to_string())
    }

    /// Writes the layout as one archive, the form that `ctr images import` and skopeo's `oci-archive:` read.
    pub fn pack(&self, file: &Path) -> io::Result<()> {
        let mut archive = tar::Builder::new(fs::File::create(file)?);
        archive.append_dir_all(".", &self.directory)?;
        archive.into_inner()?.sync_all()
    }
}

fn index(manifests: &[Value]) -> Value {
    let media_type = "application/vnd.oci.image.index.v1+json";
    json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})
}

/// Returns the tag of a reference, which may be a tag only.
fn short(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, tag)| tag)
}
