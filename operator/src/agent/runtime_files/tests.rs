use std::{fs, os::unix::fs::symlink};

use proptest::prelude::*;

use super::*;
use crate::agent::{tests::tree, watch::is_directory_name};

const CERTS: &str = "etc/containerd/certs.d";
const DROP_INS: &str = "etc/containers/registries.conf.d";
/// Parts of names that lead elsewhere, or nowhere.
const PARTS: [&str; 22] = [
    "..",
    ".",
    "/",
    "//",
    "\\",
    "\0",
    "\n",
    "~",
    "*",
    "%2e%2e",
    "é",
    "\u{202e}",
    "‥",
    "／",
    "docker.io",
    "hosts.toml",
    ".registry-mirror",
    "link",
    ":5000",
    "[::1]",
    "-",
    "_default",
];

fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => prop::sample::select(PARTS.as_slice()).prop_map(str::to_owned),
        1 => (200..300_usize).prop_map(|length| "a".repeat(length)),
        1 => any::<String>(),
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Names of a spec or of a `ConfigMap`, with links in the directory that lead out of it.
    #[test]
    fn no_name_leads_outside_of_the_directory(host in name(), mirror in name(), authority in name()) {
        let directory = tempfile::tempdir().unwrap();
        let (node, outside) = (directory.path().join("node"), directory.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("hosts.toml"), "theirs").unwrap();
        for (runtime, path) in [(RuntimeKind::Containerd, CERTS), (RuntimeKind::Crio, DROP_INS)] {
            fs::create_dir_all(node.join(path)).unwrap();
            symlink(&outside, node.join(path).join("link")).unwrap();
            fs::create_dir(node.join(path).join("docker.io")).unwrap();
            symlink(outside.join("hosts.toml"), node.join(path).join("docker.io/hosts.toml")).unwrap();
            let (before, elsewhere) = (tree(&node), tree(&outside));
            let root = NodeRoot::open(&node).unwrap();
            let files = HostFiles {
                mirror: mirror.clone(),
                authority: authority.clone(),
                hosts_toml: "text".to_owned(),
                registries_conf: BTreeMap::from([(host.clone(), "text".to_owned())]),
                certificates: Some("PEM".to_owned()),
            };
            let directory = open(&root, runtime, path, true);
            // An error, or a file inside of the directory.
            let _ = directory.write(&host, &files);
            prop_assert_eq!(tree(&outside), elsewhere.clone());
            for (name, _) in tree(&node) {
                let is_known = before.iter().any(|(known, _)| *known == name);
                prop_assert!(is_known || name.contains("/certs.d") || name.contains(path), "{}", name);
            }
            directory.clear();
            prop_assert_eq!(tree(&outside), elsewhere);
            if runtime == RuntimeKind::Containerd && is_directory_name(&host) {
                prop_assert_eq!(tree(&node), before);
            }
        }
    }
}
