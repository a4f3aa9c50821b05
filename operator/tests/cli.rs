//! The binary from outside: what it prints, what it says of bad input, and its exit codes.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "messages/golden.rs"]
mod golden;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use test_case::test_case;

const MIRROR: &str = "
apiVersion: registrymirror.io/v1alpha1
kind: RegistryMirror
metadata: {name: hub}
spec:
  upstreams:
  - host: quay.io
    remoteURL: https://127.0.0.1:1
    credentialsSecretRef: {name: quay}
  storage: {type: Ephemeral}
";
const SECRET: &str = "
---
apiVersion: v1
kind: Secret
metadata: {name: quay}
stringData: {username: ann, password: hunter2}
";

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registry-mirror"));
    command
        .args(args)
        .current_dir(directory)
        .env("XDG_CACHE_HOME", directory.join("home"));
    command
}

/// Runs a command with a file `mirror.yaml` in its directory.
fn run(yaml: &str, args: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("mirror.yaml"), yaml).unwrap();
    command(directory.path(), args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn documents(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

fn kinds(documents: &[Value]) -> Vec<&str> {
    documents
        .iter()
        .map(|document| document["kind"].as_str().unwrap())
        .collect()
}

/// `render` prints every object that the operator would apply.
#[test]
fn render_prints_every_applied_object() {
    let rendered = documents(&run(
        &format!("{MIRROR}{SECRET}"),
        &["render", "-f", "mirror.yaml"],
    ));
    assert_eq!(
        kinds(&rendered),
        [
            "ConfigMap",
            "Secret",
            "ServiceAccount",
            "Service",
            "Service",
            "Deployment"
        ]
    );
    let namespaces = |rendered: &[Value]| -> Vec<Value> {
        let objects = rendered.iter();
        objects
            .map(|object| object["metadata"]["namespace"].clone())
            .collect()
    };
    assert_eq!(namespaces(&rendered), vec![Value::Null; 6]);
    let args = ["render", "-f", "mirror.yaml", "-n", "mirrors"];
    let rendered = documents(&run(&format!("{MIRROR}{SECRET}"), &args));
    assert_eq!(namespaces(&rendered), vec![Value::from("mirrors"); 6]);
}

/// The text in place of a value is not base64, so that an API server refuses the Secret.
#[test]
fn render_masks_values_of_secrets() {
    let yaml = format!("{MIRROR}{SECRET}");
    let output = run(&yaml, &["render", "-f", "mirror.yaml"]);
    assert!(stderr(&output).contains("--show-secrets"), "{}", stderr(&output));
    let secrets = |output: &Output| -> Vec<String> {
        let rendered = documents(output).into_iter();
        let secrets = rendered.filter(|object| object["kind"] == "Secret");
        let data = secrets.map(|secret| secret["data"].as_object().unwrap().clone());
        data.flat_map(|data| {
            data.into_iter()
                .map(|(_, value)| value.as_str().unwrap().to_owned())
        })
        .collect()
    };
    let masked = secrets(&output);
    assert!(!masked.is_empty());
    assert!(
        masked.iter().all(|value| value.starts_with("(masked: ")),
        "{masked:?}"
    );
    let shown = secrets(&run(&yaml, &["render", "-f", "mirror.yaml", "--show-secrets"]));
    let decoded = |value: &String| String::from_utf8(STANDARD.decode(value).unwrap()).unwrap();
    assert!(shown.iter().map(decoded).any(|value| value.contains("hunter2")));
}

const REFERRING: &str = "
apiVersion: registrymirror.io/v1alpha1
kind: RegistryMirror
metadata: {name: hub}
spec:
  upstreams:
  - {host: quay.io, tls: {caBundleRef: {kind: ConfigMap, name: roots}}}
  - {host: ghcr.io, tls: {caBundleRef: {kind: Secret, name: shared}}}
  storage: {type: Ephemeral}
  tls: {mode: Secret, secretName: serving}
  access: {mode: Basic, htpasswdSecretRef: {name: shared}}
";

#[test]
fn render_has_placeholders_for_missing_references() {
    let output = run(REFERRING, &["render", "-f", "mirror.yaml", "--show-secrets"]);
    let rendered = documents(&output);
    for reference in ["ConfigMap roots", "Secret shared", "Secret serving"] {
        let warning = format!("warning: {reference} not found in the files, its values are placeholders");
        assert!(stderr(&output).contains(&warning), "{}", stderr(&output));
    }
    let files = |object: &&Value| object["kind"] == "Secret" && object["metadata"]["name"] == "hub-files";
    let files = rendered.iter().find(files).unwrap()["data"].as_object().unwrap();
    assert!(
        files.contains_key("htpasswd") && files.contains_key("serving.key"),
        "{files:?}"
    );
    let placeholder = |value: &Value| value.as_str().unwrap().starts_with("(placeholder: ");
    assert!(files.values().all(placeholder), "{files:?}");
    assert!(kinds(&rendered).contains(&"Deployment"));
}

#[test]
fn render_strict_fails_on_missing_references() {
    for (yaml, reference) in [(REFERRING, "roots"), (MIRROR, "quay")] {
        let output = run(yaml, &["render", "-f", "mirror.yaml", "--strict"]);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains(reference), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn render_prints_every_example() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for example in fs::read_dir(examples).unwrap() {
        let file = example.unwrap().path();
        let output = run("", &["render", "-f", file.to_str().unwrap()]);
        let rendered = documents(&output);
        assert!(
            kinds(&rendered).contains(&"Service"),
            "{}: {rendered:?}",
            file.display()
        );
    }
}

/// `render` refuses a mirror of a different namespace.
#[test]
fn render_refuses_other_namespace() {
    let yaml = MIRROR.replace("name: hub}", "name: hub, namespace: other}");
    let output = run(&yaml, &["render", "-f", "mirror.yaml", "-n", "mirrors"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("is in namespace other"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn render_warns_of_a_missing_secret() {
    let output = run(MIRROR, &["render", "-f", "mirror.yaml"]);
    assert_eq!(documents(&output).len(), 6);
    let warning = r#"warning: Secret "quay" not found in namespace "default": create it or correct spec.upstreams[0].credentialsSecretRef.name"#;
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
}

#[test]
fn render_warnings_name_field_and_action() {
    let spec = MIRROR.replace("spec:", "spec:\n  nodeConfiguration: {fallback: Never}");
    let image = ["--server-image", "quay.io/example/registry-mirror:1"];
    let output = run(&spec, &[&["render", "-f", "mirror.yaml"], &image[..]].concat());
    assert_eq!(documents(&output).len(), 6);
    let warnings = stderr(&output);
    for expected in [
        "warning: spec.nodeConfiguration.fallback: the mirror's own image quay.io/example/registry-mirror:1",
        "; set fallback to Allow",
        "warning: spec.access.mode: every client that reaches the mirror",
        "warning: spec.replicas: while its only server is replaced",
    ] {
        assert!(warnings.contains(expected), "{warnings}");
    }
}

#[test]
fn render_prints_a_directory_as_one_list() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("b.yaml", MIRROR), ("a.yml", SECRET), ("README.md", "a: [")] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let output = command(directory.path(), &["render", "-f", ".", "-o", "json"])
        .output()
        .unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["kind"], "List");
    let items = list["items"].as_array().unwrap();
    assert!(kinds(items).contains(&"Deployment"), "{list}");
    assert!(!stderr(&output).contains("not found"), "{}", stderr(&output));
    let crd: Value = serde_json::from_slice(&run("", &["crd", "-o", "json"]).stdout).unwrap();
    assert_eq!(crd["kind"], "CustomResourceDefinition");
}

#[test]
fn doctor_without_cluster_reports_in_the_format() {
    let directory = tempfile::tempdir().unwrap();
    let missing = ["doctor", "-o", "json", "--kubeconfig", "missing"];
    let output = command(directory.path(), &missing).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = &report["findings"][0];
    assert_eq!(finding["check"], "api-server");
    let message = finding["message"].as_str().unwrap();
    assert!(message.contains("no cluster configured"), "{message}");
}

/// `crd` prints the `CustomResourceDefinition`.
#[test]
fn crd_prints_the_crd() {
    let printed = documents(&run("", &["crd"]));
    assert_eq!(kinds(&printed), ["CustomResourceDefinition"]);
    assert_eq!(
        printed[0]["metadata"]["name"],
        "registrymirrors.registrymirror.io"
    );
}

#[test]
fn closed_pipe_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let mut crd = command(directory.path(), &["crd"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(crd.stdout.take());
    let output = crd.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        stderr(&output)
    );
}

/// The completion lists the commands.
#[test]
fn completion_lists_the_commands() {
    let output = run("", &["completion", "bash"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("render"));
}

#[test_case(&["operator"], &["--watch-namespace", "--server-image", "--listen"])]
#[test_case(&["local"], &["--filename", "--cache-dir", "--port", "Examples:"])]
#[test_case(&["render"], &["--output", "--namespace", "--strict", "--show-secrets", "Examples:"])]
#[test_case(&["crd"], &["--output", "Examples:"])]
#[test_case(&["agent"], &["--namespace", "--root", "--certs-dir", "--cleanup", "Examples:"])]
#[test_case(&["node-config"], &["--runtime", "openshift-idms", "--endpoint", "--force", "Examples:"])]
#[test_case(&["completion"], &["fish", "Examples:"])]
#[test_case(&["doctor"], &["--all-namespaces", "--as-group", "--output", "Examples:", "Exit codes"])]
#[test_case(&[], &["Examples:", "Exit codes:", "registry-mirror local -f"])]
fn help_lists_options_and_examples(command: &[&str], expected: &[&str]) {
    let help = run("", &[command, &["--help"]].concat());
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(expected.iter().all(|word| text.contains(word)), "{text}");
}

/// Invalid input gets one message and its exit code.
#[test_case("a: [", &["render", "-f", "mirror.yaml"], 2, "mirror.yaml: "; "malformed YAML")]
#[test_case("kind: a\nkind: b", &["render", "-f", "mirror.yaml"], 2, "mirror.yaml: duplicate mapping key `kind` is not allowed here at line 2"; "a key that is there twice")]
#[test_case("kind: ConfigMap\nmetadata: {name: a}", &["render", "-f", "."], 2, "no RegistryMirror found"; "a directory without a mirror")]
#[test_case(MIRROR, &["render", "-f", "other.yaml"], 2, "other.yaml: not readable"; "a file that is not there")]
#[test_case(MIRROR, &["render", "--file", "mirror.yaml"], 2, "--file"; "an unknown argument")]
#[test_case(&MIRROR.replace("Ephemeral", "Ephemeral, colour: red"), &["local", "-f", "mirror.yaml"], 2, "spec.storage.colour"; "an unknown field")]
#[test_case(&MIRROR.replace("https://127", "ftp://127"), &["local", "-f", "mirror.yaml"], 2, "spec.upstreams[0].remoteURL"; "a spec that admission refuses")]
#[test_case(MIRROR, &["local", "-f", "mirror.yaml"], 3, r#"Secret "quay" not found: create it or correct spec.upstreams[0].credentialsSecretRef.name"#; "a missing Secret")]
#[test_case(&format!("{MIRROR}{}", SECRET.replace("username", "user")), &["local", "-f", "mirror.yaml"], 3, "Secret quay: has no key username: add it"; "a Secret with the wrong keys")]
#[test_case(&format!("{MIRROR}{SECRET}"), &["local", "-f", "mirror.yaml", "--cache-dir", "/proc/no", "--port", "0"], 4, "/proc/no"; "a cache directory that can't be written")]
#[test_case(&format!("{}{SECRET}", MIRROR.replace("spec:", "spec:\n  tls: {mode: SelfSigned}")), &["local", "-f", "mirror.yaml", "--cache-dir", "/proc/no", "--port", "0"], 4, "/proc/no: "; "the same with an authority that would lie beside it")]
#[test_case(&format!("{MIRROR}{SECRET}"), &["local", "-f", "mirror.yaml", "--name", "other"], 2, "mirror other not found: choose one of hub"; "a mirror that is not in the file")]
#[test_case("", &["agent"], 2, "--namespace"; "an agent that trusts no namespace")]
#[test_case("", &["agent", "--namespace="], 2, "at least one namespace"; "an empty namespace")]
#[test_case("", &["agent", "--cleanup", "--root", "none"], 4, "--root none: "; "a root that does not exist")]
#[test_case("", &["operator", "--listen", "nowhere.invalid:1"], 4, "--listen"; "an address that is none")]
fn invalid_input_gets_one_message_and_exit_code(yaml: &str, args: &[&str], code: i32, expected: &str) {
    let output = run(yaml, args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(expected), "{message}");
    assert!(
        !message.contains("panicked") && !message.contains("hunter2"),
        "{message}"
    );
}

/// Each message names the object, the cause and the action.
#[test]
fn command_messages_match_the_golden_file() {
    let wrong_key = format!("{MIRROR}{}", SECRET.replace("username", "user"));
    let tls = MIRROR.replace("spec:", "spec:\n  tls: {mode: SelfSigned}");
    let (both, tls) = (format!("{MIRROR}{SECRET}"), format!("{tls}{SECRET}"));
    let ftp = MIRROR.replace("https://127", "ftp://127");
    let cache = ["--cache-dir", "/proc/no", "--port", "0"];
    let local = ["local", "-f", "mirror.yaml"];
    let runs = [
        ("kind: a\nkind: b", vec!["render", "-f", "mirror.yaml"]),
        ("kind: ConfigMap\nmetadata: {name: a}", vec!["render", "-f", "."]),
        ("metadata: {name: a}", vec!["render", "-f", "."]),
        (MIRROR, vec!["render", "-f", "other.yaml"]),
        (ftp.as_str(), local.to_vec()),
        (MIRROR, local.to_vec()),
        (wrong_key.as_str(), local.to_vec()),
        (both.as_str(), [&local[..], &cache].concat()),
        (tls.as_str(), [&local[..], &cache].concat()),
        (both.as_str(), [&local[..], &["--name", "other"]].concat()),
    ];
    let mut text = String::new();
    for (yaml, args) in runs {
        text.push_str(&messages(&run(yaml, &args)));
    }
    golden::assert_golden("commands.txt", &text);
}

/// Returns the messages of a run, without the log, which has times.
fn messages(output: &Output) -> String {
    let text = stderr(output);
    let lines = text.lines().filter(|line| !line.starts_with('{'));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// A mirror without mistakes.
const HUB: &str = "apiVersion: registrymirror.io/v1alpha1\nkind: RegistryMirror\nmetadata: {name: hub}\nspec:\n  upstreams:\n  - host: docker.io\n  storage: {type: Ephemeral}\n";
/// Mistakes of a mirror: a description, a part of [`HUB`], and the text in its place.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "a misspelt field",
        "host: docker.io",
        "host: docker.io\n    remoteUrl: https://docker.io",
    ),
    ("a misspelt section", "storage:", "storag:"),
    ("a misspelt registry", "docker.io", "dokcer.io"),
    ("a website in place of a registry", "docker.io", "hub.docker.com"),
    ("a scheme in a host", "docker.io", "https://docker.io"),
    (
        "a port in the path of a URL",
        "host: docker.io",
        "host: a.example\n    remoteURL: https://a.example/:5000",
    ),
    (
        "a wrong scheme of a URL",
        "host: docker.io",
        "host: a.example\n    remoteURL: a.example:5000",
    ),
    ("a duration in days", "storage:", "cache: {ttl: 7d}\n  storage:"),
    (
        "a size in other units",
        "{type: Ephemeral}",
        "{type: PersistentVolumeClaim, persistentVolumeClaim: {size: 50GB}}",
    ),
    (
        "a time to live without a unit",
        "storage:",
        "cache: {ttl: 0}\n  storage:",
    ),
    (
        "hours without a unit",
        "storage:",
        "cache: {ttl: 168}\n  storage:",
    ),
    (
        "a word in place of a time to live",
        "storage:",
        "cache: {ttl: never}\n  storage:",
    ),
    (
        "a negative time to live",
        "storage:",
        "cache: {ttl: -1h}\n  storage:",
    ),
    (
        "a storage smaller than an image",
        "{type: Ephemeral}",
        "{type: PersistentVolumeClaim, persistentVolumeClaim: {size: 100Mi}}",
    ),
    (
        "a URL with credentials",
        "host: docker.io",
        "host: a.example\n    remoteURL: https://ann:secret@a.example",
    ),
    (
        "a URL of the API version",
        "host: docker.io",
        "host: a.example\n    remoteURL: https://a.example/v2/",
    ),
    (
        "a URL of a repository",
        "host: docker.io",
        "host: docker.io\n    remoteURL: https://docker.io/library",
    ),
    ("a name with dots", "name: hub", "name: hub.v1"),
    ("a name with capitals", "name: hub", "name: Hub"),
    ("a wrong kind", "kind: RegistryMirror", "kind: RegistryMirrors"),
    (
        "another kind of the group",
        "kind: RegistryMirror",
        "kind: Mirror",
    ),
    ("a wrong version", "v1alpha1", "v1"),
    ("no storage", "  storage: {type: Ephemeral}\n", ""),
    ("wrong indentation", "  - host", " - host"),
    ("a tab", "  upstreams", "\tupstreams"),
    ("{hub}---\n{}", "name: hub", "name: other"),
];

/// Mistakes that are likely in a file, each with the full text of its message; all mistakes of a file are in one run.
#[test]
fn file_mistakes_match_the_golden_file() {
    let with = |from: &str, to: &str| HUB.replace(from, to);
    let secret = "---\nkind: Secret\nmetadata: {name: quay, namespace: other}\nstringData: {username: a, password: b}\n";
    let credentials = with(
        "host: docker.io",
        "host: docker.io\n    credentialsSecretRef: {name: quay}",
    );
    let of_tls = secret.replace(", namespace: other", "").replace(
        "stringData: {username: a, password: b}",
        "type: kubernetes.io/tls\nstringData: {tls.crt: a, tls.key: b}",
    );
    let misspelt = with("storage:", "storag:");
    let tape = with("name: hub", "name: Hub").replace("Ephemeral", "Tape");
    let several = [
        ("a Secret of the wrong type", format!("{credentials}{of_tls}")),
        (
            "two mirrors",
            format!("{HUB}---\n{}", with("name: hub", "name: other")),
        ),
        ("a Secret of another namespace", format!("{credentials}{secret}")),
        ("a missing Secret", credentials),
        (
            "several mistakes",
            format!("{misspelt}---\n{tape}---\nkind: a\n---\na: b\n"),
        ),
    ];
    let single = MISTAKES
        .iter()
        .map(|(mistake, from, to)| (*mistake, with(from, to)));
    let files = single.chain(several);
    let mut text = String::new();
    for (mistake, yaml) in files {
        let output = run(
            &yaml,
            &[
                "local",
                "-f",
                "mirror.yaml",
                "--cache-dir",
                "/proc/no",
                "--port",
                "0",
            ],
        );
        let rendered = run(&yaml, &["render", "-f", "mirror.yaml"]);
        let lines = messages(&output);
        let render = stderr(&rendered);
        let render = if render == lines { "" } else { &render };
        text.extend(["# ", mistake, "\n", &lines, render, "\n"]);
    }
    golden::assert_golden("mistakes.txt", &text);
}

/// The page of frequent mistakes has the messages of the golden files.
#[test]
fn page_of_mistakes_has_golden_messages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/how-to/mistakes.md")).unwrap();
    let golden = [
        ("file_mistakes_match_the_golden_file", "mistakes.txt"),
        ("plugin_messages_match_the_golden_file", "plugin.txt"),
    ];
    for (test, file) in golden {
        let golden = fs::read_to_string(root.join("tests/messages").join(file)).unwrap();
        for row in page.lines().filter(|row| row.contains(test)) {
            let cell = row.split('|').nth(2).unwrap();
            let wrong: Vec<_> = cell
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|text| !golden.contains(text))
                .collect();
            assert!(wrong.is_empty(), "{file} has no {wrong:?}");
        }
    }
}

#[test]
fn man_pages_have_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &["man", "--out", "."])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for page in [
        "registry-mirror.1",
        "registry-mirror-local.1",
        "registry-mirror-doctor.1",
    ] {
        assert!(directory.path().join(page).is_file(), "{page}");
    }
}

/// `local` names the port that is in use.
#[test]
fn local_names_the_taken_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(
        &format!("{MIRROR}{SECRET}"),
        &[
            "local",
            "-f",
            "mirror.yaml",
            "--cache-dir",
            "cache",
            "--port",
            &port,
        ],
    );
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains(&port), "{}", stderr(&output));
}

/// The error of an operator without a cluster names `KUBECONFIG`.
#[test]
fn operator_without_cluster_names_kubeconfig() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(directory.path(), &["operator", "--listen", "127.0.0.1:0"])
        .env("KUBECONFIG", directory.path().join("none"))
        .env("HOME", directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("set KUBECONFIG"), "{}", stderr(&output));
}

/// A log in a file or a pipe is read by programs: no escape sequences.
#[test]
fn piped_operator_log_has_no_escapes() {
    let directory = tempfile::tempdir().unwrap();
    // A port that was free a moment ago.
    let server = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: c}}}}], users: [{{name: c, user: {{}}}}]}}"
    );
    fs::write(directory.path().join("kubeconfig"), kubeconfig).unwrap();
    let args = ["operator", "--listen", "127.0.0.1:0", "--log-format", "text"];
    let mut operator = command(directory.path(), &args)
        .env("KUBECONFIG", directory.path().join("kubeconfig"))
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut lines = BufReader::new(operator.0.stderr.take().unwrap()).lines();
    // The operator finds no Lease, and tries again.
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("WARN") || line.contains("ERROR"), "{line}");
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

/// The text log of `local` has no escape sequences in a pipe.
#[test]
fn piped_local_log_has_no_escapes() {
    let directory = tempfile::tempdir().unwrap();
    let text = MIRROR.replace("spec:", "spec:\n  observability: {logFormat: text}");
    fs::write(directory.path().join("mirror.yaml"), format!("{text}{SECRET}")).unwrap();
    let mut local = command(directory.path(), &["local", "-f", "mirror.yaml", "--port", "0"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let lines = BufReader::new(local.0.stderr.take().unwrap()).lines();
    for line in lines.map(Result::unwrap) {
        assert!(!line.contains('\u{1b}'), "{line:?}");
        if line.contains("msg=serving") {
            return;
        }
    }
    panic!("the log ended before the server served");
}

/// The table of `doctor` has no escape sequences in a pipe.
#[test]
fn piped_doctor_table_has_no_escapes() {
    let output = run("", &["doctor", "--kubeconfig", "missing"]);
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.contains("PROBLEM"), "{table}");
    assert!(
        !table.contains('\u{1b}') && !stderr(&output).contains('\u{1b}'),
        "{table:?}"
    );
}

/// The first finding of `doctor` reaches a pipe while a later check still waits for the API server.
#[test]
fn doctor_prints_findings_as_they_come() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let version = r#"{"major":"1","minor":"36","gitVersion":"v1.36.0","gitCommit":"","gitTreeState":"",
            "buildDate":"","goVersion":"","compiler":"","platform":""}"#;
        let (length, mut waiting) = (version.len(), Vec::new());
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let read = connection.read(&mut [0; 4096]);
            if waiting.is_empty() && read.is_ok() {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
                let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{version}");
                connection.write_all(answer.as_bytes()).unwrap();
            }
            waiting.push(connection);
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: c}}}}], \
         clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}], users: [{{name: c, user: {{}}}}]}}"
    );
    fs::write(directory.path().join("kubeconfig"), kubeconfig).unwrap();
    let mut doctor = command(directory.path(), &["doctor", "--kubeconfig", "kubeconfig"]);
    let mut doctor = Running(doctor.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(doctor.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("RESULT"));
    let first = lines.next().unwrap().unwrap();
    assert!(
        first.starts_with("ok") && first.contains("Kubernetes v1.36.0"),
        "{first}"
    );
    assert!(doctor.0.try_wait().unwrap().is_none(), "the other checks wait");
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test_case(rustix::process::Signal::TERM; "asked to end")]
#[test_case(rustix::process::Signal::HUP; "its terminal is closed")]
#[test_case(rustix::process::Signal::QUIT; "quit from the keyboard")]
fn local_serves_until_a_signal_and_removes_passwords(signal: rustix::process::Signal) {
    let directory = tempfile::tempdir().unwrap();
    let private = directory.path().join("tmp");
    fs::create_dir(&private).unwrap();
    fs::write(directory.path().join("mirror.yaml"), format!("{MIRROR}{SECRET}")).unwrap();
    let mut local = command(directory.path(), &["local", "-f", "mirror.yaml", "--port", "0"])
        .env("TMPDIR", &private)
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let mut lines = BufReader::new(local.0.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.any(|line| line.contains("serving") && line.contains("127.0.0.1:")));
    assert!(
        directory.path().join("home/registry-mirror/hub").is_dir(),
        "the default cache"
    );
    assert_eq!(fs::read_dir(&private).unwrap().count(), 1, "the credentials");

    let pid = rustix::process::Pid::from_child(&local.0);
    rustix::process::kill_process(pid, signal).unwrap();
    let rest: Vec<_> = lines.collect();
    assert!(local.0.wait().unwrap().success(), "{rest:#?}");
    assert!(rest.iter().all(|line| !line.contains('\u{1b}')), "{rest:#?}");
    assert!(rest.iter().all(|line| !line.contains("hunter2")), "{rest:#?}");
    assert_eq!(fs::read_dir(&private).unwrap().count(), 0);
}

/// A period that is zero or does not parse is refused.
#[test_case("0s", "must be above zero"; "never")]
#[test_case("often", "invalid value 'often'"; "no duration")]
fn invalid_period_is_refused(period: &str, why: &str) {
    let output = run(MIRROR, &["operator", "--resync", period]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(why), "{}", stderr(&output));
}
