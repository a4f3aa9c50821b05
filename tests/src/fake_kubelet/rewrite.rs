//! The translation of a container's view to this machine: its mount paths become directories of the host, and it
//! listens on the Pod's address instead of on all.

use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A container's mount paths with the directories that stand for them.
#[derive(Debug, Default)]
pub(super) struct Mounts(Vec<(String, PathBuf)>);

impl Mounts {
    pub(super) fn new(mut mounts: Vec<(String, PathBuf)>) -> Self {
        // The longest first, as mounts may lie in each other.
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self(mounts)
    }

    /// Replaces mount paths wherever they begin a path in `text`.
    fn rewrite(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let begins = !out.ends_with(is_of_path);
            if let Some((length, directory)) = begins.then(|| self.at_start(rest)).flatten() {
                out.push_str(directory);
                rest = &rest[length..];
            } else {
                out.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
        out
    }

    /// Returns the mount that `text` starts with, as the length of its path and its directory.
    fn at_start(&self, text: &str) -> Option<(usize, &str)> {
        let mut mounts = self.0.iter();
        let (path, directory) = mounts.find(|(path, _)| {
            text.strip_prefix(path.as_str())
                .is_some_and(|rest| rest.starts_with('/') || !rest.starts_with(is_of_path))
        })?;
        Some((path.len(), directory.to_str()?))
    }
}

fn is_of_path(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_')
}

/// Returns an address to listen on, whole or as the value of a `--flag=`, with the Pod's own in place of all addresses
/// and of its loopback address.
fn listen_on(text: &str, address: Ipv4Addr) -> Option<String> {
    let (flag, value) = match text.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') => (&text[..=flag.len()], value),
        _ => ("", text),
    };
    let (host, port) = value.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    matches!(host, "" | "0.0.0.0" | "[::]" | "127.0.0.1").then(|| format!("{flag}{address}:{port}"))
}

/// Returns an argument or the value of a variable, as the process on this machine needs it.
pub(super) fn for_host(text: &str, mounts: &Mounts, address: Ipv4Addr) -> String {
    listen_on(text, address).unwrap_or_else(|| mounts.rewrite(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(127, 1, 2, 3);

    /// Mount paths become directories only at the start of a path.
    #[test]
    fn mount_paths_become_directories_at_path_start() {
        let mounts = Mounts::new(vec![
            ("/etc/mirror".to_owned(), "/host/config".into()),
            ("/etc/mirror/keys".to_owned(), "/host/keys".into()),
        ]);
        for (text, wanted) in [
            ("/etc/mirror", "/host/config"),
            ("/etc/mirror/config.yml", "/host/config/config.yml"),
            ("/etc/mirror/keys/a", "/host/keys/a"),
            ("--config=/etc/mirror/c", "--config=/host/config/c"),
            ("a:/etc/mirror,/etc/mirror/keys", "a:/host/config,/host/keys"),
            ("/etc/mirrors", "/etc/mirrors"),
            ("/x/etc/mirror", "/x/etc/mirror"),
            ("ü", "ü"),
        ] {
            assert_eq!(for_host(text, &mounts, POD), wanted, "{text}");
        }
    }

    /// A wildcard listen address becomes the address of the pod.
    #[test]
    fn wildcard_listen_address_becomes_the_pods() {
        for (text, wanted) in [
            (":5000", "127.1.2.3:5000"),
            ("0.0.0.0:5000", "127.1.2.3:5000"),
            ("[::]:5000", "127.1.2.3:5000"),
            ("--addr=:80", "--addr=127.1.2.3:80"),
            ("127.0.0.1:5000", "127.1.2.3:5000"),
            (":port", ":port"),
            ("image:5000", "image:5000"),
            ("A=:80", "A=:80"),
        ] {
            assert_eq!(for_host(text, &Mounts::default(), POD), wanted, "{text}");
        }
    }
}
