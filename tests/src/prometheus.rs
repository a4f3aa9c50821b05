//! Prometheus: its parser of rules, and a server that scrapes.

pub mod server;

use std::io;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::binaries;

/// Prometheus would not start with these rules.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Program(#[from] binaries::Error),
    #[error("can't run Prometheus: {0}")]
    Run(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}

/// A selector of time series in an expression.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// The metric's name.
    pub metric: String,
    /// The labels that the expression names of it.
    pub labels: Vec<String>,
}

/// Returns the groups of rules in a chart's objects: those of each `PrometheusRule`, and one of the queries of each
/// dashboard.
pub fn groups(objects: &[Value]) -> Vec<Value> {
    let mut groups = Vec::new();
    for object in objects {
        let name = &object["metadata"]["name"];
        if object["kind"] == "PrometheusRule" {
            groups.extend(object["spec"]["groups"].as_array().cloned().unwrap_or_default());
        }
        for (file, content) in object["data"].as_object().into_iter().flatten() {
            let mut asked = Vec::new();
            let dashboard = content.as_str().map(serde_json::from_str::<Value>);
            expressions(&dashboard.and_then(Result::ok).unwrap_or_default(), &mut asked);
            if asked.is_empty() {
                continue;
            }
            let rules: Vec<_> = asked
                .iter()
                .map(|expression| json!({"record": "panel", "expr": with_variables(expression, "5m")}))
                .collect();
            groups.push(json!({"name": format!("{name} {file}"), "rules": rules}));
        }
    }
    groups
}

/// Returns the expression of a panel with the variables of the dashboard: every mirror, and this range.
pub fn with_variables(expression: &str, range: &str) -> String {
    let expression = expression
        .replace("$__rate_interval", range)
        .replace("$__range", range);
    ["$cluster", "$namespace", "$mirror"]
        .iter()
        .fold(expression, |expression, variable| {
            expression.replace(variable, ".*")
        })
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| expressions(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// Parses groups of rules with Prometheus' own parser, and returns their selectors.
pub async fn read(groups: &[Value]) -> Result<Vec<Selector>, Error> {
    let program = binaries::get("prometheus-rules").await?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(json!({"groups": groups}).to_string().as_bytes())
            .await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        return Err(Error::Refused(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let selector = |line: &str| {
        let (metric, labels) = line.split_once(' ')?;
        let labels = labels.split(',').filter(|label| !label.is_empty());
        Some(Selector {
            metric: metric.to_owned(),
            labels: labels.map(str::to_owned).collect(),
        })
    };
    let mut selectors: Vec<_> = printed.lines().filter_map(selector).collect();
    selectors.sort_unstable();
    selectors.dedup();
    Ok(selectors)
}
