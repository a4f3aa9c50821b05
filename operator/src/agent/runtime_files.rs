//! The files by which a runtime pulls through mirrors, in the form of that runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{detect::RuntimeKind, drop_in_directory::DropInDirectory, hosts_directory::HostsDirectory};
use crate::node_config::{InvalidEntry, Marker, NodeFile, NodeRoot};

/// The mark of a directory that the agent created, and removes again.
pub(super) const CREATED: &str = ".registry-mirror";
/// The name of a directory while the agent creates or removes it. Runtimes read no such name.
const UNFINISHED: &str = ".registry-mirror.dir";

/// The files of a mirror, for each runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostFiles {
    /// The mirror, as `NAMESPACE/NAME`.
    pub(super) mirror: String,
    /// The address of the mirror, as `HOST:PORT`.
    pub(super) authority: String,
    /// The file for containerd, the same for each registry host.
    pub(super) hosts_toml: String,
    /// The file for CRI-O of each registry host.
    pub(super) registries_conf: BTreeMap<String, String>,
    /// The CA certificates, in PEM.
    pub(super) certificates: Option<String>,
}

/// A reason for which a file was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The file of another program is in the way.
    #[error("{0}: remove it, or take the registry out of the mirror's upstreams")]
    Conflict(String),
    /// The directory can't be changed.
    #[error(
        "can't write {0}: {1}; mount the directory writable; on Talos, Bottlerocket and other systems with a read-only \
         root, use registry-mirror node-config --runtime"
    )]
    ReadOnly(String, #[source] io::Error),
    /// CRI-O can't use the mirror for these registries.
    #[error(
        "CRI-O can't use the mirror for {hosts}: an image name has no IPv6 address, and its path no port; make it the \
         first upstream of a mirror with an IPv4 address or a name{others}"
    )]
    Unsupported { hosts: String, others: String },
}

impl WriteError {
    /// Returns the error of a file or directory at a path below the root directory.
    pub(super) fn new(path: &str, error: io::Error) -> Self {
        if InvalidEntry::is_in(&error) {
            return Self::Conflict(error.to_string());
        }
        Self::ReadOnly(format!("/{path}"), error)
    }

    /// Returns the error of a registry for which CRI-O can't use the mirror.
    pub(super) fn unsupported(host: &str) -> Self {
        Self::Unsupported {
            hosts: host.to_owned(),
            others: String::new(),
        }
    }

    /// Returns the error of two registries of a mirror. An error of files precedes one of the runtime.
    pub(super) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unsupported { hosts, others }, Self::Unsupported { hosts: more, .. }) => {
                let hosts = format!("{hosts}, {more}");
                Self::Unsupported { hosts, others }
            }
            (Self::Unsupported { .. }, other) => other,
            (error, _) => error,
        }
    }

    /// Adds the registries of the mirror that CRI-O pulls through it.
    pub(super) fn with_configured(self, configured: &[&str]) -> Self {
        match self {
            Self::Unsupported { hosts, .. } if !configured.is_empty() => {
                let others = format!(". CRI-O uses the mirror for {}", configured.join(", "));
                Self::Unsupported { hosts, others }
            }
            error => error,
        }
    }
}

/// The files of all mirrors on a node, of which the agent changes its own only.
pub(super) trait RuntimeFiles {
    /// Returns whether the agent's file of a host is there.
    fn has(&self, host: &str) -> bool;

    /// Returns the mirrors that have files here, as `NAMESPACE/NAME`.
    fn mirrors(&self) -> BTreeSet<String>;

    /// Writes the files of a host, certificates first. Changes nothing if they are there.
    fn write(&self, host: &str, files: &HostFiles) -> Result<(), WriteError>;

    /// Removes the agent's files of every host that is not among `kept`, unless they are of a mirror among `held`.
    fn remove_others(&self, kept: &BTreeSet<&str>, held: &BTreeSet<String>) -> BTreeMap<String, WriteError>;

    /// Removes everything that the agent wrote.
    fn clear(&self) -> BTreeMap<String, WriteError>;
}

/// Returns the files in a directory of a runtime. `keeps_foreign` replaces files of other programs and keeps them.
pub(super) fn open<'a>(
    root: &'a NodeRoot,
    runtime: RuntimeKind,
    path: &'a str,
    keeps_foreign: bool,
) -> Box<dyn RuntimeFiles + 'a> {
    match runtime {
        RuntimeKind::Crio => Box::new(DropInDirectory::new(root, path)),
        _ => Box::new(HostsDirectory::new(root, path, keeps_foreign)),
    }
}

/// Creates a directory with the mark by which [`remove_created`] recognizes it, unless it exists. A process that is killed
/// meanwhile leaves a directory that [`remove_created`] removes.
pub(super) fn create(root: &NodeRoot, directory: &str) -> io::Result<()> {
    if root.names(directory)?.is_some() {
        return Ok(());
    }
    let (unfinished, name) = unfinished(directory);
    remove_unfinished(root, &unfinished)?;
    root.create_directory(&unfinished)?;
    root.write(&format!("{unfinished}/{CREATED}"), b"", true)?;
    root.rename(&unfinished, name)
}

/// Returns the path of a directory while it is created or removed, and its name at other times.
fn unfinished(directory: &str) -> (String, &str) {
    match directory.rsplit_once('/') {
        Some((parent, name)) => (format!("{parent}/{UNFINISHED}"), name),
        None => (UNFINISHED.to_owned(), directory),
    }
}

fn remove_unfinished(root: &NodeRoot, unfinished: &str) -> io::Result<()> {
    if root.names(unfinished).ok().flatten().is_some() {
        root.remove_staged(unfinished)?;
        root.remove(&format!("{unfinished}/{CREATED}"))?;
        root.remove_directory(unfinished)?;
    }
    Ok(())
}

/// Removes a directory that the agent created, unless another program has files in it, and what a killed process left
/// unfinished in it and next to it.
pub(super) fn remove_created(root: &NodeRoot, directory: &str) -> io::Result<()> {
    let (unfinished, name) = unfinished(directory);
    remove_unfinished(root, &unfinished)?;
    let names = || root.names(directory).ok().flatten().unwrap_or_default();
    if !names().is_empty() {
        root.remove_staged(directory)?;
    }
    let mark = format!("{directory}/{CREATED}");
    if names() == [CREATED] && root.read(&mark).is_ok_and(|mark| mark.is_some()) {
        if root.rename(directory, UNFINISHED).is_ok() {
            // A file that another program wrote meanwhile stays in its place.
            return remove_unfinished(root, &unfinished).inspect_err(|_| {
                let _ = root.rename(&unfinished, name);
            });
        }
        // A mount point has to stay.
        root.remove(&mark)?;
        root.remove_directory(directory)?;
    }
    Ok(())
}

/// Writes a file with the agent's marker, unless it is up to date. Fails if a file appears that was not there.
pub(super) fn write_marked(root: &NodeRoot, file: NodeFile, mirror: &str) -> io::Result<()> {
    let file = Marker::AGENT.add(file, mirror);
    let found = root.read(&file.path)?;
    if found.as_deref() != Some(file.text.as_bytes()) {
        root.write(&file.path, file.text.as_bytes(), found.is_some())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
