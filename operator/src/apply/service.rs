//! Applies the Service for clients, whose address nodes hold.

use crds::{RegistryMirror, conditions::Reason};
use kube::{ResourceExt, core::Status};

use super::{Applier, ApplyError, OwnedUids, key};
use crate::{
    cluster::Cluster,
    desired::{Child, Desired},
    kind::Kind,
    observed::Observed,
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

/// Checks that the Service still exists if it was observed. The desired Service requests no numbers then, and the API server
/// would allocate others than nodes hold. The retry requests those of the status.
pub(super) fn check_kept(
    mirror: &RegistryMirror,
    observed: &Observed,
    owned: &OwnedUids,
) -> Result<(), ApplyError> {
    let name = mirror.name_any();
    if observed.service.is_none() || owned.contains_key(&(Kind::Service, name.clone())) {
        return Ok(());
    }
    let message = "it was deleted during the reconcile";
    let source = Status::failure(message, "Conflict").with_code(409).boxed();
    let source = kube::Error::Api(source);
    Err(ApplyError::cluster("applied", Kind::Service, &name, source))
}

/// Returns whether the API server's validation names an address or a node port of a Service.
fn is_about_address(rejection: &Rejection) -> bool {
    let fields = ["spec.clusterIP", "].nodePort: "];
    fields.iter().any(|field| rejection.message.contains(field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_case::test_case;

    use super::*;
    use crate::observed::ServiceAddress;

    #[test_case("spec.clusterIPs: Invalid value: [\"10.0.0.5\"]: failed to allocate IP 10.0.0.5: provided IP is already allocated" => true; "address")]
    #[test_case("spec.ports[0].nodePort: Invalid value: 30500: provided port is already allocated" => true; "node port")]
    #[test_case("metadata.annotations: Invalid value: \"a b\": name part must consist of alphanumeric characters" => false; "annotation")]
    #[test_case("spec.loadBalancerClass: Invalid value: \"x y\": name part must consist of" => false; "class")]
    fn refusal_is_about_address(field: &str) -> bool {
        let words = format!("the API server refuses Service hub: Service \"hub\" is invalid: {field}");
        is_about_address(&Rejection::invalid(words))
    }

    #[test_case(None, true => true; "not observed, created")]
    #[test_case(Some("10.96.0.7"), false => true; "observed and kept")]
    #[test_case(Some("10.96.0.7"), true => false; "deleted since")]
    fn service_deleted_since_observation_is_a_conflict(ip: Option<&str>, is_gone: bool) -> bool {
        let spec = json!({"upstreams": [{"host": "a.example"}], "storage": {"type": "Ephemeral"}});
        let mirror = RegistryMirror::new("hub", serde_json::from_value(spec).unwrap());
        let service = ip.map(|ip| ServiceAddress {
            ip: ip.to_owned(),
            port: 5000,
        });
        let observed = Observed {
            service,
            ..Observed::default()
        };
        let service = ((Kind::Service, "hub".to_owned()), "uid".to_owned());
        let owned = Some(service).filter(|_| !is_gone).into_iter().collect();
        check_kept(&mirror, &observed, &owned).is_ok()
    }
}
