//! `demo`: the main job, shown. A registry that asks for a token, an image for two platforms in it, a mirror made from
//! a `RegistryMirror`, and a client that is not ours.

mod cluster;
mod commands;
mod example;
mod local;
mod outcomes;
mod pulls;
mod registry;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Pulls an image through a mirror: cold, warm, and with its registry gone.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    way: Way,
    /// The spec to run, with its Secret.
    #[arg(long, default_value = "examples/demo.yaml", global = true)]
    example: PathBuf,
    /// The directory of the programs `registry-mirror` and `mirror` [default: this program's own].
    #[arg(long, global = true)]
    programs: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Way {
    /// Without a cluster, by `registry-mirror local`.
    Local,
    /// On a real node, which needs root.
    Node {
        /// The operator's and the mirrors' image, as an OCI archive.
        #[arg(long, value_name = "ARCHIVE")]
        image: PathBuf,
    },
    /// The part of the demo that runs inside the real node.
    #[command(hide = true)]
    OnNode,
    /// On a real control plane whose Pods run as processes of this machine.
    FakeNode,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the chosen demo, and returns true if each step had the expected result.
async fn run(arguments: Arguments) -> Result<bool, Box<dyn Error>> {
    testbed::install_crypto_provider();
    let example = example::Example::read(&arguments.example)?;
    let programs = match arguments.programs {
        Some(directory) => directory,
        None => own_directory()?,
    };
    match arguments.way {
        Way::Local => local::run(&example, &programs).await,
        Way::Node { image } => cluster::on_a_new_node(&arguments.example, &image).await,
        Way::FakeNode => cluster::on_a_fake_node(&example, &programs).await,
        Way::OnNode => cluster::on_node(&example).await,
    }
}

fn own_directory() -> Result<PathBuf, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let directory = program.parent().ok_or("this program has no directory")?;
    Ok(directory.to_owned())
}

/// Says what is being done.
fn say(what: &str) {
    println!("-- {what}");
}
