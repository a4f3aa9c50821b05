//! Debian's Prometheus, which scrapes what a test runs, and its promtool.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Error;
use crate::process::{Daemon, command, free_ports};
use crate::scratch::Scratch;
use crate::wait;

/// The time limit for the start.
const READY: Duration = Duration::from_mins(1);
/// The period of scrapes and evaluations.
const PERIOD: &str = "500ms";

/// A target of scrapes.
#[derive(Clone, Debug)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// `true` if labels of a metric take precedence over those of the target.
    pub honor_labels: bool,
    /// The labels of the target.
    pub labels: Value,
}

/// A running Prometheus; ended when dropped.
#[derive(Debug)]
pub struct Prometheus {
    url: String,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl Prometheus {
    /// Starts one that evaluates these groups of rules.
    pub async fn start(targets: &[Target], groups: &[Value]) -> Result<Self, Error> {
        let scratch = Scratch::new("prometheus")?;
        let rules = scratch.write("rules.json", json!({"groups": groups}).to_string())?;
        let scrapes: Vec<_> = targets
            .iter()
            .enumerate()
            .map(|(number, target)| {
                json!({
                    "job_name": format!("target-{number}"),
                    "honor_labels": target.honor_labels,
                    "static_configs": [{"targets": [target.address], "labels": target.labels}],
                })
            })
            .collect();
        let config = json!({
            "global": {"scrape_interval": PERIOD, "evaluation_interval": PERIOD},
            "rule_files": [rules],
            "scrape_configs": scrapes,
        });
        let config = scratch.write("prometheus.json", config.to_string())?;
        let [port] = free_ports()?;
        let mut program = command(find("prometheus")?);
        program
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                scratch.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let daemon = Daemon::spawn("prometheus", program, &scratch.path().join("log"))?;
        let url = format!("http://127.0.0.1:{port}");
        let ready = wait::until("Prometheus", READY, || async {
            let answer = reqwest::get(format!("{url}/-/ready")).await.ok()?;
            answer.status().is_success().then_some(())
        });
        if let Err(error) = ready.await {
            return Err(Error::Refused(format!("{error}:\n{}", daemon.log_tail())));
        }
        Ok(Self {
            url,
            _daemon: daemon,
            _scratch: scratch,
        })
    }

    /// Returns the result of an expression: a list of series.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>, Error> {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("query", expression)
            .finish();
        let answer = self.get(&format!("query?{query}")).await?;
        match answer["data"]["result"].as_array() {
            Some(series) => Ok(series.clone()),
            None => Err(Error::Refused(format!("{expression}: {answer}"))),
        }
    }

    /// Returns the alerts that fire.
    pub async fn firing(&self) -> Result<Vec<Value>, Error> {
        let answer = self.get("alerts").await?;
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        Ok(alerts
            .into_iter()
            .filter(|alert| alert["state"] == "firing")
            .collect())
    }

    async fn get(&self, path: &str) -> Result<Value, Error> {
        let refused = |error: reqwest::Error| Error::Refused(error.to_string());
        let answer = reqwest::get(format!("{}/api/v1/{path}", self.url))
            .await
            .map_err(refused)?;
        let text = answer.text().await.map_err(refused)?;
        serde_json::from_str(&text).map_err(|error| Error::Refused(format!("{error}: {text}")))
    }
}

/// Runs promtool with this standard input; returns what it printed.
pub async fn promtool(arguments: &[&str], input: &str) -> Result<String, Error> {
    let mut child = Command::new(find("promtool")?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // promtool prints remarks on metrics, and exits with 0.
    if output.status.success() && (arguments[..2] != ["check", "metrics"] || printed.trim().is_empty()) {
        return Ok(printed.into_owned());
    }
    Err(Error::Refused(printed.into_owned()))
}

fn find(program: &'static str) -> Result<&'static Path, Error> {
    let path = Path::new(if program == "promtool" {
        "/usr/bin/promtool"
    } else {
        "/usr/bin/prometheus"
    });
    if path.is_file() {
        return Ok(path);
    }
    let missing = format!("{program} is missing: run tests/cluster/packages");
    Err(Error::Run(io::Error::new(io::ErrorKind::NotFound, missing)))
}
