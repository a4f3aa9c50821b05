//! The command line.
//!
//! Exit codes: 2 invalid input, 3 a file that the configuration names is missing or malformed, 4 the
//! environment (port taken, directory unwritable or locked), 1 anything else.

mod error;
mod keys;
mod serve;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::Runtime;

use crate::config::{self, Config, Notice, file::File, reference};
use crate::http::connection::BLOCKING_GRACE;
use crate::server;
use error::CliError;

/// Stands for every key.
const ALL_KEYS: &str = "all";

const EXAMPLES: &str = "\
Examples:
  mirror serve config.yml
      Serve what the file says.
  REGISTRY_PROXY_REMOTEURL=https://registry-1.docker.io \\
  REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/tmp/cache mirror serve
      Mirror Docker Hub on port 5000 without a file.
  mirror check config.yml
      Say what is wrong with the file, or what it means.
  mirror check --explain proxy.ttl
      Print what a key means, its default, its variable, and how it differs from Distribution's.
  mirror completion bash > /etc/bash_completion.d/mirror

Exit codes:
  2  invalid arguments or configuration
  3  a file that the configuration names is missing or malformed
  4  the environment: port taken, directory unwritable or in use
  1  anything else";

/// A pull-through registry: it serves what it has, and fetches what it lacks.
#[derive(Debug, Parser)]
#[command(name = "mirror", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM; SIGHUP reads the configuration again
    Serve(Configuration),
    /// Check a configuration and the files it names, and print what it means with secrets masked
    Check {
        #[command(flatten)]
        configuration: Configuration,
        /// Print the reference of a key, of a section, or of a REGISTRY_* variable, and read no configuration; of all
        /// keys without one
        #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = ALL_KEYS)]
        #[arg(value_parser = keys::Name, hide_possible_values = true)]
        explain: Option<String>,
    },
    /// Print a script that completes commands in a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// The source of the configuration.
#[derive(Clone, Debug, clap::Args)]
struct Configuration {
    /// A file in the format of Distribution's config.yml; REGISTRY_* variables go over it
    #[arg(value_name = "CONFIG", env = "REGISTRY_CONFIGURATION_PATH")]
    path: Option<PathBuf>,
}

impl Configuration {
    fn load(&self) -> Result<(Config, Vec<Notice>), config::Error> {
        // Variables that are not text can't be ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        config::load(self.path.as_deref(), env::vars_os().filter_map(text))
    }

    /// Loads the configuration for a start. If this version does not know the file, loads the last good one next to it,
    /// and reports the error.
    fn load_to_start(&self) -> Result<Started, config::Error> {
        match self.load() {
            Ok((config, notices)) => Ok((config, notices, None)),
            Err(error) => match self.last_good().as_ref().map(Self::load) {
                Some(Ok((config, notices))) => Ok((config, notices, Some(error))),
                Some(Err(_)) | None => Err(error),
            },
        }
    }

    fn last_good(&self) -> Option<Self> {
        let path = self.path.as_ref()?.with_file_name(config::LAST_GOOD);
        path.is_file().then_some(Self { path: Some(path) })
    }
}

/// A configuration, what has no effect in it, and why it is not the one that was asked for.
type Started = (Config, Vec<Notice>, Option<config::Error>);

impl Cli {
    /// Parses the arguments of this process; exits with help or an error if there is no command.
    pub fn read() -> Self {
        Self::parse()
    }
}

/// Runs a command; says on stderr what went wrong.
pub fn main(cli: Cli) -> ExitCode {
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing can be reported once stderr is closed.
            let _ = writeln!(io::stderr(), "mirror: {failure}");
            failure.code()
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(configuration) => {
            server::restrict_new_files();
            let runtime = Runtime::new()?;
            let served = runtime.block_on(serve::serve(configuration));
            runtime.shutdown_timeout(BLOCKING_GRACE);
            served
        }
        Command::Check {
            explain: Some(name), ..
        } => explain(&name),
        Command::Check { configuration, .. } => check(&configuration),
        Command::Completion { shell } => completion(shell),
    }
}

fn check(configuration: &Configuration) -> Result<(), CliError> {
    let (config, notices) = configuration.load()?;
    for notice in notices.into_iter().chain(server::check(&config)?) {
        writeln!(io::stderr(), "{notice}")?;
    }
    io::stdout().write_all(File::from(&config).to_yaml().as_bytes())?;
    Ok(())
}

fn explain(name: &str) -> Result<(), CliError> {
    let entries = match name {
        ALL_KEYS => reference::all(),
        name => reference::find(name)?,
    };
    let mut stdout = io::stdout();
    for (index, entry) in entries.iter().enumerate() {
        let space = if index == 0 { "" } else { "\n" };
        write!(stdout, "{space}{entry}")?;
    }
    Ok(())
}

fn completion(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mirror", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
