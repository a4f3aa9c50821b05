//! The directory with the drop-ins of `registries.conf`, of which the agent changes its own files only.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use toml::{Table, Value};

use super::runtime_files::{HostFiles, RuntimeFiles, WriteError, create, remove_created, write_marked};
use crate::node_config::{Marker, NodeFile, NodeRoot};

/// The directory with the certificates of each registry, which CRI-O and podman read at each pull.
const CERTIFICATES: &str = "etc/containers/certs.d";
const CA_FILE: &str = "ca.crt";
/// The file that the drop-ins add to.
const MAIN: &str = "etc/containers/registries.conf";
const PREFIX: &str = "50-registry-mirror-";
const SUFFIX: &str = ".conf";

/// The directory `registries.conf.d` with a drop-in for each registry host.
pub(super) struct DropInDirectory<'a> {
    root: &'a NodeRoot,
    path: &'a str,
}

impl RuntimeFiles for DropInDirectory<'_> {
    fn has(&self, host: &str) -> bool {
        self.mirror(&file_name(host)).is_some()
    }

    fn write(&self, host: &str, files: &HostFiles) -> Result<(), WriteError> {
        let failed = |error| WriteError::new(self.path, error);
        let entry = files.registries_conf.get(host);
        let entry = entry.ok_or_else(|| WriteError::unsupported(host))?;
        if let Some(conflict) = self.find_conflict(host, &files.authority).map_err(failed)? {
            return Err(WriteError::Conflict(conflict));
        }
        if let Some(certificates) = files.certificates.clone() {
            create(self.root, CERTIFICATES).map_err(failed)?;
            create(self.root, &format!("{CERTIFICATES}/{}", files.authority)).map_err(failed)?;
            let path = format!("{CERTIFICATES}/{}/{CA_FILE}", files.authority);
            let file = NodeFile {
                path,
                text: certificates,
            };
            write_marked(self.root, file, &files.mirror).map_err(failed)?;
        }
        create(self.root, self.path).map_err(failed)?;
        let path = format!("{}/{}", self.path, file_name(host));
        let file = NodeFile {
            path,
            text: entry.clone(),
        };
        write_marked(self.root, file, &files.mirror).map_err(failed)
    }

    fn mirrors(&self) -> BTreeSet<String> {
        self.names().iter().filter_map(|name| self.mirror(name)).collect()
    }

    fn remove_others(&self, kept: &BTreeSet<&str>, held: &BTreeSet<String>) -> BTreeMap<String, WriteError> {
        let kept: BTreeSet<_> = kept.iter().map(|host| file_name(host)).collect();
        let mut errors = BTreeMap::new();
        for name in self.names().into_iter().filter(|name| !kept.contains(name)) {
            let path = format!("{}/{name}", self.path);
            let is_ours = self.mirror(&name).is_some_and(|mirror| !held.contains(&mirror));
            if is_ours && let Err(error) = self.root.remove(&path) {
                let error = WriteError::new(&path, error);
                errors.insert(name, error);
            }
        }
        errors.extend(self.remove_certificates());
        errors
    }

    fn clear(&self) -> BTreeMap<String, WriteError> {
        let failed = self.remove_others(&BTreeSet::new(), &BTreeSet::new());
        for directory in [self.path, CERTIFICATES] {
            // An error leaves an empty directory behind.
            let _ = remove_created(self.root, directory);
        }
        failed
    }
}

impl<'a> DropInDirectory<'a> {
    pub(super) fn new(root: &'a NodeRoot, path: &'a str) -> Self {
        Self { root, path }
    }

    /// Removes the CA of each mirror without a drop-in: a drop-in without its CA would fail every pull.
    fn remove_certificates(&self) -> BTreeMap<String, WriteError> {
        let mirrors = self.mirrors();
        let names = self.root.names(CERTIFICATES).ok().flatten().unwrap_or_default();
        let removed = names.into_iter().filter_map(|authority| {
            let directory = format!("{CERTIFICATES}/{authority}");
            let path = format!("{directory}/{CA_FILE}");
            let text = self.root.read(&path).ok()??;
            let mirror = Marker::AGENT.id(&text)?;
            if mirrors.contains(mirror) {
                return None;
            }
            let removed = self.root.remove(&path);
            let error = removed
                .and_then(|()| remove_created(self.root, &directory))
                .err()?;
            Some((authority, WriteError::new(&path, error)))
        });
        removed.collect()
    }

    /// Returns the path of another program's file that decides about a host.
    fn find_conflict(&self, host: &str, authority: &str) -> io::Result<Option<String>> {
        let ca_file = format!("{CERTIFICATES}/{authority}/{CA_FILE}");
        let own = format!("{}/{}", self.path, file_name(host));
        for path in [&own, &ca_file] {
            let found = self.root.read(path)?;
            if found.is_some_and(|text| !Marker::AGENT.is_in(&text)) {
                return Ok(Some(format!("another program wrote /{path}")));
            }
        }
        let names = self.root.names(self.path)?.unwrap_or_default();
        let others = names.iter().filter(|name| name.ends_with(SUFFIX));
        let others = others.map(|name| format!("{}/{name}", self.path));
        for path in others.chain([MAIN.to_owned()]).filter(|path| *path != own) {
            let text = self.root.read(&path)?.unwrap_or_default();
            if !Marker::AGENT.is_in(&text) && has_entry(&text, host) {
                return Ok(Some(format!("/{path} has an entry for {host}")));
            }
        }
        Ok(None)
    }

    /// Returns the mirror of which the agent wrote a file.
    fn mirror(&self, name: &str) -> Option<String> {
        let text = self.root.read(&format!("{}/{name}", self.path)).ok()??;
        Marker::AGENT.id(&text).map(str::to_owned)
    }

    /// Returns the names of files that may be the agent's.
    fn names(&self) -> Vec<String> {
        let mut names = self.root.names(self.path).ok().flatten().unwrap_or_default();
        names.retain(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        names
    }
}

fn file_name(host: &str) -> String {
    format!("{PREFIX}{host}{SUFFIX}")
}

/// Returns whether a file has an entry for exactly this registry. CRI-O does not start with a file that is no TOML.
fn has_entry(text: &[u8], host: &str) -> bool {
    let table = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<Table>().ok());
    let table = table.unwrap_or_default();
    let entries = table
        .get("registry")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    entries
        .filter_map(|entry| entry.get("prefix").or_else(|| entry.get("location"))?.as_str())
        .any(|prefix| prefix == host)
}

#[cfg(test)]
mod tests;
