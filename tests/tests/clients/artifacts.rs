//! regctl, and what refers to an image: signatures, SBOMs.

use testbed::image::Random;
use testbed::registry::{Kind, Registry};
use testbed::scratch::Scratch;
use testbed::skopeo;

use crate::mirror::Mirror;
use crate::programs::regctl;

const SBOM: &str = "application/vnd.example.sbom";

/// A registry that knows referrers, with an image and two artifacts about it, and a mirror of it.
struct Signed {
    registry: Registry,
    mirror: Mirror,
    scratch: Scratch,
    digest: String,
}

impl Signed {
    async fn start(kind: Kind) -> Self {
        let registry = Registry::start(kind).await.expect("a registry");
        let scratch = Scratch::new("artifacts").expect("a directory");
        let image = Random::new(3, &[50_000, 10]).write(&scratch.path().join("made"), "1");
        let image = image.expect("an image");
        let to = skopeo::Registry::open(registry.address);
        skopeo::push(image.path(), "1", &to, "org/app:1")
            .await
            .expect("a push");
        let signed = Self {
            mirror: Mirror::start_for(&registry.url).await,
            digest: image.digest("1").expect("a digest").to_owned(),
            registry,
            scratch,
        };
        for (file, artifact_type) in [("sbom", SBOM), ("signature", "application/vnd.example.signature")] {
            let path = signed.scratch.write(file, format!("the {file}")).expect("a file");
            let (path, subject) = (path.display().to_string(), signed.upstream("org/app:1"));
            signed
                .regctl(&[
                    "artifact",
                    "put",
                    "--artifact-type",
                    artifact_type,
                    "--subject",
                    &subject,
                    "-f",
                    &path,
                ])
                .await;
        }
        signed
    }

    fn upstream(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address)
    }

    fn mirrored(&self, name: &str) -> String {
        format!("{}/{name}", self.mirror.address)
    }

    async fn regctl(&self, arguments: &[&str]) -> String {
        let registries = [self.registry.address, self.mirror.address];
        let ran = regctl(self.scratch.path(), &registries, arguments).await;
        ran.unwrap_or_else(|said| panic!("regctl {arguments:?}: {said}"))
    }

    /// The same question to the registry and to the mirror, cold and warm: the same answer.
    async fn same(&self, arguments: &[&str], name: &str) -> String {
        let (upstream, mirrored) = (self.upstream(name), self.mirrored(name));
        let direct = self.regctl(&[arguments, &[&upstream]].concat()).await;
        for _ in 0..2 {
            let through = self.regctl(&[arguments, &[&mirrored]].concat()).await;
            let (here, there) = (self.mirror.address.to_string(), self.registry.address.to_string());
            let through = through.replace(&here, &there);
            assert_eq!(through, direct, "{arguments:?}");
        }
        direct
    }
}

async fn artifacts_are_found_and_fetched(kind: Kind) {
    let signed = Signed::start(kind).await;
    let listed = signed.same(&["artifact", "list"], "org/app:1").await;
    assert_eq!(listed.matches("application/vnd.example.").count(), 2, "{listed}");
    let one = signed
        .same(&["artifact", "list", "--filter-artifact-type", SBOM], "org/app:1")
        .await;
    assert_eq!(one.matches("application/vnd.example.").count(), 1, "{one}");
    let of = ["artifact", "get", "--filter-artifact-type", SBOM, "--subject"];
    assert_eq!(signed.same(&of, "org/app:1").await, "the sbom");
}

/// Regctl lists, filters and gets artifacts by the referrers API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regctl_finds_artifacts_by_referrers_api() {
    artifacts_are_found_and_fetched(Kind::Olareg).await;
}

/// Regctl lists, filters and gets artifacts by the fallback tag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regctl_finds_artifacts_by_fallback_tag() {
    artifacts_are_found_and_fetched(Kind::Distribution2).await;
}

/// Regctl reads tags, manifests and blobs, and copies an image with its artifacts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regctl_copies_image_with_artifacts() {
    let signed = Signed::start(Kind::Olareg).await;
    assert_eq!(signed.same(&["tag", "ls"], "org/app").await, "1");
    assert_eq!(
        signed.same(&["manifest", "head"], "org/app:1").await,
        signed.digest
    );
    let manifest = signed
        .same(&["manifest", "get", "--format", "raw-body"], "org/app:1")
        .await;
    let index: serde_json::Value = serde_json::from_str(&manifest).expect("an index");
    let platform = format!(
        "org/app@{}",
        index["manifests"][0]["digest"].as_str().expect("a digest")
    );
    let manifest = signed
        .same(&["manifest", "get", "--format", "raw-body"], &platform)
        .await;
    let image: serde_json::Value = serde_json::from_str(&manifest).expect("a manifest");
    let config = image["config"]["digest"].as_str().expect("a digest");
    let (direct, through) = (signed.upstream("org/app"), signed.mirrored("org/app"));
    assert_eq!(
        signed.regctl(&["blob", "get", &through, config]).await,
        signed.regctl(&["blob", "get", &direct, config]).await
    );
    let copied = format!("ocidir://{}:1", signed.scratch.path().join("copy").display());
    let from = signed.mirrored("org/app:1");
    signed
        .regctl(&["image", "copy", "--referrers", "--digest-tags", &from, &copied])
        .await;
    assert_eq!(signed.regctl(&["manifest", "head", &copied]).await, signed.digest);
    let listed = signed.regctl(&["artifact", "list", &copied]).await;
    assert_eq!(listed.matches("application/vnd.example.").count(), 2, "{listed}");
}
