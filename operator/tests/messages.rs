//! The messages of the operator's errors.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "messages/golden.rs"]
mod golden;

use std::{fmt::Write, time::Duration};

use kube::core::Status;
use operator::{
    apply::ApplyError,
    controller::ReconcileError,
    kind::Kind,
    lease::{Closed, Lost},
};

fn answer(code: u16, message: &str) -> kube::Error {
    let message = message.to_owned();
    kube::Error::Api(Box::new(Status {
        code,
        message,
        ..Status::default()
    }))
}

/// Each error names the object, the failure, the cause and the action.
#[test]
fn error_messages_match_the_golden_file() {
    let (kind, name) = (Kind::ConfigMap, || "hub-config".to_owned());
    let errors: [&dyn std::error::Error; 10] = [
        &ReconcileError::Read(answer(403, "no permission")),
        &ReconcileError::Status(answer(422, "invalid")),
        &ReconcileError::Timeout,
        &ApplyError::Cluster {
            operation: "applied",
            kind,
            name: name(),
            source: Box::new(answer(500, "etcd is down")),
        },
        &ApplyError::Forbidden {
            kind,
            name: name(),
            message: "exceeded quota".to_owned(),
        },
        &ApplyError::Altered { kind, name: name() },
        &ApplyError::Conflict {
            kind,
            name: name(),
            after: Duration::from_secs(8),
        },
        &Closed,
        &Lost::Taken {
            lease: "registry-mirror".to_owned(),
            holder: "operator-2".to_owned(),
        },
        &Lost::Late {
            lease: "registry-mirror".to_owned(),
            why: "no response".to_owned(),
        },
    ];
    let mut text = String::new();
    for error in errors {
        writeln!(text, "{error}").unwrap();
    }
    golden::assert_golden("errors.txt", &text);
}
