//! The checks: storage, files, URLs, ports.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::config::Health;
use crate::config::health::{CheckSchedule, HttpCheck, TcpCheck};
use crate::tls::{self, TrustedCertificates, describe};

/// A check.
pub(super) enum Check {
    Storage(PathBuf),
    File(PathBuf),
    Http(HttpCheck),
    Tcp(TcpCheck),
}

/// Returns all configured checks with their names.
pub(super) fn all(settings: &Health, root: &Path) -> Vec<(String, Check, CheckSchedule)> {
    let storage = settings.storage.iter().map(|schedule| {
        let check = Check::Storage(root.to_owned());
        ("storage".to_owned(), check, *schedule)
    });
    let files = settings.files.iter().map(|check| {
        let name = format!("file {}", check.path.display());
        (name, Check::File(check.path.clone()), check.schedule)
    });
    let http = settings.http.iter().map(|check| {
        let name = format!("http {}", check.shown());
        (name, Check::Http(check.clone()), check.schedule)
    });
    let tcp = settings.tcp.iter().map(|check| {
        let name = format!("tcp {}", check.addr);
        (name, Check::Tcp(check.clone()), check.schedule)
    });
    storage.chain(files).chain(http).chain(tcp).collect()
}

impl Check {
    /// Runs the check once.
    ///
    /// # Errors
    /// The problem.
    pub(super) async fn run(&self) -> Result<(), String> {
        match self {
            Self::Storage(root) => {
                blocking(root, |root| match fs::read_dir(root) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("the storage root cannot be read: {error}")),
                })
                .await
            }
            Self::File(path) => {
                blocking(path, |path| match fs::symlink_metadata(path) {
                    Ok(_) => Err("the file is there".to_owned()),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error.to_string()),
                })
                .await
            }
            Self::Http(check) => page(check).await,
            Self::Tcp(check) => within(check.timeout, TcpStream::connect(&check.addr))
                .await?
                .map(drop)
                .map_err(|error| error.to_string()),
        }
    }
}

async fn blocking(path: &Path, look: fn(&Path) -> Result<(), String>) -> Result<(), String> {
    let path = path.to_owned();
    let looked = tokio::task::spawn_blocking(move || look(&path)).await;
    looked.map_err(|error| error.to_string())?
}

/// Requests a page on a new connection, since connecting is part of the check.
async fn page(check: &HttpCheck) -> Result<(), String> {
    let tls = tls::client_config(TrustedCertificates::system(), true).map_err(|error| error.to_string())?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(describe)?;
    let request = client.head(check.uri.clone()).headers(check.headers.clone());
    let answer = within(check.timeout, request.send()).await?.map_err(describe)?;
    match answer.status() {
        status if status == check.status => Ok(()),
        status => Err(format!("answered {status} in place of {}", check.status)),
    }
}

async fn within<T>(timeout: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    let done = tokio::time::timeout(timeout, work).await;
    done.map_err(|_| format!("no answer within {} ms", timeout.as_millis()))
}
