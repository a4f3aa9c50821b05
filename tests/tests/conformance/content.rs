//! The content of the registries: every kind that the specifications know, as far as a registry accepts it.

use http::header::{CONTENT_TYPE, LOCATION};
use mirror::digest::{Algorithm, Digest};
use reqwest::Client;
use serde_json::{Value, json};

use crate::client::client;

/// The repository with most of the content.
pub(crate) const REPOSITORY: &str = "conformance/content";
/// A repository with many tags of one manifest.
pub(crate) const TAGGED: &str = "conformance/tagged";

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The artifact type of the test's signatures.
pub(crate) const SIGNATURE: &str = "application/vnd.example.signature.v1";

/// In lexical order by their bytes.
pub(crate) const TAGS: [&str; 9] = [
    "0",
    "1.0",
    "1.10",
    "1.2",
    "a",
    "b",
    "latest",
    "v1.0.0-rc.1_x",
    "z",
];

/// Names that clients rarely use and registries have to know.
const NAMES: [&str; 6] = [
    "single",
    "a/b/c/d/e/f/g/h/i/j/k/l",
    "a.b/c_d/e__f/g-h/i---j/0",
    "conformance/manifests/blobs/tags",
    "conformance/blobs/uploads",
    "conformance/tags/list",
];

/// A manifest of some kind.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) kind: &'static str,
    pub(crate) repository: String,
    pub(crate) tag: String,
    pub(crate) digest: String,
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
    taken: bool,
}

/// A blob of some kind, in [`REPOSITORY`].
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) kind: &'static str,
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
    taken: bool,
}

#[derive(Default)]
pub(crate) struct Content {
    manifests: Vec<Manifest>,
    blobs: Vec<Blob>,
    /// The manifest that others refer to.
    pub(crate) subject: String,
    /// The referrers of the subject: digest, artifact type, and a note in the annotations.
    pub(crate) referrers: Vec<(String, Option<&'static str>, &'static str)>,
    /// A digest that is nowhere, but which something refers to.
    pub(crate) absent_subject: String,
}

impl Content {
    /// Returns the manifests that the registry accepted.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.iter().filter(|manifest| manifest.taken)
    }

    /// Returns the blobs that the registry accepted.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.blobs.iter().filter(|blob| blob.taken)
    }

    /// Returns the kinds of content that the registry refused.
    pub(crate) fn refused(&self) -> Vec<&str> {
        let manifests = self.manifests.iter().filter(|one| !one.taken).map(|one| one.kind);
        let blobs = self.blobs.iter().filter(|one| !one.taken).map(|one| one.kind);
        manifests.chain(blobs).collect()
    }

    /// Fills an empty registry.
    pub(crate) async fn push(url: &str) -> Self {
        let mut push = Push {
            client: client(),
            url,
            content: Self::default(),
        };
        push.blobs().await;
        push.images().await;
        push.indexes().await;
        push.names_and_tags().await;
        push.referrers().await;
        push.content
    }
}

fn digest_of(bytes: &[u8]) -> String {
    Digest::compute(Algorithm::Sha256, bytes).to_string()
}

fn of_descriptor(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap_or_default().to_owned()
}

fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len()})
}

/// 300 kB that look random, so that nothing repeats.
fn large() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..37_500).flat_map(|_| next()).collect()
}

const SMALL: &[u8] = b"a layer that is no archive";

struct Push<'a> {
    client: Client,
    url: &'a str,
    content: Content,
}

impl Push<'_> {
    async fn blob(&mut self, kind: &'static str, digest: String, bytes: &[u8]) {
        let taken = self.upload(REPOSITORY, &digest, bytes).await.unwrap_or_default();
        self.content.blobs.push(Blob {
            kind,
            digest,
            bytes: bytes.to_vec(),
            taken,
        });
    }

    async fn upload(&self, repository: &str, digest: &str, bytes: &[u8]) -> Option<bool> {
        let start = format!("{}/v2/{repository}/blobs/uploads/", self.url);
        let answer = self.client.post(&start).send().await.ok()?;
        let location = answer.headers().get(LOCATION)?.to_str().ok()?;
        let mut to = url::Url::parse(&start).ok()?.join(location).ok()?;
        to.query_pairs_mut().append_pair("digest", digest);
        let put = self
            .client
            .put(to)
            .header(CONTENT_TYPE, "application/octet-stream");
        Some(put.body(bytes.to_vec()).send().await.ok()?.status() == 201)
    }

    /// Puts it by its tag, or by its digest where it has none.
    async fn put(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) -> bool {
        let to = format!("{}/v2/{repository}/manifests/{reference}", self.url);
        let put = self.client.put(to).header(CONTENT_TYPE, media_type);
        let answer = put.body(bytes.to_vec()).send().await;
        answer.is_ok_and(|answer| answer.status() == 201)
    }

    async fn manifest(
        &mut self,
        kind: &'static str,
        tag: &str,
        media_type: &'static str,
        body: &Value,
    ) -> Value {
        let bytes = format!("{body:#}").into_bytes();
        let mut descriptor = described(media_type, &bytes);
        let manifest = Manifest {
            kind,
            repository: REPOSITORY.to_owned(),
            tag: tag.to_owned(),
            digest: digest_of(&bytes),
            media_type,
            taken: self.put(REPOSITORY, tag, media_type, &bytes).await,
            bytes,
        };
        self.content.manifests.push(manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": tag});
        descriptor
    }

    async fn blobs(&mut self) {
        let large = large();
        let sha512 = Digest::compute(Algorithm::Sha512, b"by sha512").to_string();
        for (kind, bytes) in [
            ("a layer", SMALL),
            ("a blob of 300 kB", &large),
            ("a blob of no bytes", b""),
            ("the empty descriptor's blob", b"{}"),
            (
                "a configuration",
                br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#,
            ),
        ] {
            self.blob(kind, digest_of(bytes), bytes).await;
        }
        self.blob("a blob by its sha512", sha512, b"by sha512").await;
    }

    fn config(&self) -> Value {
        let config = self
            .content
            .blobs
            .iter()
            .find(|blob| blob.kind == "a configuration");
        described(CONFIG, &config.expect("it was pushed").bytes)
    }

    fn image(&self, layers: &Value) -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": self.config(), "layers": layers})
    }

    async fn images(&mut self) {
        let (layer, large) = (described(LAYER, SMALL), described(LAYER, &large()));
        let image = self.image(&json!([layer, large]));
        self.manifest("an image", "image", OCI_MANIFEST, &image).await;
        let mut untyped = self.image(&json!([layer]));
        untyped.as_object_mut().expect("an object").remove("mediaType");
        self.manifest("an image without mediaType", "untyped", OCI_MANIFEST, &untyped)
            .await;
        let mut docker = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": self.config(), "layers": [layer]});
        docker["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        docker["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
        self.manifest("a Docker image", "docker", DOCKER_MANIFEST, &docker)
            .await;
        let mut odd = self.image(&json!([layer]));
        odd["x-unknown"] = json!({"kept": ["as", "it", "is"]});
        odd["annotations"] = json!({"org.example.text": "\u{e9} \u{4e16} \\u0041"});
        self.manifest("an image with unknown fields", "odd", OCI_MANIFEST, &odd)
            .await;
        let mut data = self.image(&json!([layer]));
        data["layers"][0]["data"] = json!("YSBsYXllciB0aGF0IGlzIG5vIGFyY2hpdmU=");
        self.manifest(
            "an image with data in its descriptors",
            "data",
            OCI_MANIFEST,
            &data,
        )
        .await;
        let foreign = json!({
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": digest_of(b"elsewhere"), "size": 1234, "urls": ["https://store.example.com/elsewhere"],
        });
        let foreign = self.image(&json!([layer, foreign]));
        self.manifest(
            "an image with a layer that may not be distributed",
            "foreign",
            OCI_MANIFEST,
            &foreign,
        )
        .await;
        let none = self.image(&json!([]));
        self.manifest("an image without layers", "bare", OCI_MANIFEST, &none)
            .await;
        let artifact = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.thing",
            "config": described(EMPTY, b"{}"), "layers": [described(EMPTY, b"{}")],
        });
        self.manifest("an artifact", "artifact", OCI_MANIFEST, &artifact)
            .await;
        self.by_sha512(&image).await;
    }

    async fn by_sha512(&mut self, image: &Value) {
        let bytes = image.to_string().into_bytes();
        let digest = Digest::compute(Algorithm::Sha512, &bytes).to_string();
        let manifest = Manifest {
            kind: "an image by its sha512",
            repository: REPOSITORY.to_owned(),
            tag: digest.clone(),
            taken: self.put(REPOSITORY, &digest, OCI_MANIFEST, &bytes).await,
            digest,
            media_type: OCI_MANIFEST,
            bytes,
        };
        self.content.manifests.push(manifest);
    }

    async fn indexes(&mut self) {
        let index = |media_type: &str, of: &Value| json!({"schemaVersion": 2, "mediaType": media_type, "manifests": of});
        let found = |tag: &str| {
            let manifest = self.content.manifests.iter().find(|one| one.tag == tag);
            let manifest = manifest.expect("it was pushed");
            let mut descriptor = described(manifest.media_type, &manifest.bytes);
            descriptor["platform"] = json!({"os": "linux", "architecture": "amd64"});
            descriptor
        };
        let (image, docker) = (found("image"), found("docker"));
        let inner = self
            .manifest("an index", "index", OCI_INDEX, &index(OCI_INDEX, &json!([image])))
            .await;
        self.manifest(
            "an index of indexes",
            "nested",
            OCI_INDEX,
            &index(OCI_INDEX, &json!([inner, image])),
        )
        .await;
        self.manifest(
            "a Docker list",
            "list",
            DOCKER_LIST,
            &index(DOCKER_LIST, &json!([docker])),
        )
        .await;
        self.manifest(
            "an index of nothing",
            "nothing",
            OCI_INDEX,
            &index(OCI_INDEX, &json!([])),
        )
        .await;
        let absent = json!({"mediaType": OCI_MANIFEST, "digest": digest_of(b"absent"), "size": 6, "platform": {"os": "linux", "architecture": "arm64"}});
        self.manifest(
            "an index of more than is there",
            "sparse",
            OCI_INDEX,
            &index(OCI_INDEX, &json!([image, absent])),
        )
        .await;
        let mut typed = index(OCI_INDEX, &json!([image]));
        typed["artifactType"] = json!("application/vnd.example.things");
        self.manifest("an index that is an artifact", "typed", OCI_INDEX, &typed)
            .await;
    }

    async fn names_and_tags(&mut self) {
        let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let image = self.image(&json!([])).to_string().into_bytes();
        let most = "c".repeat(200);
        let longest = format!("{}.-{}", "T_".repeat(32), "x".repeat(62));
        let names = NAMES.into_iter().map(|name| ("a name", name, "1"));
        let tags =
            ["_", "UPPER.lower-0_1", "1..2--3__4", &longest].map(|tag| ("a tag", "conformance/named", tag));
        let many = TAGS.map(|tag| ("one of many tags", TAGGED, tag));
        for (kind, name, tag) in names
            .chain(tags)
            .chain(many)
            .chain([("a name", most.as_str(), "1")])
        {
            let uploaded = self
                .upload(name, &digest_of(config), config)
                .await
                .unwrap_or_default();
            let manifest = Manifest {
                kind,
                repository: name.to_owned(),
                tag: tag.to_owned(),
                digest: digest_of(&image),
                media_type: OCI_MANIFEST,
                taken: uploaded && self.put(name, tag, OCI_MANIFEST, &image).await,
                bytes: image.clone(),
            };
            self.content.manifests.push(manifest);
        }
    }

    async fn referrers(&mut self) {
        let subject = self.image(&json!([described(LAYER, SMALL)]));
        let subject = self
            .manifest("a subject", "subject", OCI_MANIFEST, &subject)
            .await;
        self.content.subject = of_descriptor(&subject);
        let refers = json!({"mediaType": OCI_MANIFEST, "digest": subject["digest"], "size": subject["size"]});
        let of_type = |artifact_type: &str, note: &str| {
            json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
                "config": described(EMPTY, b"{}"), "layers": [described(EMPTY, b"{}")],
                "subject": refers, "annotations": {"org.example.note": note},
            })
        };
        let mut by_config = of_type("", "by its configuration");
        by_config
            .as_object_mut()
            .expect("an object")
            .remove("artifactType");
        by_config["config"]["mediaType"] = json!("application/vnd.example.sbom.v1");
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [],
            "subject": refers, "annotations": {"org.example.note": "an index"},
        });
        let mut listed = Vec::new();
        for (tag, media_type, body, artifact_type, note) in [
            (
                "signature-1",
                OCI_MANIFEST,
                of_type(SIGNATURE, "first"),
                Some(SIGNATURE),
                "first",
            ),
            (
                "signature-2",
                OCI_MANIFEST,
                of_type(SIGNATURE, "second"),
                Some(SIGNATURE),
                "second",
            ),
            (
                "sbom",
                OCI_MANIFEST,
                by_config,
                Some("application/vnd.example.sbom.v1"),
                "by its configuration",
            ),
            ("index-referrer", OCI_INDEX, index, None, "an index"),
        ] {
            let mut descriptor = self.manifest("a referrer", tag, media_type, &body).await;
            let digest = of_descriptor(&descriptor);
            descriptor["annotations"] = json!({"org.example.note": note});
            descriptor.as_object_mut().expect("an object").remove("platform");
            if let Some(artifact_type) = artifact_type {
                descriptor["artifactType"] = json!(artifact_type);
            }
            listed.push(descriptor);
            self.content.referrers.push((digest, artifact_type, note));
        }
        let fallback = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed});
        let tag = self.content.subject.replace(':', "-");
        self.manifest("the referrers' tag", &tag, OCI_INDEX, &fallback)
            .await;
        let mut dangling = of_type(SIGNATURE, "of nothing");
        dangling["subject"]["digest"] = json!(digest_of(b"not there yet"));
        self.content.absent_subject = digest_of(b"not there yet");
        self.manifest(
            "a referrer of what is absent",
            "dangling",
            OCI_MANIFEST,
            &dangling,
        )
        .await;
    }
}
