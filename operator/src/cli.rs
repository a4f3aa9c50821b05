//! The command line.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::{Builder, Runtime};

mod agent;
mod connection;
mod doctor;
mod documents;
mod failure;
mod kubelet;
mod local;
mod log;
mod mistake;
mod node_config;
mod operator;
mod placeholders;
mod plugin;
mod policy;
mod print;
mod render;

use failure::Failure;
pub use plugin::{Plugin, plugin};

const EXAMPLES: &str = "\
Examples:
  registry-mirror local -f examples/docker-hub.yaml
      Serve a mirror on this machine, without a cluster
  registry-mirror render -f mirror.yaml -f secret.yaml
      Show every object that the operator would apply
  registry-mirror crd | kubectl apply --server-side -f -
      Teach a cluster the kind
  registry-mirror doctor -A
      Check a cluster and every mirror in it, and say what to do
  registry-mirror operator --server-image registry.example.com/registry-mirror:1.0
      Look after the mirrors of the cluster that the kubeconfig names

Exit codes:
  2  invalid input: arguments, YAML, spec, configuration
  3  something that is referred to is missing or malformed
  4  the environment: a port is taken, a directory can't be written, no cluster answers
  1  anything else";

const CRD_EXAMPLES: &str = "\
Examples:
  registry-mirror crd | kubectl apply --server-side -f -
      Teach a cluster the kind, or what a new version adds to it
  registry-mirror crd -o json
      For a machine";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(registry-mirror completion bash)
      In this shell; for every one, put it into ~/.bashrc
  registry-mirror completion fish > ~/.config/fish/completions/registry-mirror.fish
      In every fish";

/// Pull-through mirrors of container registries, on a Kubernetes cluster or on this machine.
#[derive(Debug, Parser)]
#[command(name = "registry-mirror", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
enum Command {
    /// Look after the mirrors of a cluster, until SIGTERM
    Operator(Box<operator::OperatorArgs>),
    /// Serve a mirror on this machine, without a cluster, until SIGTERM
    Local(local::LocalArgs),
    /// Print every object that the operator would apply for a mirror
    Render(render::RenderArgs),
    /// Write files for the container runtimes of nodes
    NodeConfig(node_config::NodeConfigArgs),
    /// Configure the container runtime of this node for mirrors, until SIGTERM
    Agent(agent::AgentArgs),
    /// Check a cluster and its mirrors, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Print the CustomResourceDefinition of RegistryMirror
    #[command(after_help = CRD_EXAMPLES)]
    Crd {
        /// The format of the output
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: print::OutputFormat,
    },
    /// Write the man pages
    Man {
        /// The directory for the pages, such as /usr/local/share/man/man1
        #[arg(long, value_name = "DIRECTORY")]
        out: PathBuf,
    },
    /// Print a script that completes commands in a shell
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command in the arguments of this process, and prints a failure to stderr.
pub fn main() -> ExitCode {
    exit_code("registry-mirror", run(Cli::parse().command))
}

/// Returns the exit code of a command of a program, and prints its failure to stderr.
fn exit_code(program: &str, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has closed the pipe, as `head` does.
        Err(Failure::Other(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing can be reported if stderr is closed.
            let _ = writeln!(io::stderr(), "{program}: {failure}");
            failure.code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    mirror::tls::provider();
    match command {
        Command::Operator(args) => Runtime::new()?.block_on(operator::run(*args)),
        Command::Local(args) => {
            mirror::server::restrict_new_files();
            let runtime = Runtime::new()?;
            let served = runtime.block_on(local::run(args));
            runtime.shutdown_timeout(mirror::http::connection::BLOCKING_GRACE);
            served
        }
        Command::Render(args) => Runtime::new()?.block_on(render::run(args)),
        Command::NodeConfig(args) => Runtime::new()?.block_on(node_config::run(args)),
        // One thread: the agent waits most of the time.
        Command::Agent(args) => Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(agent::run(args)),
        Command::Doctor(args) => Runtime::new()?.block_on(doctor::run(args)),
        Command::Crd { output } => {
            let definition = serde_json::to_value(crds::crd()).map_err(io::Error::other)?;
            print::objects(&[definition], output)
        }
        Command::Man { out } => plugin::man_pages(Cli::command(), &out),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "registry-mirror", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
