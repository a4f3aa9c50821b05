//! The paths of programs that are not in a Debian package.

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
        /// The requested programs.
        programs: String,
    },
    /// A program is neither in `KUBEBUILDER_ASSETS` nor in the cache.
    #[error("{0} is missing: run tests/cluster/build {0}")]
    Missing(&'static str),
}

/// The Kubernetes that control planes are of: the newest that is built here, or the oldest that is supported, which
/// `REGISTRY_MIRROR_TEST_KUBERNETES=1.33` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubernetes {
    /// All of the programs.
    Newest,
    /// The API server; controllers are of the newest, which ask it for nothing that it lacks.
    Oldest,
}

impl Kubernetes {
    /// Returns the version that the environment asks for.
    ///
    /// # Panics
    /// On any other version: a test with another version than the requested one would mislead.
    pub fn wanted() -> Self {
        match env::var("REGISTRY_MIRROR_TEST_KUBERNETES").as_deref() {
            Err(_) | Ok("" | "1.36") => Self::Newest,
            Ok("1.33") => Self::Oldest,
            Ok(other) => panic!("REGISTRY_MIRROR_TEST_KUBERNETES={other}: there are 1.33 and 1.36"),
        }
    }

    /// Returns the version without the patch.
    pub fn version(self) -> &'static str {
        match self {
            Self::Newest => "1.36",
            Self::Oldest => "1.33",
        }
    }

    /// Returns the API server's program.
    pub fn api_server(self) -> &'static str {
        match self {
            Self::Newest => "kube-apiserver",
            Self::Oldest => "kube-apiserver-1.33",
        }
    }
}

/// Returns the root of the workspace that this crate is part of.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Returns the path of a program of `tests/cluster/build`, which builds a missing program first and says so on standard
/// error: kube-apiserver, the largest, takes about four minutes on two cores.
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

/// Returns the path of an existing program: in `KUBEBUILDER_ASSETS`, else in the cache.
pub fn locate(program: &'static str) -> Result<PathBuf, Error> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    assets
        .into_iter()
        .chain(cache().map(|cache| cache.join("bin")))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .ok_or(Error::Missing(program))
}

/// Returns the cache directory, by the same rule as `tests/cluster/vars`.
fn cache() -> Option<PathBuf> {
    let path = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("REGISTRY_MIRROR_TEST_CACHE")
        .or_else(|| path("XDG_CACHE_HOME").map(|home| home.join("registry-mirror")))
        .or_else(|| path("HOME").map(|home| home.join(".cache/registry-mirror")))
}
