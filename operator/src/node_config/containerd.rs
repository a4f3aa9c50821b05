//! containerd: `/etc/containerd/certs.d/HOST/hosts.toml`.

use std::time::Duration;

use crds::node_configuration::Fallback;

use super::{CA_FILE, NodeFile, NodeFiles, Source};

/// A comment for administrators: containerd 1.7 ignores the file, and pulls from the registry itself.
const NEEDS_CONTAINERD_2: &str =
    "# Needs containerd 2.0 or later: containerd 1.7 can't read the IPv6 address in the next line.\n";

/// Returns the key of a host's file in the `ConfigMap`: a key has no colons and no brackets.
pub(super) fn published_name(host: &str) -> String {
    format!("{}.hosts.toml", host.replace([':', '[', ']'], "_"))
}

/// Returns the directory of each host, with the CA certificates next to the file.
pub(super) fn files(source: &Source<'_>) -> NodeFiles {
    let files = source.hosts.iter().flat_map(|host| {
        let directory = format!("etc/containerd/certs.d/{host}");
        let hosts_toml = hosts_toml(source, CA_FILE);
        let ca = source.ca_file(&directory);
        ca.into_iter()
            .chain([NodeFile::new(format!("{directory}/hosts.toml"), hosts_toml)])
    });
    let mut notes = vec![
        "containerd reads these files only with config_path = \"/etc/containerd/certs.d\" in its configuration"
            .to_owned(),
    ];
    if source.endpoint.is_ipv6() && source.fallback == Fallback::Allow {
        notes.push(
            "containerd 1.7 can't read the mirror's IPv6 address and pulls from the registries".to_owned(),
        );
    }
    NodeFiles {
        files: files.collect(),
        notes,
    }
}

/// Returns the text of `hosts.toml`. containerd asks the `[host]` tables in order, then `server`, whose default is the
/// registry itself: with fallback `Never`, `server` is the mirror, too. `ca_file` is the path of the CA certificates,
/// relative to the file.
pub(super) fn hosts_toml(source: &Source<'_>, ca_file: &str) -> String {
    let endpoint = source.endpoint;
    let url = &endpoint.url;
    // Rounded up: 0 is no limit at all to containerd.
    let timeout = Duration::from(source.mirror.spec.node_configuration.dial_timeout)
        .as_nanos()
        .div_ceil(1_000_000);
    let ca = endpoint
        .certificates
        .as_ref()
        .map_or_else(String::new, |_| format!("ca = \"{ca_file}\"\n"));
    let options = format!("capabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"{timeout}ms\"\n{ca}");
    let host = format!("[host.\"{url}\"]\n{options}");
    let server = format!("server = \"{url}\"\n{options}");
    match source.fallback {
        Fallback::Allow if endpoint.is_ipv6() => format!("{NEEDS_CONTAINERD_2}{host}"),
        Fallback::Allow => host,
        // No containerd 1.7 reads brackets in a table's name, and 1.7.27 reads no file without [host].
        Fallback::Never if endpoint.is_ipv6() => format!("{server}\n[host]\n"),
        Fallback::Never => format!("{server}\n{host}"),
    }
}
