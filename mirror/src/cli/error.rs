//! Errors that end a command, with their exit codes.

use std::io;
use std::process::ExitCode;

use crate::{config, server};

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The key that is to be explained.
    #[error(transparent)]
    Key(#[from] config::reference::KeyError),
    /// A file that the configuration names, or the environment.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl CliError {
    /// Returns the exit code, which all commands share.
    pub(super) fn code(&self) -> ExitCode {
        const INVALID: u8 = 2;
        const REFERENCE: u8 = 3;
        const ENVIRONMENT: u8 = 4;
        ExitCode::from(match self {
            Self::Config(config::Error::Unreadable { .. }) => REFERENCE,
            Self::Config(_) | Self::Key(_) => INVALID,
            Self::Server(error) if error.is_reference() => REFERENCE,
            Self::Server(error) if error.is_environment() => ENVIRONMENT,
            Self::Server(_) | Self::Io(_) => 1,
        })
    }
}
