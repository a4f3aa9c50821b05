//! `kubectl rmir prewarm`: lets the servers of a mirror pull images before nodes do.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use mirror::{actions::PrewarmRequest, pull::PrewarmEvent};
use serde::Serialize;

use super::{
    actions::{self, ActionArgs},
    image::ImageName,
    lines::each_line,
    server::MirrorServer,
    terminal::{self, Bars, Format},
};
use crate::cli::Failure;

const EXAMPLES: &str = "\
Examples:
  kubectl rmir prewarm nginx:1.27 redis:7 -n mirrors
      Each server of the mirror pulls the images, for its own platform
  kubectl rmir prewarm nginx:1.27 --platform linux/amd64 --platform linux/arm64
      For the platforms of the nodes
  kubectl rmir prewarm nginx:1.27 --platform all
      For every platform of the image";

/// The arguments of `prewarm`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PrewarmArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// A platform of an index, or all; may be repeated [default: that of the server]
    #[arg(long = "platform", value_name = "OS/ARCHITECTURE", value_delimiter = ',')]
    platforms: Vec<String>,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    on: ActionArgs,
}

/// The result of a prewarming.
#[derive(Debug, Serialize)]
struct Prewarmed {
    image: String,
    server: String,
    manifests: u64,
    blobs: u64,
    bytes: u64,
    fetched: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prewarms each server with each image. A failure does not keep from trying the others.
///
/// # Errors
/// The name of an image, or an image that could not be prewarmed.
pub(super) async fn run(args: PrewarmArgs) -> Result<(), Failure> {
    let images: Vec<_> = args.images.iter().map(|text| text.parse::<ImageName>()).collect();
    let images: Vec<_> = images
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(Failure::invalid)?;
    let servers = args.on.servers().await?;
    let bars = Bars::new(args.output == Format::Json);
    let mut all = Vec::new();
    for image in &images {
        for server in &servers {
            all.push(prewarm(server, image, &args.platforms, &bars).await);
        }
    }
    match args.output {
        Format::Json => terminal::print_json(&serde_json::json!({ "prewarmed": all }))?,
        Format::Table => terminal::print(&to_text(&all))?,
    }
    let failed: Vec<_> = all
        .iter()
        .filter_map(|one| Some((one, one.error.as_ref()?)))
        .collect();
    match failed.first() {
        None => Ok(()),
        Some((one, error)) => Err(Failure::Other(io::Error::other(format!(
            "{} of {} not prewarmed: {}: {error}",
            failed.len(),
            all.len(),
            one.image
        )))),
    }
}

async fn prewarm(server: &MirrorServer, image: &ImageName, platforms: &[String], bars: &Bars) -> Prewarmed {
    let started = Instant::now();
    let mut progress = Progress {
        bars,
        open: HashMap::new(),
        result: Prewarmed {
            image: image.to_string(),
            server: server.name.clone(),
            manifests: 0,
            blobs: 0,
            bytes: 0,
            fetched: 0,
            seconds: 0.0,
            error: Some("the server ended the response early".to_owned()),
        },
    };
    if let Err(error) = request(server, image, platforms, &mut progress).await {
        progress.result.error = Some(error.to_string());
    }
    progress.open.into_values().for_each(|bar| bar.finish_and_clear());
    progress.result.seconds = started.elapsed().as_secs_f64();
    progress.result
}

async fn request(
    server: &MirrorServer,
    image: &ImageName,
    platforms: &[String],
    progress: &mut Progress<'_>,
) -> Result<(), Failure> {
    let request = PrewarmRequest {
        registry: image.registry.to_string(),
        repository: image.repository.to_string(),
        reference: image.reference_or_latest(),
        platforms: platforms.to_vec(),
    };
    let response = server.post("/prewarm", &request).await?;
    let response = actions::accepted(server, &format!("prewarming of {image}"), response).await?;
    each_line(&server.name, response.into_body(), |event| {
        progress.on_event(event);
        Ok(())
    })
    .await
}

/// The progress of a prewarming, with a bar for each download.
struct Progress<'a> {
    bars: &'a Bars,
    open: HashMap<String, ProgressBar>,
    result: Prewarmed,
}

impl Progress<'_> {
    fn on_event(&mut self, event: PrewarmEvent) {
        match event {
            PrewarmEvent::Manifest { .. } => {}
            PrewarmEvent::Progress { digest, bytes, size } => {
                let name = terminal::short(&digest).to_owned();
                let bar = self
                    .open
                    .entry(digest)
                    .or_insert_with(|| self.bars.add(&name, size));
                bar.set_position(bytes);
            }
            PrewarmEvent::Blob { digest, .. } => {
                if let Some(bar) = self.open.remove(&digest) {
                    bar.finish_and_clear();
                }
            }
            PrewarmEvent::Done {
                manifests,
                blobs,
                bytes,
                fetched,
            } => {
                let result = &mut self.result;
                (result.manifests, result.blobs) = (manifests, blobs);
                (result.bytes, result.fetched) = (bytes, fetched);
                result.error = None;
            }
            PrewarmEvent::Error { message } => self.result.error = Some(message),
        }
    }
}

fn to_text(all: &[Prewarmed]) -> String {
    let header = ["IMAGE", "SERVER", "BLOBS", "SIZE", "FETCHED", "TIME", "RESULT"];
    let rows = all.iter().map(|one| {
        vec![
            one.image.clone(),
            one.server.clone(),
            one.blobs.to_string(),
            terminal::size(one.bytes),
            terminal::size(one.fetched),
            terminal::seconds(Duration::from_secs_f64(one.seconds)),
            if one.error.is_none() { "cached" } else { "FAILED" }.to_owned(),
        ]
    });
    terminal::table(&header, rows)
}
