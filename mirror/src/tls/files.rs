//! The PEM files of certificates, keys and CAs that a configuration names.

use std::path::{Path, PathBuf};

use rustls::sign::CertifiedKey;

use super::{TrustedCertificates, pem};
use crate::file_read::{self, MAX_FILE};

/// An error of the certificate files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable, or no PEM.
    #[error("{}: {reason}; {section} wants PEM files", path.display())]
    File {
        /// The section of the configuration that names the file.
        section: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// The certificate and the key do not fit together.
    #[error("{section}.certificate {} and its key can't be served: {reason}", path.display())]
    Unfit {
        /// The section of the configuration that names the file.
        section: &'static str,
        /// The certificate.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
}

/// Reads a certificate chain and its key.
pub(crate) fn key_pair(
    section: &'static str,
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, TlsError> {
    let chain = load(section, certificate, pem::certificates)?;
    let key = load(section, key, pem::private_key)?;
    pem::pair(chain, key).map_err(|reason| TlsError::Unfit {
        section,
        path: certificate.to_owned(),
        reason,
    })
}

/// Reads the certificates of CAs.
pub(crate) fn authorities(section: &'static str, paths: &[PathBuf]) -> Result<TrustedCertificates, TlsError> {
    let mut trusted = TrustedCertificates::empty();
    for path in paths {
        load(section, path, |pem| trusted.add_pem(pem))?;
    }
    Ok(trusted)
}

/// Reads a PEM file. The reasons of the parser contain no byte of it, because it may be a private key.
fn load<T>(
    section: &'static str,
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, TlsError> {
    let pem = file_read::read(path, MAX_FILE).map_err(|error| error.to_string());
    pem.and_then(|pem| parse(&pem)).map_err(|reason| TlsError::File {
        section,
        path: path.to_owned(),
        reason,
    })
}
