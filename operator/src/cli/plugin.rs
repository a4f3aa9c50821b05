//! `kubectl rmir`, the plugin of kubectl.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::CompleteEnv;
use tokio::runtime::Runtime;

use super::{Failure, doctor, node_config};

mod actions;
mod cluster;
pub(super) mod complete;
mod image;
mod images;
mod lines;
mod logs;
mod prewarm;
mod pull;
mod purge;
mod redact;
mod report;
mod route;
mod server;
mod status;
mod terminal;

const EXAMPLES: &str = "\
Examples:
  kubectl rmir status -n mirrors
      A mirror on one screen
  kubectl rmir pull nginx:1.27 -n mirrors
      Is it working? HIT or MISS of each layer
  kubectl rmir prewarm nginx:1.27 redis:7 -n mirrors
      Fetch images before nodes pull them
  kubectl rmir doctor hub -n mirrors --wait
      Wait until a mirror works, and say what is wrong until then

Permissions: status and doctor read; pull, images, purge and prewarm also need create and get on pods/portforward.

Exit codes:
  2  invalid input: arguments, images, YAML
  3  something that is referred to is missing or malformed
  4  the environment: no cluster, no Pod, no server answers
  1  anything else";

const COMPLETION_HELP: &str = "\
Examples:
  source <(kubectl rmir completion bash)
      Complete kubectl-rmir in this shell; for every one, put it into ~/.bashrc
  kubectl rmir completion kubectl > ~/bin/kubectl_complete-rmir && chmod +x ~/bin/kubectl_complete-rmir
      Complete kubectl rmir, with kubectl's own completion: the file has to be in the PATH";

/// A script that kubectl runs for completions of `kubectl rmir`.
const KUBECTL_SCRIPT: &str = "#!/bin/sh\nexec kubectl-rmir __complete \"$@\"\n";

/// See, test and manage pull-through mirrors of container registries
#[derive(Debug, Parser)]
#[command(name = "kubectl-rmir", bin_name = "kubectl rmir", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Plugin {
    /// Colors in the output
    #[arg(long, value_enum, default_value_t, global = true, value_name = "WHEN")]
    color: terminal::Color,
    #[command(subcommand)]
    command: PluginCommand,
}

/// The shells of `completion`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CompletionShell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
    /// The script by which kubectl completes the plugin
    Kubectl,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// Show a mirror on one screen, or a line for each of several
    Status(status::StatusArgs),
    /// Check a cluster and its mirrors, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Pull an image through a mirror, and show HIT or MISS of each layer
    Pull(pull::PullArgs),
    /// List the cached images
    Images(images::ImagesArgs),
    /// Remove images from the cache, so that the next pull asks the upstream
    Purge(purge::PurgeArgs),
    /// Fetch images into the cache before nodes pull them
    Prewarm(prewarm::PrewarmArgs),
    /// Print the logs of the servers
    Logs(logs::LogsArgs),
    /// Write a bundle for an issue, without secrets
    Report(report::ReportArgs),
    /// Write files for the container runtimes of nodes
    NodeConfig(node_config::NodeConfigArgs),
    /// Print a script that completes commands, names, namespaces and contexts in a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// The shell
        shell: CompletionShell,
    },
    /// Write the man pages
    Man {
        /// The directory for the pages, such as /usr/local/share/man/man1
        #[arg(long, value_name = "DIRECTORY")]
        out: PathBuf,
    },
    #[command(name = "__complete", hide = true)]
    Complete {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// Runs the command in the arguments of this process, and prints a failure to stderr.
pub fn plugin() -> ExitCode {
    mirror::tls::provider();
    CompleteEnv::with_factory(Plugin::command)
        .bin("kubectl-rmir")
        .complete();
    let Plugin { color, command } = Plugin::parse();
    color.apply();
    super::exit_code("kubectl rmir", run(command))
}

fn run(command: PluginCommand) -> Result<(), Failure> {
    let block_on = Runtime::new()?;
    match command {
        PluginCommand::Status(args) => block_on.block_on(status::run(args)),
        PluginCommand::Doctor(args) => block_on.block_on(doctor::run(args)),
        PluginCommand::Pull(args) => block_on.block_on(pull::run(args)),
        PluginCommand::Images(args) => block_on.block_on(images::run(args)),
        PluginCommand::Purge(args) => block_on.block_on(purge::run(args)),
        PluginCommand::Prewarm(args) => block_on.block_on(prewarm::run(args)),
        PluginCommand::Logs(args) => block_on.block_on(logs::run(args)),
        PluginCommand::Report(args) => block_on.block_on(report::run(args)),
        PluginCommand::NodeConfig(args) => block_on.block_on(node_config::run(args)),
        PluginCommand::Completion { shell } => completion(shell),
        PluginCommand::Man { out } => man_pages(Plugin::command(), &out),
        PluginCommand::Complete { words } => complete::print_for_kubectl(words),
    }
}

fn completion(shell: CompletionShell) -> Result<(), Failure> {
    let name = match shell {
        CompletionShell::Bash => "bash",
        CompletionShell::Elvish => "elvish",
        CompletionShell::Fish => "fish",
        CompletionShell::Powershell => "powershell",
        CompletionShell::Zsh => "zsh",
        CompletionShell::Kubectl => return Ok(io::stdout().write_all(KUBECTL_SCRIPT.as_bytes())?),
    };
    let shells = clap_complete::env::Shells::builtins();
    let mut script = Vec::new();
    if let Some(shell) = shells.completer(name) {
        let (bin, var) = ("kubectl-rmir", "COMPLETE");
        shell.write_registration(var, bin, bin, bin, &mut script)?;
    }
    Ok(io::stdout().write_all(&script)?)
}

/// Writes the man page of a command, and of each of its subcommands.
pub(super) fn man_pages(command: clap::Command, out: &std::path::Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Environment(format!("{} not written: {error}", out.display()));
    fs::create_dir_all(out).map_err(failed)?;
    clap_mangen::generate_to(command, out).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_of_the_plugin_is_sound() {
        Plugin::command().debug_assert();
    }
}
