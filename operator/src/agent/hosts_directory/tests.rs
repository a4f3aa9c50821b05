use std::{fs, os::unix::fs::symlink, path::Path};

use test_case::test_case;

use super::*;
use crate::agent::tests::{root, tree};

const CERTS: &str = "etc/containerd/certs.d";

fn files(text: &str) -> HostFiles {
    HostFiles {
        mirror: "mirrors/hub".to_owned(),
        authority: "10.0.0.1:5000".to_owned(),
        hosts_toml: text.to_owned(),
        registries_conf: BTreeMap::new(),
        certificates: Some("PEM\n".to_owned()),
    }
}

#[test]
fn written_files_are_removed_byte_for_byte() {
    let (directory, root) = root();
    let foreign = directory.path().join(CERTS).join("quay.io");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("hosts.toml"), "server = \"https://quay.io\"\n").unwrap();
    fs::create_dir(directory.path().join(CERTS).join("empty.example")).unwrap();
    let before = tree(directory.path());
    let hosts = HostsDirectory::new(&root, CERTS, false);
    for host in [
        "docker.io",
        "registry.example:5000",
        "empty.example",
        "[2001:db8::1]:5000",
    ] {
        hosts.write(host, &files("a")).unwrap();
        assert!(hosts.has(host));
    }
    assert!(hosts.clear().is_empty());
    assert_eq!(tree(directory.path()), before);
}

#[test]
fn directory_that_the_agent_created_is_removed() {
    let (directory, root) = root();
    fs::create_dir_all(directory.path().join("etc/containerd")).unwrap();
    let before = tree(directory.path());
    let hosts = HostsDirectory::new(&root, CERTS, false);
    hosts.write("docker.io", &files("a")).unwrap();
    assert!(hosts.clear().is_empty());
    assert_eq!(tree(directory.path()), before);
}

#[test]
fn unchanged_files_are_not_written_again() {
    let (directory, root) = root();
    let hosts = HostsDirectory::new(&root, CERTS, false);
    hosts.write("docker.io", &files("a")).unwrap();
    let file = directory.path().join(CERTS).join("docker.io/hosts.toml");
    let first = fs::metadata(&file).unwrap().modified().unwrap();
    hosts.write("docker.io", &files("a")).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), first);
    hosts.write("docker.io", &files("b")).unwrap();
    assert!(fs::read_to_string(file).unwrap().ends_with("\nb"));
}

#[test]
fn hosts_that_are_not_kept_are_removed() {
    let (directory, root) = root();
    let hosts = HostsDirectory::new(&root, CERTS, false);
    for host in ["docker.io", "quay.io"] {
        hosts.write(host, &files("a")).unwrap();
    }
    assert!(
        hosts
            .remove_others(&BTreeSet::from(["quay.io"]), &BTreeSet::new())
            .is_empty()
    );
    assert!(hosts.has("quay.io") && !hosts.has("docker.io"));
    assert!(!directory.path().join(CERTS).join("docker.io").exists());
}

/// Files that decide about a host, by which another program would lose its configuration.
#[test_case("docker.io/hosts.toml"; "foreign hosts.toml")]
#[test_case("docker.io/registry-mirror.pem"; "foreign certificates")]
#[test_case("docker.io/ca.crt"; "CA for Docker")]
#[test_case("docker.io/client.cert"; "client certificate for Docker")]
#[test_case("docker.io/hosts.toml/a"; "directory in place of a file")]
fn files_of_others_are_a_conflict(path: &str) {
    let (directory, root) = root();
    let path = directory.path().join(CERTS).join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "theirs").unwrap();
    let before = tree(directory.path());
    let hosts = HostsDirectory::new(&root, CERTS, false);
    let error = hosts.write("docker.io", &files("a")).unwrap_err();
    assert!(matches!(error, WriteError::Conflict(_)), "{error}");
    assert!(hosts.clear().is_empty());
    assert_eq!(tree(directory.path()), before);
}

#[test]
fn preferred_directory_of_a_port_is_a_conflict() {
    let (directory, root) = root();
    fs::create_dir_all(directory.path().join(CERTS).join("a.example_5000_")).unwrap();
    let error = HostsDirectory::new(&root, CERTS, false).write("a.example:5000", &files("a"));
    assert!(matches!(error, Err(WriteError::Conflict(_))), "{error:?}");
}

/// A link at each place: the directory of a host, its files, and the directory itself.
#[test]
fn links_are_neither_followed_nor_removed() {
    for link in [
        "docker.io",
        "docker.io/hosts.toml",
        "docker.io/registry-mirror.pem",
        "",
    ] {
        let (directory, root) = root();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(
            elsewhere.path().join("hosts.toml"),
            "# Written by registry-mirror agent",
        )
        .unwrap();
        let path = directory.path().join(CERTS).join(link);
        let path = Path::new(path.to_str().unwrap().trim_end_matches('/')).to_owned();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let target = if link.contains('/') {
            elsewhere.path().join("hosts.toml")
        } else {
            elsewhere.path().to_owned()
        };
        symlink(&target, &path).unwrap();
        let before = (tree(directory.path()), tree(elsewhere.path()));
        let hosts = HostsDirectory::new(&root, CERTS, false);
        assert!(hosts.write("docker.io", &files("a")).is_err(), "{link}");
        hosts.clear();
        assert_eq!((tree(directory.path()), tree(elsewhere.path())), before, "{link}");
    }
}

#[test]
fn marker_in_a_foreign_directory_leaves_other_files() {
    let (directory, root) = root();
    let hosts = HostsDirectory::new(&root, CERTS, false);
    hosts.write("docker.io", &files("a")).unwrap();
    let theirs = directory.path().join(CERTS).join("docker.io/notes.txt");
    fs::write(&theirs, "theirs").unwrap();
    hosts.remove("docker.io").unwrap();
    assert!(theirs.exists() && !hosts.has("docker.io"));
}

/// The file of another program is back when the agent's is gone, also after a process that was killed.
#[test_case(false; "written")]
#[test_case(true; "written after a killed process")]
fn foreign_file_is_kept_and_restored(is_killed: bool) {
    let (directory, root) = root();
    let host = directory.path().join(CERTS).join("docker.io");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("hosts.toml"), "theirs\n").unwrap();
    let before = tree(directory.path());
    if is_killed {
        fs::hard_link(host.join("hosts.toml"), host.join("hosts.toml.before")).unwrap();
    }
    let hosts = HostsDirectory::new(&root, CERTS, true);
    for text in ["a", "b"] {
        hosts.write("docker.io", &files(text)).unwrap();
        assert!(hosts.has("docker.io"));
        let kept = fs::read_to_string(host.join("hosts.toml.before")).unwrap();
        assert_eq!(kept, "theirs\n");
    }
    // Without the option, too.
    assert!(HostsDirectory::new(&root, CERTS, false).clear().is_empty());
    assert_eq!(tree(directory.path()), before);
}

/// A second cleanup removes what a killed process left: an unfinished file, and a directory at each step of its creation
/// and removal.
#[test]
fn leftovers_of_a_killed_process_are_removed() {
    let (directory, root) = root();
    let certs = directory.path().join(CERTS);
    fs::create_dir_all(certs.join("empty.example")).unwrap();
    let before = tree(directory.path());
    let hosts = HostsDirectory::new(&root, CERTS, false);
    let leave: [(&str, &[&str]); 5] = [
        (".registry-mirror.dir", &[]),
        (".registry-mirror.dir", &[".registry-mirror"]),
        (".registry-mirror.dir", &[".registry-mirror.tmp"]),
        ("docker.io", &[".registry-mirror", ".registry-mirror.tmp"]),
        ("empty.example", &[".registry-mirror.tmp"]),
    ];
    for (name, files) in leave {
        fs::create_dir_all(certs.join(name)).unwrap();
        for file in files {
            fs::write(certs.join(name).join(file), "").unwrap();
        }
        assert!(hosts.clear().is_empty());
        assert_eq!(tree(directory.path()), before, "{name} {files:?}");
    }
}

#[test]
fn foreign_file_does_not_replace_a_kept_one() {
    let (directory, root) = root();
    let host = directory.path().join(CERTS).join("docker.io");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("hosts.toml"), "new\n").unwrap();
    fs::write(host.join("hosts.toml.before"), "old\n").unwrap();
    let before = tree(directory.path());
    let hosts = HostsDirectory::new(&root, CERTS, true);
    assert!(matches!(
        hosts.write("docker.io", &files("a")),
        Err(WriteError::Conflict(_))
    ));
    assert!(hosts.clear().is_empty());
    assert_eq!(tree(directory.path()), before);
}

/// Returns the message of the conflict about `docker.io`.
fn conflict(root: &NodeRoot) -> String {
    let error = HostsDirectory::new(root, CERTS, true).write("docker.io", &files("a"));
    match error {
        Err(error @ WriteError::Conflict(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test_case("FIFO" => "is not a regular file"; "FIFO")]
#[test_case("link" => "is a symbolic link, not followed"; "link")]
#[test_case("directory" => "is a directory, not a file"; "directory")]
#[test_case("large file" => "is larger than 4 MiB"; "large file")]
fn entry_in_place_of_hosts_toml_is_named(kind: &str) -> String {
    let (directory, root) = root();
    let file = directory.path().join(CERTS).join("docker.io/hosts.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    match kind {
        "FIFO" => rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RWXU).unwrap(),
        "link" => symlink("elsewhere", &file).unwrap(),
        "directory" => fs::create_dir(&file).unwrap(),
        _ => fs::File::create(&file).unwrap().set_len(5 << 20).unwrap(),
    }
    let message = conflict(&root);
    let rest = message.strip_prefix("/etc/containerd/certs.d/docker.io/hosts.toml ");
    let fault = rest.and_then(|rest| rest.split_once(": "));
    fault.map_or(message.clone(), |(fault, _)| fault.to_owned())
}

#[test]
fn linked_directory_of_a_host_is_named() {
    let (directory, root) = root();
    fs::create_dir_all(directory.path().join(CERTS)).unwrap();
    symlink("elsewhere", directory.path().join(CERTS).join("docker.io")).unwrap();
    let message = conflict(&root);
    let expected = "/etc/containerd/certs.d/docker.io is a symbolic link, not followed";
    assert!(message.starts_with(expected), "{message}");
}
