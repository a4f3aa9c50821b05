//! `kubectl rmir images`: the images in the caches of a mirror.

use std::cmp::Reverse;

use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;
use mirror::actions::ImageLine;
use serde::Serialize;

use super::{
    actions::{self, ActionArgs},
    lines::each_line,
    terminal::{self, Format},
};
use crate::cli::Failure;

const EXAMPLES: &str = "\
Examples:
  kubectl rmir images -n mirrors
      The images in the cache of the namespace's mirror
  kubectl rmir images nginx --sort size
      Those whose repository contains nginx, the largest first
  kubectl rmir images -o json
      For a machine";

/// The order of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// By name
    #[default]
    Name,
    /// The largest first
    Size,
    /// The most recently used first
    LastUsed,
}

/// The arguments of `images`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImagesArgs {
    /// A part of the repository's name [default: all images]
    text: Option<String>,
    /// The order
    #[arg(long, value_enum, default_value_t, value_name = "ORDER")]
    sort: Sort,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    on: ActionArgs,
}

/// An image in the cache of a server.
#[derive(Debug, Serialize)]
struct CachedImage {
    server: String,
    #[serde(flatten)]
    image: ImageLine,
}

/// Prints the cached images.
///
/// # Errors
/// A server does not answer.
pub(super) async fn run(args: ImagesArgs) -> Result<(), Failure> {
    let servers = args.on.servers().await?;
    let query = percent_encode(args.text.as_deref().unwrap_or_default());
    let mut images = Vec::new();
    for server in &servers {
        let response = server.get(&format!("/images?q={query}"), None).await?;
        let response = actions::accepted(server, "images", response).await?;
        each_line(&server.name, response.into_body(), |image: ImageLine| {
            images.push(CachedImage {
                server: server.name.clone(),
                image,
            });
            Ok(())
        })
        .await?;
    }
    match args.sort {
        Sort::Name => images.sort_by_cached_key(|image| (name(&image.image), image.server.clone())),
        Sort::Size => images.sort_by_key(|image| Reverse(image.image.bytes)),
        Sort::LastUsed => images.sort_by_key(|image| Reverse(image.image.last_used)),
    }
    match args.output {
        Format::Json => terminal::print_json(&serde_json::json!({ "images": images })),
        Format::Table if images.is_empty() => terminal::print_note("no images are cached"),
        Format::Table => terminal::print(&to_text(&images, servers.len() > 1)),
    }
}

fn name(image: &ImageLine) -> String {
    match &image.tag {
        Some(tag) => format!("{}:{tag}", image.repository),
        None => format!("{}@{}", image.repository, terminal::short(&image.digest)),
    }
}

fn to_text(images: &[CachedImage], has_servers: bool) -> String {
    let mut header = vec!["IMAGE", "DIGEST", "SIZE", "LAST USED"];
    if has_servers {
        header.push("SERVER");
    }
    let rows = images.iter().map(|CachedImage { server, image }| {
        let used = Timestamp::from_second(image.last_used).map(|used| used.to_string());
        let mut row = vec![
            name(image),
            terminal::short(&image.digest).to_owned(),
            terminal::size(image.bytes),
            used.unwrap_or_default(),
        ];
        if has_servers {
            row.push(server.clone());
        }
        row
    });
    terminal::table(&header, rows)
}

fn percent_encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
