//! Where the programs are that no package brings.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use tokio::process::Command;

/// The programs could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The build script did not start.
    #[error("can't run {}: {source}", .script.display())]
    Start {
        /// `tests/cluster/build`.
        script: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The build script failed; it has said why on standard error.
    #[error("{} could not make {programs}: see its message above", .script.display())]
    Build {
        /// `tests/cluster/build`.
        script: PathBuf,
        /// What it was asked for.
        programs: String,
    },
    /// A program is neither in `KUBEBUILDER_ASSETS` nor in the cache.
    #[error("{0} is missing: run tests/cluster/build {0}")]
    Missing(&'static str),
}

/// The root of the workspace that this crate is part of.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The path of a program that `tests/cluster/build` knows, which makes it first where it is missing and says so on
/// standard error: kube-apiserver, the largest, takes about four minutes on two cores.
pub async fn get(program: &'static str) -> Result<PathBuf, Error> {
    build(&[program]).await?;
    locate(program)
}

/// Makes several programs where they are missing.
pub async fn build(programs: &[&'static str]) -> Result<(), Error> {
    let script = workspace().join("tests/cluster/build");
    match Command::new(&script).args(programs).status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Error::Build {
            script,
            programs: programs.join(", "),
        }),
        Err(source) => Err(Error::Start { script, source }),
    }
}

/// The path of a program that is there: in `KUBEBUILDER_ASSETS`, else in the cache.
pub fn locate(program: &'static str) -> Result<PathBuf, Error> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    assets
        .into_iter()
        .chain(cache().map(|cache| cache.join("bin")))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .ok_or(Error::Missing(program))
}

/// The cache directory, by the same rule as `tests/cluster/vars`.
fn cache() -> Option<PathBuf> {
    let path = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("REGISTRY_MIRROR_TEST_CACHE")
        .or_else(|| path("XDG_CACHE_HOME").map(|home| home.join("registry-mirror")))
        .or_else(|| path("HOME").map(|home| home.join(".cache/registry-mirror")))
}
