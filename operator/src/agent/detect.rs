//! Detection of the container runtime of a node, and of the directory from which it reads `HOST/hosts.toml`.

mod imports;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::node_config::{InvalidEntry, NodeRoot};

/// The directory of containerd's own configuration.
const CONTAINERD: &str = "etc/containerd";
/// The directory that containerd's documentation names.
const DEFAULT_DIRECTORY: &str = "etc/containerd/certs.d";
/// The directories of distributions that write containerd's configuration themselves, with `config_path`.
const DISTRIBUTIONS: [(RuntimeKind, &str, &str); 2] = [
    (
        RuntimeKind::K3s,
        "var/lib/rancher/k3s/agent/etc/containerd",
        "var/lib/rancher/k3s/agent/etc/containerd/certs.d",
    ),
    (
        RuntimeKind::Rke2,
        "var/lib/rancher/rke2/agent/etc/containerd",
        "var/lib/rancher/rke2/agent/etc/containerd/certs.d",
    ),
];
/// The directory of containerd on Talos, which writes it from the machine configuration.
const TALOS: &str = "etc/cri/conf.d";
/// The directory of CRI-O's own configuration.
const CRIO: &str = "etc/crio";
/// The directory with the drop-ins of `registries.conf`.
const DROP_INS: &str = "etc/containers/registries.conf.d";
/// The plugins with the registry configuration, in containerd 2 and 1.
pub(super) const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];
/// The maximum number of files that are read for imports.
const MAX_FILES: usize = 64;

/// The lines that are missing in containerd's configuration.
const ADVICE: &str = "containerd reads no hosts.toml: add config_path = \"/etc/containerd/certs.d\" to \
    [plugins.\"io.containerd.cri.v1.images\".registry] of /etc/containerd/config.toml (version = 2 of the file: \
    [plugins.\"io.containerd.grpc.v1.cri\".registry]) and restart containerd. If this containerd has that directory as \
    its default (2.2 and later), start the agent with --certs-dir /etc/containerd/certs.d";
const INLINE: &str =
    "containerd's configuration has registry.mirrors or registry.configs, which exclude config_path";
const MOVE: &str =
    "move it into /etc/containerd/certs.d/HOST/hosts.toml, set config_path, and restart containerd";

const RELOAD: &str = "CRI-O reads registries.conf.d only when it starts: add auto_reload_registries = true to \
    [crio.image] of a file in /etc/crio/crio.conf.d (CRI-O 1.31 and later) and restart CRI-O, or use registry-mirror \
    node-config --runtime crio";
const MACHINE_CONFIGURATION: &str = "Talos writes the files of containerd from its machine configuration: use \
    registry-mirror node-config --runtime talos, and talosctl patch machineconfig";

/// A container runtime, as the agent tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// containerd.
    Containerd,
    /// containerd of k3s.
    K3s,
    /// containerd of RKE2.
    Rke2,
    /// containerd of Talos.
    Talos,
    /// CRI-O.
    Crio,
    /// None that the agent knows.
    #[serde(other)]
    Unknown,
}

/// The runtime of a node, and the directory for its files or the obstacle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Detection {
    pub(super) runtime: RuntimeKind,
    /// A path below the root directory.
    pub(super) directory: Result<String, Obstacle>,
}

/// A reason for which no file can take effect, with the action to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// containerd is not configured to read the directory.
    ConfigPathMissing(String),
    /// containerd's configuration names mirrors itself.
    InlineMirrors(String),
    /// The runtime reads no `hosts.toml`.
    Unsupported(String),
}

impl Obstacle {
    /// Returns the obstacle with a text before its message.
    pub(super) fn with(self, text: &str) -> Self {
        let add = |message| format!("{text}{message}");
        match self {
            Self::ConfigPathMissing(message) => Self::ConfigPathMissing(add(message)),
            Self::InlineMirrors(message) => Self::InlineMirrors(add(message)),
            Self::Unsupported(message) => Self::Unsupported(add(message)),
        }
    }
}

/// Detects the runtime. A directory that was given by the administrator needs no detection.
pub(super) fn detect(root: &NodeRoot, given: Option<&str>) -> Detection {
    if let Some(directory) = given {
        return Detection {
            runtime: RuntimeKind::Containerd,
            directory: below_root(directory, "--certs-dir"),
        };
    }
    let exists = |path: &str| matches!(root.names(path), Ok(Some(_)));
    for (runtime, mark, directory) in DISTRIBUTIONS {
        if exists(mark) {
            let directory = Ok(directory.to_owned());
            return Detection { runtime, directory };
        }
    }
    if exists(TALOS) {
        return Detection {
            runtime: RuntimeKind::Talos,
            directory: Err(Obstacle::Unsupported(MACHINE_CONFIGURATION.to_owned())),
        };
    }
    if exists(CONTAINERD) {
        let directory = containerd(root);
        let runtime = RuntimeKind::Containerd;
        return Detection { runtime, directory };
    }
    if exists(CRIO) {
        let directory = crio(root);
        let runtime = RuntimeKind::Crio;
        return Detection { runtime, directory };
    }
    let message =
        "no configuration of containerd found: mount it below the root directory, or set --certs-dir";
    Detection {
        runtime: RuntimeKind::Unknown,
        directory: Err(Obstacle::Unsupported(message.to_owned())),
    }
}

/// Returns every directory that a detection can have without a configuration file.
pub(super) fn directories() -> impl Iterator<Item = (RuntimeKind, &'static str)> {
    let distributions = DISTRIBUTIONS.iter();
    let distributions = distributions.map(|(runtime, _, directory)| (*runtime, *directory));
    distributions.chain([
        (RuntimeKind::Containerd, DEFAULT_DIRECTORY),
        (RuntimeKind::Crio, DROP_INS),
    ])
}

/// Returns the directory with drop-ins, if CRI-O reads it after each change.
fn crio(root: &NodeRoot) -> Result<String, Obstacle> {
    let drop_ins = root.names(&format!("{CRIO}/crio.conf.d")).ok().flatten();
    let drop_ins = drop_ins.into_iter().flatten().take(MAX_FILES);
    let drop_ins = drop_ins.map(|name| format!("{CRIO}/crio.conf.d/{name}"));
    let mut reloads = false;
    for path in std::iter::once(format!("{CRIO}/crio.conf")).chain(drop_ins) {
        let table = read(root, &path)?;
        let image = table.get("crio").and_then(|crio| crio.get("image"));
        let value = image.and_then(|image| image.get("auto_reload_registries"));
        reloads = value.and_then(Value::as_bool).unwrap_or(reloads);
    }
    if reloads {
        Ok(DROP_INS.to_owned())
    } else {
        Err(Obstacle::Unsupported(RELOAD.to_owned()))
    }
}

fn containerd(root: &NodeRoot) -> Result<String, Obstacle> {
    hosts_directory(&configurations(root)?)
}

/// Returns the first directory of containerd's `config_path` in these files.
pub(super) fn hosts_directory(configurations: &[(String, Table)]) -> Result<String, Obstacle> {
    let (mut has_mirrors, mut refused) = (false, None);
    for (path, registry) in registries(configurations) {
        let mut keys = ["mirrors", "configs"].iter();
        has_mirrors |= keys.any(|key| entries(registry, key).next().is_some());
        refused = refused.or_else(|| Some((path, refused_key(registry)?)));
    }
    match (config_path(configurations), refused) {
        (Some(_), Some((path, key))) => Err(Obstacle::InlineMirrors(format!(
            "/{path} has {key}, and containerd starts without its CRI plugin if config_path is set, too: {MOVE}"
        ))),
        (Some(first), None) => below_root(first, "config_path"),
        (None, _) if has_mirrors => Err(Obstacle::InlineMirrors(format!("{INLINE}: {MOVE}"))),
        (None, _) => Err(Obstacle::ConfigPathMissing(ADVICE.to_owned())),
    }
}

/// Returns the first directory of containerd's `config_path` although containerd may refuse the configuration.
pub(super) fn configured_directory(root: &NodeRoot) -> Option<String> {
    let configurations = configurations(root).ok()?;
    below_root(config_path(&configurations)?, "config_path").ok()
}

/// Returns the first directory of the `config_path` that overrides the others.
fn config_path(configurations: &[(String, Table)]) -> Option<&str> {
    let paths = registries(configurations).filter_map(|(_, registry)| registry.get("config_path")?.as_str());
    let paths = paths.filter(|paths| !paths.is_empty()).last()?;
    paths.split(':').next()
}

/// Returns each registry configuration with the path of its file.
fn registries(configurations: &[(String, Table)]) -> impl Iterator<Item = (&str, &Table)> {
    configurations.iter().flat_map(|(path, table)| {
        let plugins = PLUGINS
            .iter()
            .filter_map(|plugin| table.get("plugins")?.get(plugin));
        let registries = plugins.filter_map(|plugin| plugin.get("registry")?.as_table());
        registries.map(move |registry| (path.as_str(), registry))
    })
}

/// Returns the entries of a table in the registry configuration.
fn entries<'a>(registry: &'a Table, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    let table = registry.get(key).and_then(Value::as_table);
    table.into_iter().flat_map(Table::values)
}

/// Returns the key that containerd refuses together with `config_path`. It accepts `configs` with `auth` only.
fn refused_key(registry: &Table) -> Option<&'static str> {
    if entries(registry, "mirrors").next().is_some() {
        return Some("registry.mirrors");
    }
    let has_tls = entries(registry, "configs").any(|host| host.get("tls").is_some());
    has_tls.then_some("registry.configs with tls")
}

/// Returns the path of a directory below the root directory, without empty parts and `.`.
fn below_root(directory: &str, setting: &str) -> Result<String, Obstacle> {
    let parts = directory.split('/').filter(|part| !matches!(*part, "" | "."));
    let parts: Vec<_> = parts.collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(Obstacle::Unsupported(format!(
            "{setting} {directory:?} is not the path of a directory below / without \"..\": the agent can't write files \
             there; set it to such a path, for example /{DEFAULT_DIRECTORY}"
        )));
    }
    Ok(parts.join("/"))
}

/// Returns the main file and those that it imports, with their paths, in the order in which they override each other.
pub(super) fn configurations(root: &NodeRoot) -> Result<Vec<(String, Table)>, Obstacle> {
    let mut paths = VecDeque::from([format!("{CONTAINERD}/config.toml")]);
    let (mut seen, mut tables) = (Vec::new(), Vec::new());
    while let Some(path) = paths.pop_front() {
        if seen.contains(&path) || seen.len() == MAX_FILES {
            continue;
        }
        let table = read_containerd(root, &path)?;
        let imports = table.get("imports").and_then(Value::as_array);
        for import in imports.into_iter().flatten().filter_map(Value::as_str) {
            let files = imports::expand(root, &path, import, MAX_FILES);
            paths.extend(files.map_err(|imports::InvalidPattern| {
                Obstacle::Unsupported(format!(
                    "/{path} imports {import:?}, which is no valid pattern: containerd does not start with it; correct it"
                ))
            })?);
        }
        seen.push(path.clone());
        tables.push((path, table));
    }
    Ok(tables)
}

/// Returns the content of a file of containerd. containerd 2 refuses a byte order mark, which other parsers skip.
fn read_containerd(root: &NodeRoot, path: &str) -> Result<Table, Obstacle> {
    let table = read(root, path)?;
    let text = root.read(path).ok().flatten().unwrap_or_default();
    let is_of_containerd_2 = table.get("version").and_then(Value::as_integer) == Some(3);
    if is_of_containerd_2 && text.starts_with("\u{feff}".as_bytes()) {
        return Err(Obstacle::Unsupported(format!(
            "/{path} begins with a byte order mark, with which containerd 2 does not start: save the file as UTF-8 without it"
        )));
    }
    Ok(table)
}

/// Returns the content of a configuration file, empty if it does not exist.
fn read(root: &NodeRoot, path: &str) -> Result<Table, Obstacle> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Obstacle::Unsupported(format!(
            "the runtime's configuration /{path} can't be read: {error}"
        ))
    };
    let content = root.read(path).map_err(|error| match error {
        error if InvalidEntry::is_in(&error) => Obstacle::Unsupported(format!(
            "the runtime's configuration can't be read: {error}; put a file of at most 4 MiB in its place"
        )),
        error => unreadable(&error),
    })?;
    let text = String::from_utf8(content.unwrap_or_default()).map_err(|error| unreadable(&error))?;
    text.parse()
        .map_err(|error: toml::de::Error| unreadable(&error.message()))
}

/// Returns whether a file would be read if it existed, by an import of one of these files.
pub(super) fn has_import(configurations: &[(String, Table)], file: &str) -> bool {
    configurations.iter().any(|(parent, table)| {
        let imports = table.get("imports").and_then(Value::as_array);
        let mut imports = imports.into_iter().flatten().filter_map(Value::as_str);
        imports.any(|import| imports::is_imported(parent, import, file))
    })
}

#[cfg(test)]
mod tests;
