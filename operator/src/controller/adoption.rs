//! The adoption of objects that a backup restored, as a step of a reconcile.

use std::iter;

use crds::{RegistryMirror, conditions::Reason};
use kube::Resource;

use super::{Context, ReconcileError};
use crate::{
    apply::{self, ApplyError},
    status::events,
};

/// Adopts the objects that a backup restored, and reports each in an event. Returns the API server's refusals.
///
/// # Errors
/// Those that a retry may fix.
pub(super) async fn adopt(mirror: &RegistryMirror, context: &Context) -> Result<Vec<String>, ReconcileError> {
    let mut adopted = Vec::new();
    let done = apply::adopt(mirror, &context.cluster, &mut adopted).await;
    let adoptions = adopted.iter().map(|(kind, name)| events::adoption(*kind, name));
    let adoptions: Vec<_> = adoptions.collect();
    events::publish(&context.recorder, &mirror.object_ref(&()), &adoptions).await;
    Ok(done?)
}

/// Adds the refusals of an adoption to the name conflict that follows from them.
pub(super) fn explain(error: ReconcileError, refusals: Vec<String>) -> ReconcileError {
    match error {
        ReconcileError::Apply(ApplyError::Rejected(mut rejection))
            if rejection.reason == Reason::NameConflict =>
        {
            let messages = iter::once(rejection.message).chain(refusals);
            rejection.message = messages.collect::<Vec<_>>().join("; ");
            ApplyError::Rejected(rejection).into()
        }
        error => error,
    }
}
