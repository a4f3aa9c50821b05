//! `registry-mirror node-config`: the files of each runtime, and the command that writes them.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use clap::ValueEnum;
use crds::RegistryMirror;
use operator::node_config::{self, NodeEndpoint, Runtime};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_case::test_case;

const CERTIFICATE: &str = include_str!("specs/authority.pem");

fn mirror(fallback: &str) -> RegistryMirror {
    let hosts = ["docker.io", "quay.io", "registry.example.com:5000"];
    let spec = json!({
        "upstreams": hosts.map(|host| json!({"host": host})),
        "storage": {"type": "Ephemeral"},
        "nodeConfiguration": {"fallback": fallback},
    });
    RegistryMirror::new("hub", serde_json::from_value(spec).unwrap())
}

fn endpoint(url: &str) -> NodeEndpoint {
    let certificates = url.starts_with("https").then(|| "PEM\n".to_owned());
    NodeEndpoint::parse(url, certificates).unwrap()
}

/// Returns the files and notes of one runtime, or its error, as one text.
fn text(runtime: Runtime, fallback: &str, url: &str) -> String {
    match node_config::files(runtime, &mirror(fallback), &endpoint(url)) {
        Ok(made) => {
            let files = made.files.iter();
            let files = files.map(|file| format!("==> {}\n{}", file.path, file.text));
            let notes = made.notes.iter().map(|note| format!("note: {note}\n"));
            files.chain(notes).collect()
        }
        Err(error) => format!("error: {error}\n"),
    }
}

#[test]
fn files_of_each_runtime_are_as_committed() {
    for runtime in Runtime::value_variants() {
        let name = runtime.to_possible_value().unwrap().get_name().to_owned();
        let cases = [
            ("Allow", "http://10.96.0.20:5000"),
            ("Allow", "https://10.96.0.20:5000"),
            ("Never", "https://10.96.0.20:5000"),
            ("Allow", "http://[2001:db8::7]:5000"),
        ];
        let texts =
            cases.map(|(fallback, url)| format!("### {fallback} {url}\n{}\n", text(*runtime, fallback, url)));
        insta::assert_snapshot!(format!("node-config-{name}"), texts.concat());
    }
}

/// The command and the operator make the same files.
#[test]
fn containerd_files_are_those_of_the_config_map() {
    for url in ["http://10.96.0.20:5000", "https://10.96.0.20:5000"] {
        let (mirror, endpoint) = (mirror("Allow"), endpoint(url));
        let published = node_config::published(&mirror, &endpoint);
        let files = node_config::files(Runtime::Containerd, &mirror, &endpoint)
            .unwrap()
            .files;
        for file in files {
            let key = match file.path.strip_prefix("etc/containerd/certs.d/").unwrap() {
                path if path.ends_with("/ca.crt") => "ca.crt".to_owned(),
                path => path.replace("/hosts.toml", ".hosts.toml").replace(':', "_"),
            };
            assert_eq!(published[&key], file.text, "{key}");
        }
    }
}

const MIRROR: &str = "
apiVersion: registrymirror.io/v1alpha1
kind: RegistryMirror
metadata: {name: hub, namespace: mirrors}
spec:
  upstreams: [{host: docker.io}, {host: quay.io}]
  storage: {type: Ephemeral}
";
const URL: &str = "http://10.96.0.20:5000";
const HOSTS: &str = "out/etc/containerd/certs.d/docker.io/hosts.toml";

fn directory(yaml: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("mirror.yaml"), yaml).unwrap();
    fs::write(directory.path().join("authority.pem"), CERTIFICATE).unwrap();
    directory
}

fn run(directory: &Path, runtime: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_registry-mirror"))
        .args([
            "node-config",
            "-f",
            "mirror.yaml",
            "--out",
            "out",
            "--runtime",
            runtime,
        ])
        .args(args)
        .current_dir(directory)
        .output()
        .unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failed(output: &Output, code: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn command_replaces_its_own_files_only() {
    let directory = directory(MIRROR);
    let (path, hosts) = (directory.path(), directory.path().join(HOSTS));
    let printed = succeeded(&run(path, "containerd", &["--endpoint", URL]));
    assert!(printed.lines().any(|line| line == HOSTS), "{printed}");
    assert!(
        fs::read_to_string(&hosts)
            .unwrap()
            .contains("[host.\"http://10.96.0.20:5000\"]")
    );
    succeeded(&run(
        path,
        "containerd",
        &["--endpoint", "http://10.96.0.21:5000"],
    ));
    assert!(fs::read_to_string(&hosts).unwrap().contains("10.96.0.21"));

    let quay = path.join("out/etc/containerd/certs.d/quay.io/hosts.toml");
    fs::write(&quay, "server = \"https://quay.io\"\n").unwrap();
    let refused = run(path, "containerd", &["--endpoint", URL]);
    let message = failed(&refused, 4);
    assert!(
        message.contains("quay.io/hosts.toml") && message.contains("--force"),
        "{message}"
    );
    assert!(
        fs::read_to_string(&hosts).unwrap().contains("10.96.0.21"),
        "written in part"
    );
    assert_eq!(
        fs::read_to_string(&quay).unwrap(),
        "server = \"https://quay.io\"\n"
    );
    succeeded(&run(path, "containerd", &["--endpoint", URL, "--force"]));
    assert!(fs::read_to_string(&quay).unwrap().contains("10.96.0.20"));
}

/// JSON has no room for a marker: the same content is no conflict, another one is.
#[test]
fn docker_configuration_of_others_is_kept() {
    let directory = directory(MIRROR);
    let path = directory.path();
    succeeded(&run(path, "docker", &["--endpoint", URL]));
    succeeded(&run(path, "docker", &["--endpoint", URL]));
    let file = path.join("out/etc/docker/daemon.json");
    let daemon: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(daemon["registry-mirrors"], json!([URL]));
    fs::write(&file, "{\"debug\": true}").unwrap();
    failed(&run(path, "docker", &["--endpoint", URL]), 4);
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"debug\": true}");
}

#[test]
fn command_follows_no_link_below_the_directory() {
    let directory = directory(MIRROR);
    let path = directory.path();
    fs::create_dir_all(path.join("out/etc")).unwrap();
    fs::create_dir(path.join("elsewhere")).unwrap();
    symlink(path.join("elsewhere"), path.join("out/etc/containerd")).unwrap();
    let message = failed(&run(path, "containerd", &["--endpoint", URL, "--force"]), 4);
    assert!(message.contains("can't write out/etc/containerd"), "{message}");
    assert_eq!(fs::read_dir(path.join("elsewhere")).unwrap().count(), 0);
}

/// A mirror as `kubectl get rmir/hub configmap/hub-ca -o yaml` prints it has address and CA.
#[test]
fn address_and_ca_come_from_objects_of_the_cluster() {
    let pem = serde_json::to_string(CERTIFICATE).unwrap();
    let yaml = format!(
        "{}  tls: {{mode: SelfSigned}}\nstatus: {{endpoint: {{url: 'https://10.96.0.30:5000'}}}}\n---\n\
         kind: ConfigMap\nmetadata: {{name: hub-ca, namespace: mirrors}}\ndata: {{ca.crt: {pem}}}\n",
        MIRROR.trim_start()
    );
    let directory = directory(&yaml);
    succeeded(&run(directory.path(), "containerd", &[]));
    let hosts = fs::read_to_string(directory.path().join(HOSTS)).unwrap();
    assert!(
        hosts.contains("https://10.96.0.30:5000") && hosts.contains("ca = \"ca.crt\""),
        "{hosts}"
    );
    let ca = directory
        .path()
        .join("out/etc/containerd/certs.d/docker.io/ca.crt");
    let ca = fs::read_to_string(ca).unwrap();
    assert!(
        ca.starts_with("# Written by") && ca.ends_with(CERTIFICATE),
        "{ca}"
    );
}

#[test]
fn ca_file_with_a_private_key_gives_certificates_only() {
    let directory = directory(MIRROR);
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    fs::write(directory.path().join("both.pem"), format!("{key}{CERTIFICATE}")).unwrap();
    let args = ["--endpoint", "https://10.96.0.20:5000", "--ca-file", "both.pem"];
    succeeded(&run(directory.path(), "crio", &args));
    let ca = directory
        .path()
        .join("out/etc/containers/certs.d/10.96.0.20:5000/ca.crt");
    let ca = fs::read_to_string(ca).unwrap();
    assert!(ca.contains("CERTIFICATE") && !ca.contains("PRIVATE"), "{ca}");
}

#[test_case("containerd", &[], 2, "has no address yet"; "no address")]
#[test_case("containerd", &["--endpoint", "10.96.0.20:5000"], 2, "--endpoint: \"10.96.0.20:5000\" must be http:// or https://"; "no URL")]
#[test_case("containerd", &["--endpoint", URL, "--ca-file", "authority.pem"], 2, "leave --ca-file out"; "CA for http")]
#[test_case("containerd", &["--endpoint", "https://10.96.0.20", "--ca-file", "none"], 2, "none: can't be read"; "missing CA file")]
#[test_case("containerd", &["--endpoint", "https://10.96.0.20", "--ca-file", "mirror.yaml"], 2, "--ca-file: mirror.yaml: "; "no CA in the file")]
#[test_case("crio", &["--endpoint", "http://[2001:db8::7]:5000"], 2, "IPv6"; "IPv6 for CRI-O")]
#[test_case("lxd", &["--endpoint", URL], 2, "openshift-idms"; "unknown runtime")]
fn input_that_makes_no_files_is_refused(runtime: &str, args: &[&str], code: i32, expected: &str) {
    let directory = directory(MIRROR);
    let message = failed(&run(directory.path(), runtime, args), code);
    assert!(message.contains(expected), "{message}");
    assert!(!directory.path().join("out").exists());
}

#[test]
fn self_signed_mirror_without_its_ca_is_refused() {
    let directory = directory(&format!("{MIRROR}  tls: {{mode: SelfSigned}}\n"));
    let message = failed(
        &run(
            directory.path(),
            "containerd",
            &["--endpoint", "https://10.96.0.20:5000"],
        ),
        3,
    );
    assert!(
        message.contains("hub-ca") && message.contains("--ca-file"),
        "{message}"
    );
}
