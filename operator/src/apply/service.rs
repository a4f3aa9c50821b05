//! Applies the Service for clients, whose address nodes hold.

use crds::{RegistryMirror, conditions::Reason};
use kube::ResourceExt;

use super::{Applier, ApplyError, OwnedUids, key};
use crate::{
    cluster::Cluster,
    desired::{Child, Desired},
    kind::Kind,
    validate::Rejection,
};

/// Applies the Service for clients only, after the check of all names.
///
/// # Errors
/// Those of [`apply`](super::apply).
pub async fn apply_service(
    mirror: &RegistryMirror,
    desired: &Desired,
    cluster: &Cluster,
) -> Result<(), ApplyError> {
    let applier = Applier::new(mirror, cluster);
    let owned = applier.find_owned(desired).await?;
    let name = mirror.name_any();
    let services = desired
        .children()
        .filter(|child| child.kind == Kind::Service && child.name == name);
    for service in services {
        let done = applier.apply(service, &owned).await;
        done.map_err(|error| applier.explain(service, &owned, error))?;
    }
    Ok(())
}

impl Applier<'_> {
    /// Explains the rejection of the address of a deleted Service: the operator requests the address that nodes hold, and
    /// the spec may be valid.
    pub(super) fn explain(&self, child: &Child, owned: &OwnedUids, error: ApplyError) -> ApplyError {
        let status = self.mirror.status.as_ref();
        let endpoint = status.and_then(|status| status.endpoint.as_ref());
        let is_lost = child.kind == Kind::Service
            && child.name == self.mirror.name_any()
            && !owned.contains_key(&key(child));
        match (error, endpoint.filter(|_| is_lost)) {
            (ApplyError::Rejected(rejection), Some(endpoint)) if is_about_address(&rejection) => {
                ApplyError::Rejected(Rejection {
                    reason: Reason::AddressTaken,
                    message: format!(
                        "deleted Service {} not created again at {}, which nodes pull through: {}; free the address or node \
                         port, or set another one in spec.service and give nodes the new files",
                        child.name, endpoint.url, rejection.message
                    ),
                })
            }
            (error, _) => error,
        }
    }
}

/// Returns whether the API server's validation names an address or a node port of a Service.
fn is_about_address(rejection: &Rejection) -> bool {
    let fields = ["spec.clusterIP", "].nodePort: "];
    fields.iter().any(|field| rejection.message.contains(field))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("spec.clusterIPs: Invalid value: [\"10.0.0.5\"]: failed to allocate IP 10.0.0.5: provided IP is already allocated" => true; "address")]
    #[test_case("spec.ports[0].nodePort: Invalid value: 30500: provided port is already allocated" => true; "node port")]
    #[test_case("metadata.annotations: Invalid value: \"a b\": name part must consist of alphanumeric characters" => false; "annotation")]
    #[test_case("spec.loadBalancerClass: Invalid value: \"x y\": name part must consist of" => false; "class")]
    fn refusal_is_about_address(field: &str) -> bool {
        let words = format!("the API server refuses Service hub: Service \"hub\" is invalid: {field}");
        is_about_address(&Rejection::invalid(words))
    }
}
