//! The report of findings, for people and for programs.

mod table;

use std::{
    fmt,
    io::{self, Write},
};

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::Failure;
pub(super) use table::FindingTable;

/// The format of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Table,
    /// For machines
    Json,
    /// For machines, too
    Yaml,
}

/// The subject of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Check {
    /// The API server and its version.
    ApiServer,
    /// The kind `RegistryMirror`.
    Definition,
    /// The operator's Deployment.
    Operator,
    /// The RBAC permissions of the operator.
    Rights,
    /// The policies for specs and for the operator's writes.
    Policy,
    /// The status of a mirror.
    Mirror,
    /// The endpoint of a mirror.
    Endpoint,
    /// The files that it publishes for nodes.
    Nodes,
    /// A warning about a valid spec.
    Risk,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Worth a look; does not count for the exit code.
    Warning,
    /// A problem that has to be fixed.
    Problem,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        }
    }
}

/// The class of a problem in ascending severity, with the exit codes that all commands share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Anything else.
    Other,
    /// An object that a spec names.
    Reference,
    /// A spec.
    Spec,
    /// The cluster: without it nothing else can be trusted.
    Cluster,
}

/// The finding of a check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    check: Check,
    /// An object or an address.
    subject: String,
    result: Severity,
    /// A name that does not change, where there is one: a condition's reason or a risk's.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    #[serde(skip)]
    class: Class,
}

impl Finding {
    fn new(check: Check, subject: impl fmt::Display, result: Severity, message: impl fmt::Display) -> Self {
        Self {
            check,
            subject: subject.to_string(),
            result,
            reason: None,
            message: message.to_string(),
            advice: None,
            class: Class::Other,
        }
    }

    pub(super) fn ok(check: Check, subject: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::new(check, subject, Severity::Ok, message)
    }

    pub(super) fn warning(check: Check, subject: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::new(check, subject, Severity::Warning, message)
    }

    pub(super) fn problem(
        check: Check,
        class: Class,
        subject: impl fmt::Display,
        message: impl fmt::Display,
    ) -> Self {
        Self {
            class,
            ..Self::new(check, subject, Severity::Problem, message)
        }
    }

    /// Adds the action.
    pub(super) fn advice(self, advice: impl fmt::Display) -> Self {
        Self {
            advice: Some(advice.to_string()),
            ..self
        }
    }

    /// Its name.
    pub(super) fn reason(self, reason: impl fmt::Display) -> Self {
        Self {
            reason: Some(reason.to_string()),
            ..self
        }
    }
}

/// The report of all findings.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Of this program.
    version: &'static str,
    problems: usize,
    warnings: usize,
    /// The exit code of the process.
    exit_code: u8,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            problems: 0,
            warnings: 0,
            exit_code: 0,
            findings,
        };
        report.problems = report.having(Severity::Problem).count();
        report.warnings = report.having(Severity::Warning).count();
        report.exit_code = report.failure().map_or(0, |failure| failure.number());
        report
    }

    /// Returns the failure of the command, if there is a problem.
    pub(super) fn failure(&self) -> Option<Failure> {
        let class = self
            .having(Severity::Problem)
            .map(|finding| finding.class)
            .max()?;
        let message = format!("doctor found {}", counted(self.problems, "problem"));
        Some(match class {
            Class::Cluster => Failure::Environment(message),
            Class::Spec => Failure::Invalid(message),
            Class::Reference => Failure::Reference(message),
            Class::Other => Failure::Other(io::Error::other(message)),
        })
    }

    /// Returns the problems in a line each.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.having(Severity::Problem)
            .map(|finding| format!("{}: {}", finding.subject, finding.message))
    }

    fn having(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding.result == severity)
    }

    pub(super) fn print(&self, output: Output, to: &mut impl Write) -> io::Result<()> {
        match output {
            Output::Table => {
                let mut table = FindingTable::new(to);
                table.print(&self.findings)?;
                table.end(self)
            }
            Output::Json => {
                let json = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
                writeln!(to, "{json}")
            }
            Output::Yaml => {
                let yaml = serde_saphyr::to_string(self).map_err(io::Error::other)?;
                writeln!(to, "{}", yaml.trim_end())
            }
        }
    }
}

fn counted(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(class: Class) -> Finding {
        Finding::problem(Check::Mirror, class, "a/hub", "is not well").advice("see a doctor")
    }

    fn code(findings: Vec<Finding>) -> u8 {
        Report::new(findings).exit_code
    }

    #[test]
    fn exit_code_is_of_the_most_severe_class() {
        let warning = Finding::warning(Check::Risk, "a/hub", "may be");
        assert_eq!(code(vec![warning]), 0);
        assert_eq!(code(vec![problem(Class::Other)]), 1);
        assert_eq!(code(vec![problem(Class::Other), problem(Class::Reference)]), 3);
        assert_eq!(code(vec![problem(Class::Spec), problem(Class::Reference)]), 2);
        assert_eq!(code(vec![problem(Class::Cluster), problem(Class::Spec)]), 4);
    }

    fn printed(output: Output) -> String {
        let ok = Finding::ok(Check::ApiServer, "https://10.0.0.1", "is well");
        let report = Report::new(vec![ok, problem(Class::Other).reason("Ill")]);
        let mut text = Vec::new();
        report.print(output, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn table_has_a_line_per_finding_and_advice() {
        insta::assert_snapshot!(printed(Output::Table), @r"
        RESULT   CHECK       SUBJECT                             MESSAGE
        ok       api-server  https://10.0.0.1                    is well
        PROBLEM  mirror      a/hub                               is not well
                 mirror                                          -> see a doctor

        1 problem, no warnings
        ");
    }

    /// JSON and YAML have the same content in a stable form.
    #[test]
    fn json_and_yaml_have_the_same_stable_form() {
        insta::assert_snapshot!(printed(Output::Json), @r#"
        {
          "version": "0.1.0",
          "problems": 1,
          "warnings": 0,
          "exitCode": 1,
          "findings": [
            {
              "check": "api-server",
              "subject": "https://10.0.0.1",
              "result": "ok",
              "message": "is well"
            },
            {
              "check": "mirror",
              "subject": "a/hub",
              "result": "problem",
              "reason": "Ill",
              "message": "is not well",
              "advice": "see a doctor"
            }
          ]
        }
        "#);
        let yaml: serde_json::Value = serde_saphyr::from_str(&printed(Output::Yaml)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&printed(Output::Json)).unwrap();
        assert_eq!(yaml, json);
    }
}
