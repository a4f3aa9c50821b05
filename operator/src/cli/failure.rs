//! The failures of commands and their exit codes.

use std::{io, process::ExitCode};

use crds::conditions::Reason;

use crate::{certificates::CertificateError, validate::Rejection};

/// The failure of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Invalid arguments, YAML, spec or configuration.
    #[error("{0}")]
    Invalid(String),
    /// A missing or malformed object that a spec names.
    #[error("{0}")]
    Reference(String),
    /// A fault of the environment: a port, a directory, a cluster.
    #[error("{0}")]
    Environment(String),
    /// Another failure.
    #[error(transparent)]
    Other(#[from] io::Error),
}

impl Failure {
    /// Returns the exit code, which all commands share.
    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(self.number())
    }

    /// Returns the exit code as a number.
    pub(super) fn number(&self) -> u8 {
        match self {
            Self::Invalid(_) => 2,
            Self::Reference(_) => 3,
            Self::Environment(_) => 4,
            Self::Other(_) => 1,
        }
    }
}

impl Failure {
    /// Returns the failure of an argument.
    pub(super) fn invalid(error: impl std::fmt::Display) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        match rejection.reason {
            Reason::ReferenceNotFound
            | Reason::ReferenceMalformed
            | Reason::SecretNotFound
            | Reason::Malformed => Self::Reference(rejection.message),
            _ => Self::Invalid(rejection.message),
        }
    }
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        Self::Other(io::Error::other(error))
    }
}

impl From<mirror::server::Error> for Failure {
    fn from(error: mirror::server::Error) -> Self {
        let message = error.to_string();
        if error.is_reference() {
            Self::Reference(message)
        } else if error.is_environment() {
            Self::Environment(message)
        } else {
            Self::Other(io::Error::other(error))
        }
    }
}
