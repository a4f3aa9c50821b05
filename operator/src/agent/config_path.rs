//! The drop-in that sets containerd's `config_path`, if the administrator asks for it.
//!
//! containerd 2 merges the plugins of its files key by key; containerd 1.7 replaces a plugin as a whole. For its version of
//! the configuration, the drop-in therefore repeats the plugin. containerd reads the drop-in when it starts: the drop-in
//! names the sockets of the containerd that did not read it.

use std::{fs, io};

use toml::{Table, Value};

use super::{
    detect::{Detection, Obstacle, PLUGINS, configurations, has_import, hosts_directory},
    runtime_files::{create, remove_created},
};
use crate::node_config::{Marker, NodeFile, NodeRoot};

const DIRECTORY: &str = "etc/containerd/conf.d";
const FILE: &str = "etc/containerd/conf.d/registry-mirror.toml";
const CONFIG_PATH: &str = "/etc/containerd/certs.d";
/// The start of the line with the sockets of containerd at the time of the last change.
const SOCKETS: &str = "# Sockets of containerd before the change: ";
const RESTART: &str = "the agent wrote /etc/containerd/conf.d/registry-mirror.toml with config_path: restart containerd on \
    this node to read it (systemctl restart containerd; running containers are not affected)";
const NO_IMPORT: &str = "the agent can't set it: containerd's configuration has no \
    imports = [\"/etc/containerd/conf.d/*.toml\"], or is older than version 2. ";

/// Writes the drop-in if `config_path` is missing, and returns the obstacle that remains.
pub(super) fn set(root: &NodeRoot, detection: Detection) -> Detection {
    let sockets = sockets(&fs::read_to_string("/proc/self/net/unix").unwrap_or_default());
    let directory = set_for(root, detection.directory, &sockets);
    Detection {
        directory,
        ..detection
    }
}

/// Removes the drop-in.
pub(super) fn remove(root: &NodeRoot) -> io::Result<()> {
    if matches!(root.read(FILE), Ok(Some(text)) if Marker::AGENT.is_in(&text)) {
        root.remove(FILE)?;
    }
    remove_created(root, DIRECTORY)
}

fn set_for(root: &NodeRoot, found: Result<String, Obstacle>, sockets: &str) -> Result<String, Obstacle> {
    let mut files = configurations(root)?;
    files.retain(|(path, _)| path != FILE);
    let obstacle = match hosts_directory(&files) {
        Err(Obstacle::ConfigPathMissing(_)) => found
            .err()
            .unwrap_or_else(|| Obstacle::ConfigPathMissing(RESTART.to_owned())),
        // Another file sets it, or has mirrors, with which containerd would not start.
        without => {
            remove(root).map_err(|error| unwritable(&error))?;
            return without;
        }
    };
    let Some(text) = drop_in(&files)? else {
        return Err(obstacle.with(NO_IMPORT));
    };
    let own = root
        .read(FILE)
        .ok()
        .flatten()
        .filter(|text| Marker::AGENT.is_in(text));
    let own = own
        .and_then(|text| String::from_utf8(text).ok())
        .unwrap_or_default();
    let written = own.lines().find_map(|line| line.strip_prefix(SOCKETS));
    let restart = || Obstacle::ConfigPathMissing(RESTART.to_owned());
    if own.ends_with(&text) {
        // Without sockets, the agent does not see the network namespace of containerd.
        let is_read = written.is_some_and(|written| sockets.is_empty() || written != sockets);
        return if is_read {
            Ok(CONFIG_PATH.trim_start_matches('/').to_owned())
        } else {
            Err(restart())
        };
    }
    let text = format!("{SOCKETS}{sockets}\n{text}");
    let file = Marker::AGENT.add(
        NodeFile {
            path: FILE.to_owned(),
            text,
        },
        "config_path",
    );
    let written =
        create(root, DIRECTORY).and_then(|()| root.write(FILE, file.text.as_bytes(), !own.is_empty()));
    Err(written.err().map_or_else(restart, |error| unwritable(&error)))
}

fn unwritable(error: &io::Error) -> Obstacle {
    Obstacle::Unsupported(format!("can't change /{FILE}: {error}"))
}

/// Returns the text of the drop-in, unless containerd would not read it with these files.
fn drop_in(files: &[(String, Table)]) -> Result<Option<String>, Obstacle> {
    let version = files
        .first()
        .and_then(|(_, main)| main.get("version")?.as_integer());
    let version = version.filter(|version| *version >= 2 && has_import(files, FILE));
    let Some(version) = version else {
        return Ok(None);
    };
    let (name, mut plugin) = if version == 2 {
        let mut plugins = files.iter().rev().filter_map(|(_, file)| file.get("plugins"));
        let plugin = plugins.find_map(|plugins| plugins.get(PLUGINS[1])?.as_table());
        (PLUGINS[1], plugin.cloned().unwrap_or_default())
    } else {
        (PLUGINS[0], Table::new())
    };
    let registry = plugin.entry("registry").or_insert_with(|| Table::new().into());
    if let Some(registry) = registry.as_table_mut() {
        registry.insert("config_path".to_owned(), CONFIG_PATH.into());
    }
    let plugins = Table::from_iter([(name.to_owned(), Value::Table(plugin))]);
    let file = Table::from_iter([
        ("version".to_owned(), version.min(3).into()),
        ("plugins".to_owned(), plugins.into()),
    ]);
    let text = toml::to_string(&file);
    text.map(Some)
        .map_err(|error| Obstacle::Unsupported(error.to_string()))
}

/// Returns the inode numbers of containerd's sockets, from a table of sockets as in `/proc/net/unix`.
fn sockets(table: &str) -> String {
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_containerd = rows.filter_map(|row| match row[..] {
        // Num RefCount Protocol Flags Type St Inode Path. Flag: listens.
        [.., "00010000", _, _, inode, path] if path.ends_with("/containerd.sock") => Some(inode.to_owned()),
        _ => None,
    });
    let mut inodes: Vec<_> = of_containerd.collect();
    inodes.sort();
    inodes.join(" ")
}

#[cfg(test)]
mod tests;
