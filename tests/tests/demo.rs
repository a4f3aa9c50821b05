//! The demonstrations, run: they check what they show, and end with an error where it is not as it should be.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::path::Path;
use std::process::Stdio;

use testbed::binaries::workspace;
use tokio::process::Command;

/// Runs a demonstration to its end and returns what it printed.
async fn demo(way: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_demo"));
    let operator = program.with_file_name("registry-mirror");
    assert!(
        operator.is_file(),
        "{} is missing: run cargo build --workspace",
        operator.display()
    );
    let mut command = Command::new(program);
    command
        .arg(way)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Without a cluster the demonstration pulls an image cold, warm and with its registry down.
#[tokio::test]
async fn demo_without_cluster_pulls_cold_warm_and_stale() {
    let shown = demo("local").await;
    for outcome in ["MISS 11", "HIT 11", "STALE 1, HIT 10"] {
        assert!(shown.contains(outcome), "{shown}");
    }
}

/// On a control plane the chart and a spec make a mirror that serves, and that leaves nothing behind.
#[tokio::test]
async fn demo_on_control_plane_serves_and_cleans_up() {
    if testbed::control_plane::skip_on_existing_cluster("the demonstration on a control plane") {
        return;
    }
    let shown = demo("fake-node").await;
    for line in ["condition met", "HIT 11", "nothing of the mirror is left"] {
        assert!(shown.contains(line), "{shown}");
    }
}
