//! A stored mirror that no longer parses: said so in its status, without standing in the way of others.

use crds::{RegistryMirror, conditions::Reason};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{
    Api, Resource,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, error_boundary::InvalidObject},
};
use serde_json::{Value, json};

use crate::{
    cluster::FIELD_MANAGER,
    controller::Context,
    status::{conditions, events},
    validate::Rejection,
};

/// Sets `Accepted=False/InvalidSpec`, and leaves the mirror's objects as they are.
///
/// # Errors
/// Those of the API server.
pub(crate) async fn report(invalid: &InvalidObject, context: &Context) -> kube::Result<()> {
    let name = invalid.metadata.name.as_deref().unwrap_or_default();
    let namespace = invalid.metadata.namespace.as_deref().unwrap_or_default();
    tracing::warn!(
        name,
        namespace,
        error = invalid.error,
        "a stored RegistryMirror can't be read"
    );
    let resource = ApiResource::erase::<RegistryMirror>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.cluster.client(), namespace, &resource);
    // A list of one, as the operator has no other reason for the right to `get` mirrors.
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    let Some(stored) = api.list(&named).await?.items.pop() else {
        return Ok(());
    };
    let mut status = stored.data.get("status").cloned().unwrap_or_else(|| json!({}));
    let before = of_status(&status);
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
        // What can't be read may also be what the present schema refuses, and then no status can be written: the
        // event and the log say it.
        Err(kube::Error::Api(answer)) if answer.is_invalid() => Ok(()),
        written => written.map(|_| ()),
    }
}

fn rejection(invalid: &InvalidObject) -> Rejection {
    Rejection {
        reason: Reason::InvalidSpec,
        message: format!(
            "the stored object can't be read: {}; apply it again in the form of the present version",
            invalid.error
        ),
    }
}

/// Those that can be read.
fn of_status(status: &Value) -> Vec<Condition> {
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
    fn conditions_that_can_be_read_are_kept_and_the_others_left_out() {
        let status = json!({"conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": 7},
        ]});
        assert_eq!(of_status(&status).len(), 1);
        assert!(of_status(&json!({})).is_empty());
    }
}
