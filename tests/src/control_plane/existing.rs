//! A cluster that is there already, used only where the user says so.

use std::env;
use std::io::Write;

use kube::config::Kubeconfig;

use super::{ControlPlane, Error, Options, access, manifests};
use crate::scratch::Scratch;

/// Returns true if tests run in the cluster of the kubeconfig. A KUBECONFIG alone does not ask for test objects in it.
pub fn is_used() -> bool {
    env::var("USE_EXISTING_CLUSTER").is_ok_and(|value| value == "true")
}

/// Returns true if `test` must not run here, as it kills or audits the API server, and writes that past the test's
/// captured output.
pub fn skip_on_existing_cluster(test: &str) -> bool {
    if is_used() {
        // The message is all there is to lose.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: it needs an API server of its own, not USE_EXISTING_CLUSTER"
        );
    }
    is_used()
}

impl ControlPlane {
    pub(super) async fn connect() -> Result<Self, Error> {
        let kubeconfig = Kubeconfig::read()?;
        let client = access::client(&kubeconfig, None).await?;
        for path in Options::default().manifests {
            manifests::apply(&client, &path).await?;
        }
        let scratch =
            Scratch::new("existing-cluster").map_err(Error::io("can't make a scratch directory"))?;
        Self::finish(scratch, kubeconfig, None)
    }
}
