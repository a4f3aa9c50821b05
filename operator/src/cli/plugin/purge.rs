//! `kubectl rmir purge`: removes images from the caches of a mirror.

use mirror::actions::{PurgeRequest, PurgeResponse};
use serde::Serialize;

use super::{
    actions::{self, ActionArgs},
    image::ImageName,
    server::{self, MirrorServer},
    terminal::{self, Format},
};
use crate::cli::Failure;

const EXAMPLES: &str = "\
Examples:
  kubectl rmir purge nginx:1.27 -n mirrors
      Remove a tag, and its layers if no other image of the repository has them
  kubectl rmir purge nginx@sha256:...
      Remove a manifest, and the tags that point to it
  kubectl rmir purge --repository quay.io/prometheus/prometheus
      Remove everything of a repository

The next pull asks the upstream. Running containers are not affected: nodes have copies of their own.";

/// The arguments of `purge`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PurgeArgs {
    /// The images, with a tag or a digest
    #[arg(required_unless_present = "repositories", value_name = "IMAGE")]
    images: Vec<String>,
    /// A repository, all of which is removed; may be repeated
    #[arg(long = "repository", value_name = "REPOSITORY")]
    repositories: Vec<String>,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    on: ActionArgs,
}

/// A purge on a server.
#[derive(Debug, Serialize)]
struct Purged {
    server: String,
    image: String,
    #[serde(flatten)]
    removed: PurgeResponse,
}

/// Removes the images from each server, and prints the number of removed parts.
///
/// # Errors
/// The name of an image, or a server that does not answer.
pub(super) async fn run(args: PurgeArgs) -> Result<(), Failure> {
    let mut requests = Vec::new();
    for text in &args.images {
        let image: ImageName = text.parse().map_err(Failure::invalid)?;
        if image.reference.is_none() {
            return Err(Failure::Invalid(format!(
                "image {text:?} has no tag: purge {text}:TAG, or all of the repository with --repository {text}"
            )));
        }
        requests.push(image);
    }
    for text in &args.repositories {
        let image: ImageName = text.parse().map_err(Failure::invalid)?;
        if image.reference.is_some() {
            return Err(Failure::Invalid(format!(
                "--repository {text:?} has a tag or digest: leave it out, or purge {text} without --repository"
            )));
        }
        requests.push(image);
    }
    let mut all = Vec::new();
    for server in &args.on.servers().await? {
        for image in &requests {
            all.push(purge(server, image).await?);
        }
    }
    match args.output {
        Format::Json => terminal::print_json(&serde_json::json!({ "purged": all })),
        Format::Table => terminal::print(&to_text(&all)),
    }
}

async fn purge(server: &MirrorServer, image: &ImageName) -> Result<Purged, Failure> {
    let request = PurgeRequest {
        registry: image.registry.to_string(),
        repository: image.repository.to_string(),
        reference: image.reference.as_ref().map(ToString::to_string),
    };
    let response = server.post("/purge", &request).await?;
    let response = actions::accepted(server, &format!("purge of {image}"), response).await?;
    Ok(Purged {
        server: server.name.clone(),
        image: image.to_string(),
        removed: server::json(&server.name, response).await?,
    })
}

fn to_text(all: &[Purged]) -> String {
    let header = ["IMAGE", "SERVER", "TAGS", "MANIFESTS", "BLOBS", "FREED"];
    let rows = all.iter().map(|purged| {
        let removed = &purged.removed;
        vec![
            purged.image.clone(),
            purged.server.clone(),
            removed.tags.to_string(),
            removed.manifests.to_string(),
            removed.blobs.to_string(),
            terminal::size(removed.bytes),
        ]
    });
    terminal::table(&header, rows)
}
