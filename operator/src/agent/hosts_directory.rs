//! The directory with `HOST/hosts.toml`, of which the agent changes its own files only.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::runtime_files::{HostFiles, RuntimeFiles, WriteError, create, remove_created, write_marked};
use crate::node_config::{Marker, NodeFile, NodeRoot};

/// The file with the CA certificates. containerd trusts each `*.crt` of a directory for the registry itself while there
/// is no `hosts.toml`, and the mirror's CA must not be trusted for it.
pub(super) const CA_FILE: &str = "registry-mirror.pem";
const HOSTS: &str = "hosts.toml";
/// The file of another program, which the agent restores.
const FOREIGN: &str = "hosts.toml.before";

/// The directory with the files of each registry host.
pub(super) struct HostsDirectory<'a> {
    root: &'a NodeRoot,
    path: &'a str,
    /// A file of another program is replaced and kept.
    keeps_foreign: bool,
}

impl RuntimeFiles for HostsDirectory<'_> {
    fn has(&self, host: &str) -> bool {
        matches!(self.root.read(&self.file(host, HOSTS)), Ok(Some(text)) if Marker::AGENT.is_in(&text))
    }

    fn write(&self, host: &str, files: &HostFiles) -> Result<(), WriteError> {
        let failed = |error| self.failed(host, error);
        self.find_conflict(host)
            .map_err(failed)?
            .map_or(Ok(()), |conflict| Err(WriteError::Conflict(conflict)))?;
        self.keep_foreign(host).map_err(failed)?;
        create(self.root, self.path).map_err(failed)?;
        create(self.root, &format!("{}/{host}", self.path)).map_err(failed)?;
        let certificates = files.certificates.clone();
        let certificates = certificates.map(|text| (CA_FILE, text));
        for (name, text) in certificates
            .into_iter()
            .chain([(HOSTS, files.hosts_toml.clone())])
        {
            let path = self.file(host, name);
            write_marked(self.root, NodeFile { path, text }, &files.mirror).map_err(failed)?;
        }
        Ok(())
    }

    fn mirrors(&self) -> BTreeSet<String> {
        let names = self.root.names(self.path).ok().flatten().unwrap_or_default();
        names.iter().filter_map(|host| self.mirror(host)).collect()
    }

    fn remove_others(&self, kept: &BTreeSet<&str>, held: &BTreeSet<String>) -> BTreeMap<String, WriteError> {
        let names = self.root.names(self.path).ok().flatten().unwrap_or_default();
        let others = names.into_iter().filter(|name| {
            let is_held = || self.mirror(name).is_some_and(|mirror| held.contains(&mirror));
            !kept.contains(name.as_str()) && (held.is_empty() || !is_held())
        });
        let removed = others.map(|host| (self.remove(&host), host));
        removed
            .filter_map(|(removed, host)| Some((host, removed.err()?)))
            .collect()
    }

    fn clear(&self) -> BTreeMap<String, WriteError> {
        let failed = self.remove_others(&BTreeSet::new(), &BTreeSet::new());
        // An error leaves an empty directory behind.
        let _ = remove_created(self.root, self.path);
        failed
    }
}

impl<'a> HostsDirectory<'a> {
    pub(super) fn new(root: &'a NodeRoot, path: &'a str, keeps_foreign: bool) -> Self {
        Self {
            root,
            path,
            keeps_foreign,
        }
    }

    /// Removes the agent's files of a host, and the directory if the agent created it.
    pub(super) fn remove(&self, host: &str) -> Result<(), WriteError> {
        self.remove_files(host).map_err(|error| self.failed(host, error))
    }

    /// Gives the file of another program a second name, by which the agent restores it.
    fn keep_foreign(&self, host: &str) -> io::Result<()> {
        let path = self.file(host, HOSTS);
        match self.root.read(&path)? {
            Some(text) if !Marker::AGENT.is_in(&text) => self.root.link(&path, FOREIGN),
            _ => Ok(()),
        }
    }

    /// Returns the mirror of which the agent wrote the file of a host.
    fn mirror(&self, host: &str) -> Option<String> {
        let text = self.root.read(&self.file(host, HOSTS)).ok()??;
        Marker::AGENT.id(&text).map(str::to_owned)
    }

    fn remove_files(&self, host: &str) -> io::Result<()> {
        // hosts.toml first: it names the certificates.
        for name in [HOSTS, CA_FILE] {
            let path = self.file(host, name);
            match self.root.read(&path) {
                Ok(Some(text)) if Marker::AGENT.is_in(&text) => {
                    let foreign = self.file(host, FOREIGN);
                    if name == HOSTS && self.root.read(&foreign)?.is_some() {
                        self.root.rename(&foreign, HOSTS)?;
                    } else {
                        self.root.remove(&path)?;
                    }
                }
                // A file of another program, and an entry that is no directory.
                Ok(_) | Err(_) => {}
            }
        }
        remove_created(self.root, &format!("{}/{host}", self.path))
    }

    /// Returns the path of another program's file that decides about a host.
    fn find_conflict(&self, host: &str) -> io::Result<Option<String>> {
        for name in [HOSTS, CA_FILE] {
            let path = self.file(host, name);
            let found = self.root.read(&path)?;
            let is_foreign = found.as_ref().is_some_and(|text| !Marker::AGENT.is_in(text));
            if is_foreign && !(name == HOSTS && self.can_keep(host, found.as_deref())?) {
                return Ok(Some(format!(
                    "another program wrote /{path} (--keep-foreign-files replaces and keeps it)"
                )));
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

    /// Returns whether the agent may replace a file of another program: the name for it is free, or has the same content
    /// since a process was killed between two steps.
    fn can_keep(&self, host: &str, found: Option<&[u8]>) -> io::Result<bool> {
        let kept = self.root.read(&self.file(host, FOREIGN))?;
        Ok(self.keeps_foreign && (kept.is_none() || kept.as_deref() == found))
    }

    fn file(&self, host: &str, name: &str) -> String {
        format!("{}/{host}/{name}", self.path)
    }

    fn failed(&self, host: &str, error: io::Error) -> WriteError {
        WriteError::new(&format!("{}/{host}", self.path), error)
    }
}

#[cfg(test)]
mod tests;
