use std::fs;

use test_case::test_case;

use super::*;
use crate::agent::tests::root;

const DROP_INS: &str = "etc/containers/registries.conf.d";
const CA: &str = "etc/containers/certs.d/10.0.0.1:5000/ca.crt";

fn files(mirror: &str) -> HostFiles {
    let entry = |host: &str| (host.to_owned(), format!("[[registry]]\nprefix = \"{host}\"\n"));
    HostFiles {
        mirror: mirror.to_owned(),
        authority: "10.0.0.1:5000".to_owned(),
        hosts_toml: String::new(),
        registries_conf: BTreeMap::from(["docker.io", "quay.io"].map(entry)),
        certificates: Some("PEM\n".to_owned()),
    }
}

fn drop_in(host: &str) -> String {
    format!("{DROP_INS}/50-registry-mirror-{host}.conf")
}

#[test]
fn written_files_are_removed_with_their_directories() {
    let (directory, root) = root();
    let drop_ins = DropInDirectory::new(&root, DROP_INS);
    for host in ["docker.io", "quay.io"] {
        drop_ins.write(host, &files("a/b")).unwrap();
        assert!(drop_ins.has(host));
    }
    assert_eq!(drop_ins.mirrors(), BTreeSet::from(["a/b".to_owned()]));
    let text = fs::read_to_string(directory.path().join(drop_in("docker.io"))).unwrap();
    assert!(text.contains("prefix = \"docker.io\""), "{text}");

    // The CA stays as long as one drop-in needs it.
    let quay = BTreeSet::from(["quay.io"]);
    assert!(drop_ins.remove_others(&quay, &BTreeSet::new()).is_empty());
    assert!(!drop_ins.has("docker.io") && directory.path().join(CA).exists());
    let held = BTreeSet::from(["a/b".to_owned()]);
    assert!(drop_ins.remove_others(&BTreeSet::new(), &held).is_empty());
    assert!(drop_ins.has("quay.io") && directory.path().join(CA).exists());
    assert!(drop_ins.clear().is_empty());
    let left = fs::read_dir(directory.path().join("etc/containers")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test_case(&drop_in("docker.io"), ""; "file of the same name")]
#[test_case(CA, "PEM\n"; "CA")]
#[test_case("etc/containers/registries.conf", "[[registry]]\nprefix = \"docker.io\"\n"; "entry in the main file")]
#[test_case("etc/containers/registries.conf.d/a.conf", "[[registry]]\nlocation = \"docker.io\"\n"; "entry in a drop-in")]
fn foreign_file_is_a_conflict_and_stays(path: &str, text: &str) {
    let (directory, root) = root();
    let file = directory.path().join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text).unwrap();
    let drop_ins = DropInDirectory::new(&root, DROP_INS);
    let error = drop_ins.write("docker.io", &files("a/b")).unwrap_err();
    assert!(
        matches!(&error, WriteError::Conflict(message) if message.contains(path)),
        "{error}"
    );
    assert!(drop_ins.clear().is_empty());
    assert_eq!(fs::read_to_string(file).unwrap(), text);
}

#[test]
fn other_entries_are_no_conflict() {
    let (directory, root) = root();
    let file = directory.path().join("etc/containers/registries.conf");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let text = "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nprefix = \"docker.io/team\"\n";
    fs::write(file, text).unwrap();
    DropInDirectory::new(&root, DROP_INS)
        .write("docker.io", &files("a/b"))
        .unwrap();
}

#[test]
fn host_without_an_entry_is_unsupported() {
    let (directory, root) = root();
    let error = DropInDirectory::new(&root, DROP_INS).write("ghcr.io", &files("a/b"));
    assert!(matches!(error, Err(WriteError::Unsupported { .. })));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
