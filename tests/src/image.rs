//! Images made to measure, without a daemon: OCI layouts that skopeo copies, and archives that containerd imports.

mod layout;

use std::io;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

pub use self::layout::{Descriptor, Layout};

use self::layout::Entry;

/// A multi-platform image of random content. The same description gives the same bytes.
#[derive(Debug, Clone)]
pub struct Random {
    /// The seed of the image's bytes.
    pub seed: u64,
    /// `os/architecture`; with more than one the image is an index.
    pub platforms: Vec<String>,
    /// The size in bytes of the file in each layer; the compressed layer is a little larger, as random bytes are.
    pub layers: Vec<usize>,
}

impl Random {
    /// Returns an image for two platforms, with layers of these sizes for each.
    pub fn new(seed: u64, layers: &[usize]) -> Self {
        Self {
            seed,
            platforms: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            layers: layers.to_vec(),
        }
    }

    /// Writes it into a new OCI layout under the tag `tag`.
    pub fn write(&self, directory: &Path, tag: &str) -> io::Result<Layout> {
        let mut layout = Layout::create(directory)?;
        let mut manifests = Vec::new();
        for (platform, seed) in self.platforms.iter().zip(self.seed..) {
            manifests.push(self.manifest(&layout, platform, seed)?);
        }
        let top = match &manifests[..] {
            [only] => only.clone(),
            _ => layout.index(&manifests)?,
        };
        layout.tag(&top, tag)?;
        Ok(layout)
    }

    fn manifest(&self, layout: &Layout, platform: &str, seed: u64) -> io::Result<Descriptor> {
        let mut layers = Vec::new();
        for (number, size) in self.layers.iter().enumerate() {
            let mut bytes = vec![0; *size];
            // Seeds differ by platform and layer, so that no two layers are one blob.
            SmallRng::seed_from_u64(seed << 16 | number as u64).fill_bytes(&mut bytes);
            layers.push(layout.layer(&[Entry {
                path: format!("layer-{number}"),
                bytes,
                mode: 0o644,
            }])?);
        }
        layout.manifest(platform, &layers, &json!({}))
    }
}

/// A file of this machine that goes into an image.
#[derive(Debug, Clone)]
pub struct File {
    /// The path of the file on this machine.
    pub source: PathBuf,
    /// Its absolute path in the image.
    pub path: String,
}

/// Writes an image of executable files and nothing else, in one layer, for this machine's platform; the first is the
/// entrypoint, and runs as a user that the machine does not have.
pub fn of_files(directory: &Path, tag: &str, files: &[File]) -> io::Result<Layout> {
    let mut layout = Layout::create(directory)?;
    let mut entries = Vec::new();
    for file in files {
        entries.push(Entry {
            path: file.path.trim_start_matches('/').to_owned(),
            bytes: std::fs::read(&file.source)?,
            mode: 0o755,
        });
    }
    let entrypoint: Vec<&str> = files.iter().take(1).map(|file| file.path.as_str()).collect();
    let config =
        json!({"Entrypoint": entrypoint, "Env": ["PATH=/"], "User": "65532:65532", "WorkingDir": "/"});
    let layer = layout.layer(&entries)?;
    let manifest = layout.manifest(&native_platform(), &[layer], &config)?;
    layout.tag(&manifest, tag)?;
    Ok(layout)
}

/// Returns the platform of this machine as `os/architecture`.
pub fn native_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// The same description gives the same image, and a different seed a different one.
    #[test]
    fn image_is_determined_by_its_seed() {
        let scratch = Scratch::new("image").unwrap();
        let digest = |name: &str, seed| {
            let layout = Random::new(seed, &[1000, 10])
                .write(&scratch.path().join(name), "1")
                .unwrap();
            layout.digest("1").unwrap().to_owned()
        };
        assert_eq!(digest("a", 1), digest("b", 1));
        assert_ne!(digest("c", 2), digest("a", 1));
    }

    /// Every layer of every platform is a blob of its own.
    #[test]
    fn every_layer_is_a_blob_of_its_own() {
        let scratch = Scratch::new("image").unwrap();
        Random::new(7, &[100, 100, 100])
            .write(scratch.path(), "1")
            .unwrap();
        let blobs = std::fs::read_dir(scratch.path().join("blobs/sha256")).unwrap();
        // 2 platforms with 3 layers, a configuration and a manifest each, and the index.
        assert_eq!(blobs.count(), 2 * (3 + 1 + 1) + 1);
    }

    /// An image of files starts as the Dockerfile defines.
    #[test]
    fn image_of_files_starts_like_the_dockerfile() {
        let scratch = Scratch::new("image").unwrap();
        let program = File {
            source: scratch.write("program", "#!").unwrap(),
            path: "/registry-mirror".to_owned(),
        };
        let layout = of_files(&scratch.path().join("layout"), "1", &[program]).unwrap();
        let blobs = std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap();
        let config = blobs
            .filter_map(|blob| serde_json::from_slice(&std::fs::read(blob.unwrap().path()).unwrap()).ok())
            .find_map(|blob: serde_json::Value| {
                blob.get("config").filter(|c| c.get("User").is_some()).cloned()
            })
            .unwrap();
        let dockerfile = std::fs::read_to_string(crate::binaries::workspace().join("Dockerfile")).unwrap();
        let says = |instruction: &str| {
            let mut lines = dockerfile.lines();
            lines
                .find_map(|line| line.strip_prefix(instruction))
                .unwrap()
                .trim()
                .to_owned()
        };
        assert_eq!(says("FROM"), "scratch");
        assert_eq!(config["User"], says("USER"));
        assert_eq!(config["Env"], json!([says("ENV")]));
        assert_eq!(config["Entrypoint"].to_string(), says("ENTRYPOINT"));
    }

    /// An image of files can be packed with its name.
    #[test]
    fn image_of_files_can_be_packed() {
        let scratch = Scratch::new("image").unwrap();
        let source = scratch.write("program", "#!").unwrap();
        let file = File {
            source,
            path: "/program".to_owned(),
        };
        let layout = of_files(&scratch.path().join("layout"), "test.invalid/p:1", &[file]).unwrap();
        let archive = scratch.path().join("image.tar");
        layout.pack(&archive).unwrap();
        let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
        let names = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string());
        let names: Vec<String> = names.collect();
        assert!(names.contains(&"index.json".to_owned()) && names.contains(&"oci-layout".to_owned()));
        assert_eq!(
            names
                .iter()
                .filter(|name| name.starts_with("blobs/sha256/"))
                .count(),
            3
        );
    }
}
