//! Detection of the container runtime of a node, and of the directory from which it reads `HOST/hosts.toml`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::node_config::NodeRoot;

/// The directory of containerd's own configuration.
const CONTAINERD: &str = "etc/containerd";
/// The directory that containerd's documentation names.
const DEFAULT_DIRECTORY: &str = "etc/containerd/certs.d";
/// The directories of distributions that write containerd's configuration themselves, with `config_path`.
const DISTRIBUTIONS: [(RuntimeKind, &str, &str); 3] = [
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
    (RuntimeKind::Talos, "etc/cri/conf.d", "etc/cri/conf.d/hosts"),
];
/// The plugins with the registry configuration, in containerd 2 and 1.
const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];
/// The maximum number of files that are read for imports.
const MAX_FILES: usize = 64;

/// The lines that are missing in containerd's configuration.
const ADVICE: &str = "containerd reads no hosts.toml: add config_path = \"/etc/containerd/certs.d\" to \
    [plugins.\"io.containerd.cri.v1.images\".registry] of /etc/containerd/config.toml (version = 2 of the file: \
    [plugins.\"io.containerd.grpc.v1.cri\".registry]) and restart containerd. If this containerd has that directory as \
    its default (2.2 and later), start the agent with --certs-dir /etc/containerd/certs.d";
const INLINE: &str = "containerd's configuration has registry.mirrors or registry.configs, which exclude config_path: \
    move them into /etc/containerd/certs.d/HOST/hosts.toml, set config_path, and restart containerd";

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

/// Detects the runtime. A directory that was given by the administrator needs no detection.
pub(super) fn detect(root: &NodeRoot, given: Option<&str>) -> Detection {
    if let Some(directory) = given {
        return Detection {
            runtime: RuntimeKind::Containerd,
            directory: Ok(directory.trim_matches('/').to_owned()),
        };
    }
    let exists = |path: &str| matches!(root.names(path), Ok(Some(_)));
    for (runtime, mark, directory) in DISTRIBUTIONS {
        if exists(mark) {
            let directory = Ok(directory.to_owned());
            return Detection { runtime, directory };
        }
    }
    if exists(CONTAINERD) {
        let directory = containerd(root);
        let runtime = RuntimeKind::Containerd;
        return Detection { runtime, directory };
    }
    let (runtime, message) = if exists("etc/crio") {
        let message = "CRI-O needs a reload after a change: use registry-mirror node-config --runtime crio";
        (RuntimeKind::Crio, message)
    } else {
        let message =
            "no configuration of containerd found: mount it below the root directory, or set --certs-dir";
        (RuntimeKind::Unknown, message)
    };
    Detection {
        runtime,
        directory: Err(Obstacle::Unsupported(message.to_owned())),
    }
}

/// Returns every directory that a detection can have without a configuration file.
pub(super) fn directories() -> impl Iterator<Item = &'static str> {
    let distributions = DISTRIBUTIONS.iter().map(|(_, _, directory)| *directory);
    distributions.chain([DEFAULT_DIRECTORY])
}

/// Returns the first directory of containerd's `config_path`.
fn containerd(root: &NodeRoot) -> Result<String, Obstacle> {
    let (mut config_path, mut has_mirrors) = (None, false);
    for table in configurations(root)? {
        let registries = PLUGINS.iter().filter_map(|plugin| {
            let plugin = table.get("plugins")?.get(plugin)?;
            plugin.get("registry")?.as_table()
        });
        for registry in registries {
            let path = registry.get("config_path").and_then(Value::as_str);
            config_path = path
                .filter(|path| !path.is_empty())
                .map(str::to_owned)
                .or(config_path);
            has_mirrors |= ["mirrors", "configs"].iter().any(|key| {
                let table = registry.get(*key).and_then(Value::as_table);
                table.is_some_and(|table| !table.is_empty())
            });
        }
    }
    let directory = config_path.as_deref().and_then(|path| path.split(':').next());
    match directory.map(|path| path.trim_matches('/')) {
        Some(directory) if !directory.is_empty() => Ok(directory.to_owned()),
        _ if has_mirrors => Err(Obstacle::InlineMirrors(INLINE.to_owned())),
        _ => Err(Obstacle::ConfigPathMissing(ADVICE.to_owned())),
    }
}

/// Returns the main file and those that it imports, in the order in which they override each other.
fn configurations(root: &NodeRoot) -> Result<Vec<Table>, Obstacle> {
    let mut paths = VecDeque::from([format!("{CONTAINERD}/config.toml")]);
    let (mut seen, mut tables) = (Vec::new(), Vec::new());
    while let Some(path) = paths.pop_front() {
        if seen.contains(&path) || seen.len() == MAX_FILES {
            continue;
        }
        let unreadable = |error: &dyn std::fmt::Display| {
            Obstacle::Unsupported(format!(
                "containerd's configuration /{path} can't be read: {error}"
            ))
        };
        let content = root.read(&path).map_err(|error| unreadable(&error))?;
        let text = String::from_utf8(content.unwrap_or_default()).map_err(|error| unreadable(&error))?;
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| unreadable(&error.message()))?;
        let imports = table.get("imports").and_then(Value::as_array);
        for import in imports.into_iter().flatten().filter_map(Value::as_str) {
            paths.extend(expand(root, &path, import));
        }
        seen.push(path);
        tables.push(table);
    }
    Ok(tables)
}

/// Returns the files of an import, which may be relative to the importing file and have `*` in its last part.
fn expand(root: &NodeRoot, parent: &str, import: &str) -> Vec<String> {
    let path = match import.strip_prefix('/') {
        Some(absolute) => absolute.to_owned(),
        None => format!(
            "{}/{import}",
            parent.rsplit_once('/').map_or("", |(directory, _)| directory)
        ),
    };
    let Some((directory, name)) = path.rsplit_once('/') else {
        return vec![path];
    };
    let Some((start, end)) = name.split_once('*') else {
        return vec![path];
    };
    let names = root.names(directory).ok().flatten().unwrap_or_default();
    let fits = |name: &String| {
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let names = names.into_iter().filter(fits);
    names.map(|name| format!("{directory}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use test_case::test_case;

    use super::*;

    fn detection(files: &[(&str, &str)]) -> Detection {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        detect(&NodeRoot::open(directory.path()).unwrap(), None)
    }

    const OLD: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    const NEW: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n";
    const MIRRORS: &str = "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n";

    #[test_case(&[("etc/containerd/config.toml", OLD)] => Some("etc/containerd/certs.d".to_owned()); "containerd 1")]
    #[test_case(&[("etc/containerd/config.toml", NEW)] => Some("etc/containerd/certs.d".to_owned()); "containerd 2")]
    #[test_case(&[("etc/containerd/config.toml", "imports = [\"conf.d/*.toml\"]"), ("etc/containerd/conf.d/a.toml", NEW)]
        => Some("etc/containerd/certs.d".to_owned()); "relative import")]
    #[test_case(&[("etc/containerd/config.toml", "imports = [\"/etc/containerd/b.toml\"]\n"), ("etc/containerd/b.toml", OLD)]
        => Some("etc/containerd/certs.d".to_owned()); "absolute import")]
    #[test_case(&[("etc/containerd/config.toml", "imports = [\"config.toml\", \"../../../x\", \"none.toml\"]\n")] => None; "imports in a circle and outside")]
    #[test_case(&[("etc/containerd/config.toml", "version = 2\n")] => None; "no config path")]
    #[test_case(&[("etc/containerd/certs.d/a", "")] => None; "no configuration")]
    #[test_case(&[("var/lib/rancher/k3s/agent/etc/containerd/config.toml", "")]
        => Some("var/lib/rancher/k3s/agent/etc/containerd/certs.d".to_owned()); "k3s")]
    #[test_case(&[("var/lib/rancher/rke2/agent/etc/containerd/config.toml", ""), ("etc/containerd/config.toml", OLD)]
        => Some("var/lib/rancher/rke2/agent/etc/containerd/certs.d".to_owned()); "RKE2")]
    #[test_case(&[("etc/cri/conf.d/20-customization.part", ""), ("etc/containerd/config.toml", "")]
        => Some("etc/cri/conf.d/hosts".to_owned()); "Talos")]
    #[test_case(&[("etc/crio/crio.conf", "")] => None; "CRI-O")]
    fn runtime_has_a_directory_or_none(files: &[(&str, &str)]) -> Option<String> {
        detection(files).directory.ok()
    }

    #[test]
    fn obstacles_name_the_lines_to_add() {
        let config = |text| {
            detection(&[("etc/containerd/config.toml", text)])
                .directory
                .unwrap_err()
        };
        assert!(
            matches!(config(""), Obstacle::ConfigPathMissing(advice) if advice.contains("config_path = "))
        );
        assert!(matches!(config(MIRRORS), Obstacle::InlineMirrors(advice) if advice.contains("hosts.toml")));
        assert!(matches!(config("a = ["), Obstacle::Unsupported(advice) if advice.contains("config.toml")));
    }
}
