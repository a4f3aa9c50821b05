//! The real node: what can't be shown without a kubelet and containerd.

use std::process::Stdio;
use std::time::Duration;

use testbed::image::{self, File};
use testbed::scratch::Scratch;
use testbed::{Node, binaries, node, wait};

const SOON: Duration = Duration::from_mins(1);

/// Runs to its end and returns what it printed.
async fn output_of_pod(node: &Node, name: &str, image: &str, arguments: &[&str]) -> String {
    let image = format!("--image={image}");
    let mut run = vec!["kubectl", "run", name, "--restart=Never", &image, "--"];
    run.extend(arguments);
    node.run(&run).await.unwrap_or_else(|error| panic!("{error}"));
    let phase = ["kubectl", "get", "pod", name, "-o", "jsonpath={.status.phase}"];
    let ended = async || node.run(&phase).await.ok().filter(|phase| phase == "Succeeded");
    wait::until("end of the Pod", SOON, ended)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    node.run(&["kubectl", "logs", name])
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A node runs pods from an imported image, and from a registry that `hosts.toml` names.
#[tokio::test]
#[ignore = "needs root, and builds a node's programs for some minutes where they are missing"]
async fn node_runs_imported_and_hosts_toml_images() {
    assert!(Node::is_possible(), "a node needs root");
    let node = Node::up("rmir-node-test", "").await.unwrap();
    let scratch = Scratch::new("node-test").unwrap();
    let program = File {
        source: binaries::get("crane").await.unwrap(),
        path: "/crane".to_owned(),
    };

    let imported = image::of_files(
        &scratch.path().join("a"),
        "test.invalid/imported:1",
        std::slice::from_ref(&program),
    )
    .unwrap();
    let archive = scratch.path().join("imported.tar");
    imported.pack(&archive).unwrap();
    node.import(&archive).await.unwrap();
    let version = output_of_pod(&node, "imported", "test.invalid/imported:1", &["version"]).await;
    assert!(!version.trim().is_empty());

    // Other content: containerd asks no registry for what it has.
    let extra = File {
        source: scratch.write("extra", "another layer").unwrap(),
        path: "/extra".to_owned(),
    };
    let pushed = image::of_files(&scratch.path().join("b"), "1", &[program, extra]).unwrap();
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{}:5001'}}\n",
        scratch.path().join("registry").display(),
        node::ADDRESS
    );
    let config = scratch.write("registry.yml", config).unwrap();
    let mut registry = node.command("docker-registry");
    registry
        .arg("serve")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _registry = registry.spawn().unwrap();
    let url = format!("http://{}:5001", node::ADDRESS);
    let answers = async || node.run(&["curl", "-sf", &url]).await.ok();
    wait::until("answer from the registry", SOON, answers)
        .await
        .unwrap();
    let (from, to) = (
        format!("oci:{}:1", pushed.path().display()),
        format!("docker://{}:5001/library/pushed:1", node::ADDRESS),
    );
    node.run(&["skopeo", "copy", "-q", "--dest-tls-verify=false", &from, &to])
        .await
        .unwrap();
    let hosts = format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    node.write_hosts("registry.invalid", &hosts).unwrap();
    let again = output_of_pod(&node, "pulled", "registry.invalid/library/pushed:1", &["version"]).await;
    assert_eq!(again, version);
}
