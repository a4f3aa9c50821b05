//! CRI-O, podman and skopeo: `/etc/containers/registries.conf.d/`.

use crds::node_configuration::Fallback;
use kube::ResourceExt;

use super::{NodeConfigError, NodeFile, NodeFiles, Source};

/// Returns the drop-in and, for https, the CA certificates where these programs read them.
pub(super) fn files(source: &Source<'_>) -> Result<NodeFiles, NodeConfigError> {
    let text = registries_conf(source).ok_or(NodeConfigError::Unsupported(
        "CRI-O and podman can't use an IPv6 address in image names: give the mirror an IPv4 address or a name \
         (--endpoint)",
    ))?;
    let name = source.mirror.name_any();
    let drop_in = format!("etc/containers/registries.conf.d/50-registry-mirror-{name}.conf");
    let authority = &source.endpoint.authority;
    let ca = source.ca_file(&format!("etc/containers/certs.d/{authority}"));
    Ok(NodeFiles {
        files: ca.into_iter().chain([NodeFile::new(drop_in, text)]).collect(),
        notes: unmirrored(source),
    })
}

/// Returns a note about each registry that these programs can't pull through the mirror.
fn unmirrored(source: &Source<'_>) -> Vec<String> {
    let hosts = source.hosts.iter().enumerate();
    let without = hosts.filter(|(index, host)| place(source, host, *index == 0).is_none());
    let consequence = match source.fallback {
        Fallback::Allow => "nodes pull from it directly",
        Fallback::Never => "nodes can't pull from it",
    };
    without
        .map(|(_, host)| format!("the mirror can't be named for {host} in image names: {consequence}"))
        .collect()
}

/// Returns the text of the drop-in, if it has an entry. Requests of these programs name no registry, therefore the path
/// has its host. A registry for which they can't use the mirror has no entry with fallback `Allow`, and is blocked with
/// `Never`.
pub(super) fn registries_conf(source: &Source<'_>) -> Option<String> {
    let file: String = entries(source).into_iter().map(|(_, entry)| entry).collect();
    (!file.is_empty()).then_some(file)
}

/// Returns the entries of the drop-in with their registries.
pub(super) fn entries<'a>(source: &Source<'a>) -> Vec<(&'a str, String)> {
    let entries = source.hosts.iter().enumerate().filter_map(|(index, host)| {
        let entry = format!("[[registry]]\nprefix = \"{host}\"\n");
        let itself = format!("location = \"{host}\"\n");
        let text = match (location(source, host, index == 0), source.fallback) {
            (Some(location), Fallback::Allow) => {
                Some(format!("{entry}{itself}\n[[registry.mirror]]\n{location}\n"))
            }
            (Some(location), Fallback::Never) => Some(format!("{entry}{location}\n")),
            (None, Fallback::Allow) => None,
            (None, Fallback::Never) => Some(format!("{entry}{itself}blocked = true\n\n")),
        };
        Some((*host, text?))
    });
    entries.collect()
}

fn location(source: &Source<'_>, host: &str, is_default: bool) -> Option<String> {
    let place = place(source, host, is_default)?;
    Some(format!(
        "location = \"{place}\"\ninsecure = {}\n",
        source.endpoint.is_plain()
    ))
}

/// Returns the place of a registry on the mirror for image names, which have no IPv6 address, and no port in the path.
pub(super) fn place(source: &Source<'_>, host: &str, is_default: bool) -> Option<String> {
    let authority = &source.endpoint.authority;
    match host.contains(':') {
        _ if source.endpoint.is_ipv6() => None,
        false => Some(format!("{authority}/{host}")),
        true if is_default => Some(authority.clone()),
        true => None,
    }
}
