//! Computes the source of a Pod template.

use crds::RegistryMirror;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Release, child::Child};
use crate::{
    names,
    observed::{Observed, PodTemplateSource},
};

/// Returns the source of a desired workload. The time of an admission stays while the template is the same.
pub(super) fn compute(
    mirror: &RegistryMirror,
    workload: &Child,
    release: &Release,
    observed: &Observed,
) -> PodTemplateSource {
    let template = workload.manifest.pointer("/spec/template");
    let template = template.map(ToString::to_string).unwrap_or_default();
    let template = hex::encode(&Sha256::digest(template)[..16]);
    let applied = observed
        .workload
        .as_ref()
        .and_then(|workload| workload.template_source.as_ref());
    let same = applied.filter(|applied| applied.template == template);
    PodTemplateSource {
        upgraded: same.and_then(|same| same.upgraded),
        template,
        generation: mirror.metadata.generation,
        server_image: release.server_image.clone(),
    }
}

/// Annotates the workload with the source.
pub(super) fn annotate(source: &PodTemplateSource, workload: &mut Child) {
    workload.manifest["metadata"]["annotations"][names::POD_TEMPLATE_SOURCE.current] =
        json!(json!(source).to_string());
}
