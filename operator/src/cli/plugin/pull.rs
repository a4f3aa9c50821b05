//! `kubectl rmir pull`: pulls an image through a mirror, and shows what came from the cache.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use indicatif::ProgressBar;
use kube::ResourceExt;
use mirror::{
    digest::{Algorithm, Digest, Hasher},
    file_read::{self, MAX_FILE},
    manifest::{self, Descriptor, Document, ImagePlatform},
};
use serde::Serialize;

use super::{
    cluster::MirrorArgs,
    image::ImageName,
    server::{self, Body, Login, MirrorServer},
    terminal::{self, Bars, Format},
};
use crate::cli::Failure;

const EXAMPLES: &str = "\
Examples:
  kubectl rmir pull nginx:1.27 -n mirrors
      Pull through the mirror of the namespace, by a port-forward, and show HIT or MISS of each layer
  kubectl rmir pull quay.io/prometheus/prometheus:v3.0.0 --mirror hub --platform linux/arm64
      Through one of several mirrors, the image of another platform
  kubectl rmir pull nginx:1.27 --endpoint http://127.0.0.1:5000
      Through the server at this address, such as that of registry-mirror local

The layers are checked against their digests and discarded.

Exit codes:
  3  the registry has no such image, or refuses it
  4  no cluster, no Pod, no server answers
  1  a digest is wrong
  0  every part arrived";

/// The media types of manifests.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// The arguments of `pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct PullArgs {
    /// The image, such as nginx:1.27 or quay.io/prometheus/prometheus:v3.0.0
    image: String,
    /// The address of a mirror, such as http://127.0.0.1:5000 [default: a port-forward to a Pod]
    #[arg(long, value_name = "URL", conflicts_with_all = ["mirror", "pod"])]
    endpoint: Option<String>,
    /// The CA certificates, in PEM, of an https endpoint
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    ca_file: Option<PathBuf>,
    /// The platform of an index [default: linux and the architecture of this machine]
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<ImagePlatform>,
    /// The user, if the mirror has users
    #[arg(long, value_name = "USER", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password of the user from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    mirror: MirrorArgs,
}

/// A part of an image that arrived.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PulledPart {
    part: &'static str,
    digest: String,
    cache: String,
    bytes: u64,
    seconds: f64,
    digest_ok: bool,
}

/// The result of a pull.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PullReport {
    image: String,
    server: String,
    bytes: u64,
    seconds: f64,
    parts: Vec<PulledPart>,
}

/// A pull under way.
struct Puller {
    server: MirrorServer,
    image: ImageName,
    bars: Bars,
    parts: Vec<PulledPart>,
}

/// Pulls an image and prints its parts.
///
/// # Errors
/// A part did not arrive, or has another digest.
pub(super) async fn run(args: PullArgs) -> Result<(), Failure> {
    let image: ImageName = args.image.parse().map_err(Failure::invalid)?;
    if image.reference.is_none() {
        terminal::print_note(&format!(
            "image {} has no tag: latest is pulled; name another as {image}:TAG",
            args.image
        ))?;
    }
    let server = server(&args).await?;
    let platform = args
        .platform
        .clone()
        .unwrap_or_else(ImagePlatform::of_this_machine);
    let started = Instant::now();
    let mut puller = Puller {
        server,
        image,
        bars: Bars::new(args.output == Format::Json),
        parts: Vec::new(),
    };
    let result = puller.pull(&platform).await;
    let report = PullReport {
        image: puller.image.to_string(),
        server: puller.server.name,
        bytes: puller.parts.iter().map(|part| part.bytes).sum(),
        seconds: started.elapsed().as_secs_f64(),
        parts: puller.parts,
    };
    match args.output {
        Format::Json => terminal::print_json(&report)?,
        // Nothing arrived: the error is all that there is to print.
        Format::Table if report.parts.is_empty() => {}
        Format::Table => terminal::print(&report.to_text())?,
    }
    result?;
    report.wrong_digests()
}

/// Returns the server that the arguments select.
async fn server(args: &PullArgs) -> Result<MirrorServer, Failure> {
    let login = match &args.username {
        Some(username) => Some(Login {
            username: username.clone(),
            password: password()?,
        }),
        None => None,
    };
    let server = if let Some(url) = &args.endpoint {
        let read = |path| file_read::read(path, MAX_FILE);
        let ca = args.ca_file.as_deref().map(read).transpose();
        let ca = ca.map_err(|error| Failure::Invalid(format!("--ca-file: not readable: {error}")))?;
        MirrorServer::at(url, ca.as_deref())?
    } else {
        let cluster = args.mirror.cluster.connect().await?;
        let mirror = cluster.mirror(args.mirror.mirror.as_deref()).await?;
        let pods = cluster
            .running(&mirror.name_any(), args.mirror.pod.as_deref())
            .await?;
        cluster.registry(&mirror, &pods[0]).await?
    };
    Ok(server.with_login(login.as_ref()))
}

fn password() -> Result<String, Failure> {
    let mut password = String::new();
    io::stdin().lock().take(4096).read_to_string(&mut password)?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

impl Puller {
    async fn pull(&mut self, platform: &ImagePlatform) -> Result<(), Failure> {
        let reference = self.image.reference_or_latest();
        let mut bytes = self.manifest(&reference).await?;
        let entries = manifest::platforms(&bytes);
        if !entries.is_empty() {
            let fits = |found: &&manifest::PlatformManifest| {
                found
                    .platform
                    .as_ref()
                    .is_some_and(|found| platform.accepts(found))
            };
            let Some(entry) = entries.iter().find(fits) else {
                let found = entries.iter().filter_map(|entry| entry.platform.as_ref());
                let found = found.filter(|found| !found.is_unknown()).map(ToString::to_string);
                let found: Vec<_> = found.collect();
                return Err(Failure::Reference(format!(
                    "image {} has no variant for {platform}: choose one with --platform: {}",
                    self.image,
                    found.join(", ")
                )));
            };
            bytes = self.manifest(entry.digest.as_str()).await?;
        }
        let document = Document::read(&bytes).unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (number, blob) in document.blobs().iter().enumerate() {
            if seen.insert(&blob.digest) && !blob.elsewhere {
                self.blob(if number == 0 { "config" } else { "layer" }, blob)
                    .await?;
            }
        }
        Ok(())
    }

    fn path(&self, kind: &str, reference: &str) -> String {
        let ImageName {
            registry, repository, ..
        } = &self.image;
        format!("/v2/{repository}/{kind}/{reference}?ns={registry}")
    }

    async fn request(&self, what: &str, path: &str, accept: Option<&str>) -> Result<Response<Body>, Failure> {
        let response = self.server.get(path, accept).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status if status.is_redirection() => Err(Failure::Environment(format!(
                "{}: {what} is elsewhere ({status}): this is no mirror",
                self.server.name
            ))),
            _ => Err(server::reported(
                &self.server.name,
                &format!("{what} of image {}", self.image),
                response,
            )
            .await),
        }
    }

    async fn manifest(&mut self, reference: &str) -> Result<Bytes, Failure> {
        let started = Instant::now();
        let path = self.path("manifests", reference);
        let response = self
            .request(&format!("manifest {reference}"), &path, Some(ACCEPT))
            .await?;
        let (cache, named) = (
            cache_status(&response),
            header(&response, "docker-content-digest"),
        );
        let bytes = server::whole(&self.server.name, response).await?;
        let wanted = reference
            .parse::<Digest>()
            .ok()
            .or_else(|| named.and_then(|named| named.parse().ok()));
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::compute(algorithm, &bytes);
        let part = PulledPart {
            part: if manifest::platforms(&bytes).is_empty() {
                "manifest"
            } else {
                "index"
            },
            digest_ok: wanted.is_none_or(|wanted| wanted == digest),
            digest: digest.to_string(),
            cache,
            bytes: bytes.len() as u64,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.parts.push(part);
        Ok(bytes)
    }

    async fn blob(&mut self, part: &'static str, blob: &Descriptor) -> Result<(), Failure> {
        let started = Instant::now();
        let (digest, path) = (&blob.digest, self.path("blobs", blob.digest.as_str()));
        let response = self.request(&format!("{part} {digest}"), &path, None).await?;
        let cache = cache_status(&response);
        let bar = self.bars.add(terminal::short(digest.as_str()), blob.size);
        let (found, bytes) = self.receive(digest, response.into_body(), &bar).await?;
        bar.finish_and_clear();
        self.parts.push(PulledPart {
            part,
            digest_ok: found == *digest,
            digest: digest.to_string(),
            cache,
            bytes,
            seconds: started.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    /// Reads a body to its end. Returns its digest and length.
    async fn receive(
        &self,
        digest: &Digest,
        mut body: Body,
        bar: &ProgressBar,
    ) -> Result<(Digest, u64), Failure> {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let server = &self.server.name;
                Failure::Environment(format!("{server}: {digest} is cut after {bytes} bytes: {error}"))
            })?;
            if let Some(data) = frame.data_ref() {
                hasher.update(data);
                bytes += data.len() as u64;
                bar.set_position(bytes);
            }
        }
        Ok((hasher.finish(), bytes))
    }
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    value.to_str().ok().map(str::to_owned)
}

/// Returns `HIT`, `MISS`, `STALE` or `COALESCED`; `-` from a server that does not say it.
fn cache_status(response: &Response<Body>) -> String {
    header(response, "x-cache").unwrap_or_else(|| "-".to_owned())
}

impl PullReport {
    fn to_text(&self) -> String {
        let rows = self.parts.iter().map(|part| {
            vec![
                part.part.to_owned(),
                terminal::short(&part.digest).to_owned(),
                part.cache.clone(),
                terminal::size(part.bytes),
                terminal::seconds(Duration::from_secs_f64(part.seconds)),
                if part.digest_ok { "ok" } else { "FAILED" }.to_owned(),
            ]
        });
        let table = terminal::table(&["PART", "DIGEST", "CACHE", "SIZE", "TIME", "CHECK"], rows);
        let count = |status: &str| self.parts.iter().filter(|part| part.cache == status).count();
        format!(
            "{table}\n{} through {}: {} in {}, {} HIT, {} MISS of {} parts\n",
            self.image,
            self.server,
            terminal::size(self.bytes),
            terminal::seconds(Duration::from_secs_f64(self.seconds)),
            count("HIT"),
            count("MISS"),
            self.parts.len(),
        )
    }

    fn wrong_digests(&self) -> Result<(), Failure> {
        let wrong: Vec<_> = self.parts.iter().filter(|part| !part.digest_ok).collect();
        match wrong.first() {
            None => Ok(()),
            Some(part) => Err(Failure::Other(io::Error::other(format!(
                "{} of image {} has the digest {}: the server sent wrong bytes",
                part.part, self.image, part.digest
            )))),
        }
    }
}
