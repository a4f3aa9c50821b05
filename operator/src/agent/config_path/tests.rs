use std::path::Path;

use tempfile::TempDir;
use test_case::test_case;

use super::*;

const MISSING: &str = "the advice";
const V3: &str = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
const V2: &str = "version = 2\nimports = [\"conf.d/*.toml\"]\n\
    [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause:1\"\n\
    [plugins.\"io.containerd.grpc.v1.cri\".registry]\nmax_retries = 3\n";
const TABLE: &str = "Num       RefCount Protocol Flags    Type St Inode Path\n\
    0000000000000000: 00000002 00000000 00010000 0001 01 111 /run/containerd/containerd.sock\n\
    0000000000000000: 00000003 00000000 00000000 0001 03 222 /run/containerd/containerd.sock\n\
    0000000000000000: 00000002 00000000 00010000 0001 01 333 /run/containerd/containerd.sock.ttrpc\n";

fn root(config: &str) -> (TempDir, NodeRoot) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("etc/containerd")).unwrap();
    fs::write(directory.path().join("etc/containerd/config.toml"), config).unwrap();
    let root = NodeRoot::open(directory.path()).unwrap();
    (directory, root)
}

fn set(root: &NodeRoot, sockets: &str) -> Result<String, Obstacle> {
    let found = match crate::agent::detect::detect(root, None).directory {
        Err(Obstacle::ConfigPathMissing(_)) => Err(Obstacle::ConfigPathMissing(MISSING.to_owned())),
        found => found,
    };
    set_for(root, found, sockets)
}

fn written(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join(FILE)).ok()
}

#[test_case(V3 => true; "version 3")]
#[test_case(V2 => true; "version 2")]
#[test_case("version = 3\n" => false; "no imports")]
#[test_case("version = 3\nimports = [\"/etc/containerd/other.d/*.toml\"]\n" => false; "other imports")]
#[test_case("version = 1\nimports = [\"conf.d/*.toml\"]\n" => false; "version 1")]
#[test_case("imports = [\"conf.d/*.toml\"]\n" => false; "no version")]
#[test_case("version = 3\nimports = [\"conf.d/*.toml\"]\n[plugins.\"io.containerd.cri.v1.images\".registry.mirrors.a]\nendpoint = []\n" => false; "inline mirrors")]
fn drop_in_needs_an_import(config: &str) -> bool {
    let (directory, root) = root(config);
    let obstacle = set(&root, "1").unwrap_err();
    let drop_in = written(directory.path());
    assert_eq!(
        drop_in.is_some(),
        obstacle == Obstacle::ConfigPathMissing(RESTART.to_owned())
    );
    drop_in.is_some()
}

/// containerd 1.7 replaces a plugin as a whole: the drop-in repeats its other keys.
#[test]
fn drop_in_of_version_2_repeats_the_plugin() {
    let (directory, root) = root(V2);
    set(&root, "1").unwrap_err();
    let text = written(directory.path()).unwrap();
    let table: Table = text.parse().unwrap();
    let plugin = &table["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(plugin["sandbox_image"].as_str(), Some("pause:1"));
    assert_eq!(plugin["registry"]["max_retries"].as_integer(), Some(3));
    assert_eq!(plugin["registry"]["config_path"].as_str(), Some(CONFIG_PATH));
}

/// Until containerd has other sockets, it did not read the file.
#[test]
fn drop_in_counts_after_a_restart_of_containerd() {
    let (directory, root) = root(V3);
    for _ in 0..2 {
        assert_eq!(
            set(&root, "1"),
            Err(Obstacle::ConfigPathMissing(RESTART.to_owned()))
        );
    }
    let before = written(directory.path());
    assert_eq!(set(&root, "2"), Ok("etc/containerd/certs.d".to_owned()));
    assert_eq!(written(directory.path()), before);
}

#[test]
fn removed_drop_in_leaves_no_directory() {
    let (directory, root) = root(V3);
    set(&root, "1").unwrap_err();
    remove(&root).unwrap();
    assert!(!directory.path().join(DIRECTORY).exists());
    fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
    fs::write(directory.path().join(FILE), "theirs").unwrap();
    remove(&root).unwrap();
    assert_eq!(written(directory.path()).unwrap(), "theirs");
}

/// The drop-in must not override `config_path` of the administrator, and containerd does not start with both it and mirrors.
#[test_case("config_path = \"/etc/containerd/hosts.d\"\n" => Some("etc/containerd/hosts.d".to_owned()); "config path")]
#[test_case("[plugins.\"io.containerd.cri.v1.images\".registry.mirrors.a]\nendpoint = []\n" => None; "inline mirrors")]
fn drop_in_gives_way_to_the_configuration(registry: &str) -> Option<String> {
    let (directory, root) = root(V3);
    set(&root, "1").unwrap_err();
    let config = format!("{V3}[plugins.\"io.containerd.cri.v1.images\".registry]\n{registry}");
    fs::write(directory.path().join("etc/containerd/config.toml"), config).unwrap();
    let found = set(&root, "1");
    assert_eq!(written(directory.path()), None);
    found.ok()
}

/// A file that another program wrote in place of the drop-in stays.
#[test]
fn foreign_drop_in_is_not_replaced() {
    let (directory, root) = root(V3);
    fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
    fs::write(directory.path().join(FILE), "# theirs\n").unwrap();
    assert!(matches!(set(&root, "1"), Err(Obstacle::Unsupported(_))));
    assert_eq!(written(directory.path()).unwrap(), "# theirs\n");
}

#[test]
fn sockets_are_those_on_which_containerd_listens() {
    assert_eq!(sockets(TABLE), "111");
    assert_eq!(sockets(""), "");
}
