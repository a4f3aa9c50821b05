//! The messages of likely mistakes: what is wrong, and the next command.

use std::{fmt::Write, fs};

use crate::{golden, hub::Hub, run, stderr};

/// A kubeconfig whose server answers nothing.
fn kubeconfig(server: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: '{server}'}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: c}}}}], users: [{{name: c, user: {{}}}}]}}"
    )
}

/// Each message names the object, the cause and the action.
#[tokio::test]
async fn plugin_messages_match_the_golden_file() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("unreachable", &kubeconfig("http://127.0.0.1:1"));
    write("malformed", "clusters: [");
    write("empty", "{apiVersion: v1, kind: Config}");
    write(
        "lost",
        &kubeconfig("http://127.0.0.1:1").replace("cluster: c, user", "cluster: d, user"),
    );
    let plain = Hub::start().await;
    let encrypted = Hub::start_tls().await;
    let port = plain.url().port().unwrap();
    let tls_port = encrypted.url().port().unwrap();
    let https = format!("https://127.0.0.1:{port}");
    let plain_http = format!("http://127.0.0.1:{port}");
    let http = format!("http://127.0.0.1:{tls_port}");
    let untrusted = format!("https://127.0.0.1:{tls_port}");
    let runs: Vec<Vec<&str>> = vec![
        vec!["status"],
        vec!["status", "--kubeconfig", "none"],
        vec!["status", "--kubeconfig", "malformed"],
        vec!["status", "--kubeconfig", "empty"],
        vec!["status", "--kubeconfig", "unreachable", "--context", "d"],
        vec!["status", "--kubeconfig", "lost"],
        vec!["status", "--kubeconfig", "unreachable"],
        vec![
            "pull",
            "https://docker.io/nginx",
            "--endpoint",
            "http://127.0.0.1:1",
        ],
        vec![
            "pull",
            "docker.io/Library/Nginx:1",
            "--endpoint",
            "http://127.0.0.1:1",
        ],
        vec!["pull", "nginx:a b", "--endpoint", "http://127.0.0.1:1"],
        vec!["pull", "nginx", "--endpoint", "http://127.0.0.1:1"],
        vec!["pull", "nginx:1", "--endpoint", "127.0.0.1:5000"],
        vec!["pull", "nginx:1", "--endpoint", "http://127.0.0.1:5000/v2/"],
        vec!["pull", "nginx:1", "--endpoint", "ftp://127.0.0.1"],
        vec!["pull", "nginx:1", "--endpoint", &https],
        vec!["pull", "nginx:1", "--endpoint", &http],
        vec!["pull", "nginx:1", "--endpoint", &untrusted],
        vec!["images", "--endpoint", &plain_http],
        vec!["purge", "nginx", "--endpoint", "http://127.0.0.1:1"],
        vec![
            "purge",
            "--repository",
            "nginx:1",
            "--endpoint",
            "http://127.0.0.1:1",
        ],
    ];
    let mut text = String::new();
    for args in runs {
        let output = run(directory.path(), &args).await;
        let code = output.status.code().unwrap();
        let path = directory.path().display().to_string();
        let message = stderr(&output)
            .replace(&path, "HOME")
            .replace(&format!(":{port}"), ":PORT")
            .replace(&format!(":{tls_port}"), ":PORT");
        let args = args.join(" ").replace(&format!(":{port}"), ":PORT");
        let args = args.replace(&format!(":{tls_port}"), ":PORT");
        write!(text, "$ kubectl rmir {args}\n{message}exit code {code}\n\n").unwrap();
    }
    golden::assert_golden("plugin.txt", &text);
}
