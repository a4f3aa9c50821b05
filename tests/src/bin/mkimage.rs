//! `mkimage`: an image made of files, without a daemon.

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use testbed::image::{self, File};
use testbed::scratch::Scratch;

/// Writes an OCI archive with executable files in one layer; the first file is the entrypoint.
#[derive(Parser)]
struct Arguments {
    /// The image's name, with its tag.
    reference: String,
    /// The archive to write.
    archive: PathBuf,
    /// Each file and its path in the image.
    #[arg(required = true, value_name = "FILE=PATH", value_parser = file)]
    files: Vec<File>,
}

fn file(text: &str) -> Result<File, String> {
    let (source, path) = text.split_once('=').ok_or("FILE=PATH is expected")?;
    Ok(File {
        source: source.into(),
        path: path.to_owned(),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let scratch = Scratch::new("mkimage")?;
    let layout = image::of_files(
        &scratch.path().join("layout"),
        &arguments.reference,
        &arguments.files,
    )?;
    layout.pack(&arguments.archive)?;
    Ok(())
}
