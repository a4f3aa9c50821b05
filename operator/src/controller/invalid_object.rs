//! Stored mirrors that no longer parse: the operator reports each in its status and continues with the others.

use crds::{RegistryMirror, conditions::Reason};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{
    Api, Resource,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, error_boundary::InvalidObject},
};
use serde_json::{Value, json};

use super::Context;
use crate::{
    cluster::FIELD_MANAGER,
    status::{conditions, events},
    validate::Rejection,
};

/// Sets `Accepted=False/InvalidSpec`, and leaves the mirror's objects as they are.
///
/// # Errors
/// Those of the API server.
pub(super) async fn report(invalid: &InvalidObject, context: &Context) -> kube::Result<()> {
    let name = invalid.metadata.name.as_deref().unwrap_or_default();
    let namespace = invalid.metadata.namespace.as_deref().unwrap_or_default();
    tracing::warn!(
        name,
        namespace,
        error = invalid.error,
        "stored RegistryMirror not readable: apply it again in the form of the installed version"
    );
    let resource = ApiResource::erase::<RegistryMirror>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.cluster.client(), namespace, &resource);
    // A list of one object: the operator has no permission to `get` mirrors.
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    let Some(stored) = api.list(&named).await?.items.pop() else {
        return Ok(());
    };
    let mut status = stored.data.get("status").cloned().unwrap_or_else(|| json!({}));
    let before = readable_conditions(&status);
    let now = conditions::unreadable(
        stored.metadata.generation,
        &before,
        &rejection(invalid),
        Timestamp::now(),
    );
    if now == before {
        return Ok(());
    }
    status["conditions"] = json!(now);
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"uid": stored.metadata.uid},
        "status": status,
    });
    let written = api
        .patch_status(
            name,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(&patch),
        )
        .await;
    events::publish(
        &context.recorder,
        &stored.object_ref(&resource),
        &events::transitions(&before, &now),
    )
    .await;
    match written {
        // The schema may refuse the same field, and then no status can be written: the event and the log report it.
        Err(kube::Error::Api(answer)) if answer.is_invalid() => Ok(()),
        written => written.map(|_| ()),
    }
}

/// Returns the rejection that the conditions report.
fn rejection(invalid: &InvalidObject) -> Rejection {
    Rejection {
        reason: Reason::InvalidSpec,
        message: format!(
            "stored object not readable: {}; apply it again in the form of the installed version",
            invalid.error
        ),
    }
}

/// Returns the conditions of a status, without malformed ones.
fn readable_conditions(status: &Value) -> Vec<Condition> {
    let conditions = status
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    conditions
        .filter_map(|condition| serde_json::from_value(condition.clone()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_condition_is_left_out() {
        let status = json!({"conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": 7},
        ]});
        assert_eq!(readable_conditions(&status).len(), 1);
        assert!(readable_conditions(&json!({})).is_empty());
    }
}
