//! The directory with `HOST/hosts.toml`, of which the agent changes its own files only.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use rustix::io::Errno;

use crate::node_config::{Marker, NodeFile, NodeRoot};

/// The file with the CA certificates. containerd trusts each `*.crt` of a directory for the registry itself while there
/// is no `hosts.toml`, and the mirror's CA must not be trusted for it.
pub(super) const CA_FILE: &str = "registry-mirror.pem";
const HOSTS: &str = "hosts.toml";
/// The mark of a directory that the agent created, and removes again.
const CREATED: &str = ".registry-mirror";

/// The files of one registry host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostFiles {
    /// The mirror, as `NAMESPACE/NAME`.
    pub(super) mirror: String,
    pub(super) hosts_toml: String,
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
    #[error("can't write {0}: {1}; mount the directory writable, or use registry-mirror node-config")]
    ReadOnly(String, io::Error),
}

/// The directory with the files of each registry host.
pub(super) struct HostsDirectory<'a> {
    root: &'a NodeRoot,
    path: &'a str,
}

impl<'a> HostsDirectory<'a> {
    pub(super) fn new(root: &'a NodeRoot, path: &'a str) -> Self {
        Self { root, path }
    }

    /// Returns whether the agent's file of a host is there.
    pub(super) fn has(&self, host: &str) -> bool {
        matches!(self.root.read(&self.file(host, HOSTS)), Ok(Some(text)) if Marker::AGENT.is_in(&text))
    }

    /// Writes the files of a host, certificates first. Changes nothing if they are there.
    pub(super) fn write(&self, host: &str, files: &HostFiles) -> Result<(), WriteError> {
        let failed = |error| self.failed(host, error);
        self.find_conflict(host)
            .map_err(failed)?
            .map_or(Ok(()), |conflict| Err(WriteError::Conflict(conflict)))?;
        if self.root.create_directory(self.path).map_err(failed)? {
            self.mark(self.path).map_err(failed)?;
        }
        let directory = format!("{}/{host}", self.path);
        if self.root.create_directory(&directory).map_err(failed)? {
            self.mark(&directory).map_err(failed)?;
        }
        let certificates = files.certificates.clone();
        let certificates = certificates.map(|text| (CA_FILE, text));
        for (name, text) in certificates
            .into_iter()
            .chain([(HOSTS, files.hosts_toml.clone())])
        {
            let path = self.file(host, name);
            let file = Marker::AGENT.add(NodeFile { path, text }, &files.mirror);
            let found = self.root.read(&file.path).map_err(failed)?;
            if found.as_deref() != Some(file.text.as_bytes()) {
                let replace = found.is_some();
                self.root
                    .write(&file.path, file.text.as_bytes(), replace)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes the agent's files of a host, and the directory if the agent created it.
    pub(super) fn remove(&self, host: &str) -> Result<(), WriteError> {
        self.remove_files(host).map_err(|error| self.failed(host, error))
    }

    /// Removes the agent's files of every host that is not among `kept`.
    pub(super) fn remove_others(&self, kept: &BTreeSet<&str>) -> BTreeMap<String, WriteError> {
        let names = self.root.names(self.path).ok().flatten().unwrap_or_default();
        let others = names.into_iter().filter(|name| !kept.contains(name.as_str()));
        let removed = others.map(|host| (self.remove(&host), host));
        removed
            .filter_map(|(removed, host)| Some((host, removed.err()?)))
            .collect()
    }

    /// Removes everything that the agent wrote.
    pub(super) fn clear(&self) -> BTreeMap<String, WriteError> {
        let failed = self.remove_others(&BTreeSet::new());
        // An error leaves an empty directory behind.
        let _ = self.remove_created(self.path);
        failed
    }

    fn remove_files(&self, host: &str) -> io::Result<()> {
        // hosts.toml first: it names the certificates.
        for name in [HOSTS, CA_FILE] {
            let path = self.file(host, name);
            match self.root.read(&path) {
                Ok(Some(text)) if Marker::AGENT.is_in(&text) => self.root.remove(&path)?,
                // A file of another program, and an entry that is no directory.
                Ok(_) | Err(_) => {}
            }
        }
        self.remove_created(&format!("{}/{host}", self.path))
    }

    /// Removes a directory that the agent created, unless another program has files in it.
    fn remove_created(&self, directory: &str) -> io::Result<()> {
        let mark = format!("{directory}/{CREATED}");
        let names = self.root.names(directory).ok().flatten().unwrap_or_default();
        if names == [CREATED] && self.root.read(&mark).is_ok_and(|mark| mark.is_some()) {
            self.root.remove(&mark)?;
            self.root.remove_directory(directory)?;
        }
        Ok(())
    }

    /// Returns the path of another program's file that decides about a host.
    fn find_conflict(&self, host: &str) -> io::Result<Option<String>> {
        for name in [HOSTS, CA_FILE] {
            let path = self.file(host, name);
            if self
                .root
                .read(&path)?
                .is_some_and(|text| !Marker::AGENT.is_in(&text))
            {
                return Ok(Some(format!("another program wrote /{path}")));
            }
        }
        // containerd reads HOST_PORT_ before HOST:PORT.
        if let Some((name, port)) = host.rsplit_once(':') {
            let preferred = format!("{}/{name}_{port}_", self.path);
            if self.root.names(&preferred)?.is_some() {
                return Ok(Some(format!("containerd reads /{preferred} instead")));
            }
        }
        let directory = format!("{}/{host}", self.path);
        let names = self.root.names(&directory)?.unwrap_or_default();
        // containerd reads these only while there is no hosts.toml.
        let docker = names.iter().find(|name| {
            let extension = name.rsplit_once('.').map(|(_, extension)| extension);
            matches!(extension, Some("crt" | "cert" | "key"))
        });
        let has_own = names.iter().any(|name| name == HOSTS);
        Ok(docker
            .filter(|_| !has_own)
            .map(|name| format!("/{directory}/{name} would lose its effect")))
    }

    fn mark(&self, directory: &str) -> io::Result<()> {
        self.root.write(&format!("{directory}/{CREATED}"), b"", true)
    }

    fn file(&self, host: &str, name: &str) -> String {
        format!("{}/{host}/{name}", self.path)
    }

    fn failed(&self, host: &str, error: io::Error) -> WriteError {
        let path = format!("/{}/{host}", self.path);
        let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        if is_link
            || matches!(
                error.kind(),
                io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData
            )
        {
            return WriteError::Conflict(format!(
                "{path} is or has something else than directories and files"
            ));
        }
        WriteError::ReadOnly(path, error)
    }
}

#[cfg(test)]
mod tests;
