use std::{fs, os::unix::fs::symlink};

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
const RELOADS: &str = "[crio.image]\nauto_reload_registries = true\n";
const MIRRORS: &str =
    "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n";

#[test_case(&[("etc/containerd/config.toml", OLD)] => Some("etc/containerd/certs.d".to_owned()); "containerd 1")]
#[test_case(&[("etc/containerd/config.toml", NEW)] => Some("etc/containerd/certs.d".to_owned()); "containerd 2")]
#[test_case(&[("etc/containerd/config.toml", "imports = [\"conf.d/*.toml\"]"), ("etc/containerd/conf.d/a.toml", NEW)]
    => Some("etc/containerd/certs.d".to_owned()); "relative import")]
#[test_case(&[("etc/containerd/config.toml", "imports = [\"/etc/containerd/b.toml\"]\n"), ("etc/containerd/b.toml", OLD)]
    => Some("etc/containerd/certs.d".to_owned()); "absolute import")]
#[test_case(&[("etc/containerd/config.toml", "imports = [\"config.toml\", \"../../../x\", \"none.toml\"]\n")] => None; "imports in a circle and outside")]
#[test_case(&[("etc/containerd/config.toml", "imports = [\"c*.d/[a-d]*.toml\"]\n"), ("etc/containerd/conf.d/b.toml", OLD)]
    => Some("etc/containerd/certs.d".to_owned()); "import by a class")]
#[test_case(&[("etc/containerd/config.toml", "imports = [\"/*/**/b.toml\"]\n"), ("etc/containerd/b.toml", OLD)]
    => Some("etc/containerd/certs.d".to_owned()); "import by two stars")]
#[test_case(&[("etc/containerd/config.toml", "imports = [\"[a-d].toml\"]\n"), ("etc/containerd/b.toml", OLD)]
    => None; "class without a star")]
#[test_case(&[("etc/containerd/config.toml", "version = 2\n")] => None; "no config path")]
#[test_case(&[("etc/containerd/certs.d/a", "")] => None; "no configuration")]
#[test_case(&[("var/lib/rancher/k3s/agent/etc/containerd/config.toml", "")]
    => Some("var/lib/rancher/k3s/agent/etc/containerd/certs.d".to_owned()); "k3s")]
#[test_case(&[("var/lib/rancher/rke2/agent/etc/containerd/config.toml", ""), ("etc/containerd/config.toml", OLD)]
    => Some("var/lib/rancher/rke2/agent/etc/containerd/certs.d".to_owned()); "RKE2")]
#[test_case(&[("etc/cri/conf.d/20-customization.part", ""), ("etc/containerd/config.toml", "")]
    => None; "Talos")]
#[test_case(&[("etc/crio/crio.conf", "")] => None; "CRI-O")]
#[test_case(&[("etc/crio/crio.conf", RELOADS)] => Some("etc/containers/registries.conf.d".to_owned()); "CRI-O that reloads")]
#[test_case(&[("etc/crio/crio.conf.d/10.conf", RELOADS), ("etc/crio/crio.conf.d/20.conf", "[crio.image]\n")]
    => Some("etc/containers/registries.conf.d".to_owned()); "CRI-O with drop-ins")]
#[test_case(&[("etc/crio/crio.conf", RELOADS), ("etc/crio/crio.conf.d/10.conf", "[crio.image]\nauto_reload_registries = false\n")]
    => None; "CRI-O with a later drop-in")]
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
    assert!(matches!(config(""), Obstacle::ConfigPathMissing(advice) if advice.contains("config_path = ")));
    assert!(matches!(config(MIRRORS), Obstacle::InlineMirrors(advice) if advice.contains("hosts.toml")));
    let pattern = "imports = ['conf.d/[a*.toml']";
    assert!(matches!(config(pattern), Obstacle::Unsupported(advice) if advice.contains("no valid pattern")));
    assert!(
        matches!(config("\u{feff}version = 3"), Obstacle::Unsupported(advice) if advice.contains("byte order mark"))
    );
    assert!(matches!(config("a = ["), Obstacle::Unsupported(advice) if advice.contains("config.toml")));
}

const PATH_3: &str =
    "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/hosts.d'\n";
const PATH_2: &str =
    "[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/hosts.d'\n";
const MIRRORS_3: &str = "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\n";
const TLS: &str = "[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'a.example'.tls]\nca_file = '/ca'\n";
const AUTH: &str =
    "[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'a.example'.auth]\nusername = 'a'\n";

/// containerd starts without its CRI plugin if a configuration has both `config_path` and mirrors or TLS settings.
#[test_case(PATH_3, MIRRORS_3 => Some("registry.mirrors"); "mirrors in an import")]
#[test_case(MIRRORS_3, PATH_3 => Some("registry.mirrors"); "path in an import")]
#[test_case(&format!("{PATH_3}{MIRRORS_3}"), "" => Some("registry.mirrors"); "version 3")]
#[test_case(&format!("{PATH_2}{MIRRORS}"), "" => Some("registry.mirrors"); "version 2")]
#[test_case(&format!("{PATH_2}{TLS}"), "" => Some("registry.configs with tls"); "TLS settings")]
#[test_case(&format!("{PATH_2}{AUTH}"), "" => None; "credentials only")]
#[test_case(&format!("{PATH_3}[plugins.'io.containerd.cri.v1.images'.registry.mirrors]\n"), "" => None; "empty table")]
fn inline_mirrors_with_config_path_are_refused(main: &str, import: &str) -> Option<&'static str> {
    let main = format!("imports = ['conf.d/*.toml']\n{main}");
    let files = [
        ("etc/containerd/config.toml", main.as_str()),
        ("etc/containerd/conf.d/a.toml", import),
    ];
    match detection(&files).directory {
        Ok(directory) => {
            assert_eq!(directory, "etc/containerd/hosts.d");
            None
        }
        Err(Obstacle::InlineMirrors(message)) => {
            let keys = ["registry.mirrors", "registry.configs with tls"];
            keys.into_iter()
                .find(|key| message.contains(&format!(".toml has {key}, and containerd")))
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test_case("/etc/x/../certs.d" => None; "parent")]
#[test_case("/" => None; "root directory")]
#[test_case("/etc//x/./certs.d/" => Some("etc/x/certs.d".to_owned()); "empty parts")]
fn config_path_is_normalized_or_unsupported(path: &str) -> Option<String> {
    let config = format!("[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{path}'\n");
    let found = detection(&[("etc/containerd/config.toml", &config)]).directory;
    let directory = tempfile::tempdir().unwrap();
    let given = detect(&NodeRoot::open(directory.path()).unwrap(), Some(path)).directory;
    assert_eq!(found.is_ok(), given.is_ok());
    if let Err(error) = &found {
        assert!(
            matches!(error, Obstacle::Unsupported(message) if message.contains(&format!("config_path {path:?}"))),
            "{error:?}"
        );
    }
    found.ok()
}

#[test_case("config.toml"; "main file")]
#[test_case("conf.d/a.toml"; "import")]
fn linked_configuration_is_named(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("etc/containerd");
    fs::create_dir_all(path.join("conf.d")).unwrap();
    if name != "config.toml" {
        fs::write(path.join("config.toml"), "imports = ['conf.d/*.toml']\n").unwrap();
    }
    fs::write(path.join("target"), NEW).unwrap();
    symlink(path.join("target"), path.join(name)).unwrap();
    let found = detect(&NodeRoot::open(directory.path()).unwrap(), None).directory;
    let expected = format!("/etc/containerd/{name} is a symbolic link, not followed");
    assert!(
        matches!(&found, Err(Obstacle::Unsupported(message)) if message.contains(&expected)),
        "{found:?}"
    );
}
