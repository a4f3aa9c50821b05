//! The requests that the API server answered, read from its audit log.
//!
//! The API server writes each event before it has finished with the request, so an answered request is in the log, give
//! or take the last instant: a test waits for an event that must come, and counts events that must not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

/// An audit policy that logs Secrets and tokens by their names only, and other writes with their bodies.
pub(crate) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ['system:apiserver']
- level: Metadata
  resources: [{group: '', resources: [secrets, serviceaccounts/token]}]
- level: Request
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
";

/// The bytes that are read at a time to find the end of a line backwards.
const BLOCK: u64 = 16 * 1024;

/// The audit log of one API server.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

/// One request.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The path with its query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// `ResponseComplete`; `ResponseStarted` for a watch that stays open.
    pub stage: String,
    /// The time of the answer.
    pub stage_timestamp: Timestamp,
    user: User,
    impersonated_user: Option<User>,
    /// The object of the request; empty for `/healthz` and the like.
    #[serde(default)]
    pub object_ref: ObjectRef,
    response_status: Option<ResponseStatus>,
    /// The body of a write, other than of a Secret.
    pub request_object: Option<serde_json::Value>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The object or collection of a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// The plural, say `configmaps`.
    pub resource: String,
    /// Empty for resources of the cluster.
    pub namespace: String,
    /// Empty for a collection.
    pub name: String,
    /// Say `status`; empty for the object itself.
    pub subresource: String,
}

#[derive(Debug, Clone, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Clone, Deserialize)]
struct ResponseStatus {
    code: u16,
    #[serde(default)]
    message: String,
}

impl Event {
    /// Returns the user whose permissions the API server checked for the request.
    pub fn user(&self) -> &str {
        &self.impersonated_user.as_ref().unwrap_or(&self.user).username
    }

    /// Returns the status code of the answer.
    pub fn code(&self) -> Option<u16> {
        self.response_status.as_ref().map(|status| status.code)
    }

    /// Returns true if RBAC denied the request to its user; a policy or a quota only refuses requests that RBAC
    /// allowed.
    pub fn is_beyond_rights(&self) -> bool {
        let decision = self.annotations.get("authorization.k8s.io/decision");
        decision.is_some_and(|decision| decision == "forbid")
    }

    /// Returns whether an admission policy whose name begins with `prefix` refused the request.
    pub fn is_denied_by(&self, prefix: &str) -> bool {
        let policy = format!("ValidatingAdmissionPolicy '{prefix}");
        self.response_status
            .as_ref()
            .is_some_and(|status| status.message.contains(&policy))
    }

    /// Returns true for requests that can change something, refused ones included.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

impl Audit {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Returns the present end of the log: that of its last whole line.
    pub fn mark(&self) -> io::Result<Mark> {
        let mut file = File::open(&self.path)?;
        let mut end = file.metadata()?.len();
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            file.seek(SeekFrom::Start(start))?;
            let mut block = Vec::new();
            Read::by_ref(&mut file)
                .take(end - start)
                .read_to_end(&mut block)?;
            if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
                return Ok(Mark(start + at as u64 + 1));
            }
            end = start;
        }
        Ok(Mark(0))
    }

    /// Returns the requests that were logged after `mark`, in the order in which they ended.
    pub fn since(&self, mark: Mark) -> io::Result<Vec<Event>> {
        self.lines_with(mark, "")
    }

    /// Returns the events whose lines have a text in them.
    fn lines_with(&self, mark: Mark, text: &str) -> io::Result<Vec<Event>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(mark.0))?;
        let mut reader = BufReader::new(file);
        let mut events = Vec::new();
        let mut line = String::new();
        // A last line without its end is still being written.
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            if line.contains(text) {
                events.push(serde_json::from_str(&line)?);
            }
            line.clear();
        }
        Ok(events)
    }

    /// Returns the requests of a user after `mark` that RBAC denied, as `VERB PATH`.
    pub fn refused(&self, mark: Mark, user: &str) -> io::Result<Vec<String>> {
        let events = self.lines_with(mark, user)?.into_iter();
        let refused = events.filter(|event| event.user() == user && event.is_beyond_rights());
        Ok(refused
            .map(|event| format!("{} {}", event.verb, event.request_uri))
            .collect())
    }

    /// Returns the requests of a user after `mark` that an admission policy refused whose name begins with `prefix`, as
    /// `VERB PATH`.
    pub fn denied(&self, mark: Mark, user: &str, prefix: &str) -> io::Result<Vec<String>> {
        let events = self.lines_with(mark, user)?.into_iter();
        let denied = events.filter(|event| event.user() == user && event.is_denied_by(prefix));
        Ok(denied
            .map(|event| format!("{} {}", event.verb, event.request_uri))
            .collect())
    }

    /// Returns the writes of one user after `mark`, in one namespace.
    pub fn writes(&self, mark: Mark, user: &str, namespace: &str) -> io::Result<Vec<Event>> {
        let mut events = self.since(mark)?;
        events.retain(|e| e.is_write() && e.user() == user && e.object_ref.namespace == namespace);
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const PATCH: &str = r#"{"kind":"Event","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/configmaps/c?fieldManager=m","verb":"patch","stageTimestamp":"2026-01-01T00:00:00.000000Z","user":{"username":"admin"},"impersonatedUser":{"username":"operator"},"objectRef":{"resource":"configmaps","namespace":"a","name":"c","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":200}}"#;
    const GET: &str = r#"{"kind":"Event","stage":"ResponseComplete","requestURI":"/readyz","verb":"get","stageTimestamp":"2026-01-01T00:00:00.000000Z","user":{"username":"admin"},"responseStatus":{"metadata":{},"code":200}}"#;

    /// The audit log lists writes by user and namespace since a mark.
    #[test]
    fn audit_filters_writes_by_user_and_namespace() {
        let scratch = Scratch::new("audit").unwrap();
        let half = &PATCH[..40];
        let audit = Audit::new(
            &scratch
                .write("log", format!("{GET}\n{PATCH}\n{PATCH}\n{half}"))
                .unwrap(),
        );
        let after_get = Mark(GET.len() as u64 + 1);
        assert_eq!(audit.since(Mark(0)).unwrap().len(), 3);
        let whole = GET.len() + 2 * PATCH.len() + 3;
        assert_eq!(
            audit.mark().unwrap(),
            Mark(whole as u64),
            "half a line is after the mark"
        );
        assert_eq!(audit.since(after_get).unwrap().len(), 2);
        let writes = audit.writes(after_get, "operator", "a").unwrap();
        assert_eq!(writes.len(), 2);
        assert_eq!(writes[0].code(), Some(200));
        assert_eq!(audit.writes(after_get, "admin", "a").unwrap().len(), 0);
        assert_eq!(audit.writes(after_get, "operator", "b").unwrap().len(), 0);
    }

    /// The audit log separates denials by RBAC from refusals by a quota.
    #[test]
    fn audit_separates_rbac_denials_from_quota() {
        let line = |user: &str, decision: &str| {
            format!(
                r#"{{"stage":"ResponseComplete","requestURI":"/api/v1/pods","verb":"list","stageTimestamp":"2026-01-01T00:00:00.000000Z","user":{{"username":"admin"}},"impersonatedUser":{{"username":"{user}"}},"responseStatus":{{"code":403}},"annotations":{{"authorization.k8s.io/decision":"{decision}"}}}}"#
            )
        };
        let scratch = Scratch::new("audit").unwrap();
        let lines = [line("a", "allow"), line("a", "forbid"), line("b", "forbid")].join("\n");
        let audit = Audit::new(&scratch.write("log", lines + "\n").unwrap());
        assert_eq!(audit.refused(Mark(0), "a").unwrap(), ["list /api/v1/pods"]);
    }
}
