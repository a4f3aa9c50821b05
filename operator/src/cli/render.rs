//! `registry-mirror render`.

use std::io::{self, Write};

use crds::RegistryMirror;

use k8s_openapi::jiff::Timestamp;

use super::{
    Failure,
    documents::Files,
    print::{self, Format},
};
use crate::{
    dereference,
    desired::{self, Release},
    issue::{self, Terms},
    observed::{Observed, ServiceAddress},
    risks, validate,
};

const EXAMPLES: &str = "\
Examples:
  registry-mirror render -f mirror.yaml -f secret.yaml
      Show every object that the operator would apply
  registry-mirror render -f mirrors/ -o json
      Of all mirrors in a directory, as one List for a machine
  kubectl get rmir,secret,configmap -n mirrors -o yaml | registry-mirror render -f -
      What a new version of the operator would make of what is there";

/// What to render.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    /// The server's image where the spec names none
    #[arg(long, default_value_t = Release::default().server_image, value_name = "IMAGE")]
    server_image: String,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Prints every object of every mirror, and warns of what may go wrong with it. Of Secrets that are not in the files,
/// too: the operator would say so in the status, and apply the rest.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let documents = args.files.read()?;
    let release = Release {
        server_image: args.server_image,
        ..Release::default()
    };
    let mut manifests = Vec::new();
    for mirror in &documents.mirrors {
        let Ok(references) = dereference::read(mirror, &documents).await;
        let mut accepted = validate::accept(mirror, &references)?;
        for problem in accepted.credential_problems() {
            writeln!(io::stderr(), "registry-mirror: warning: {problem}")?;
        }
        for risk in risks::of(mirror, &release.server_image) {
            let (field, message, advice) = (&risk.field, &risk.message, risk.advice);
            writeln!(
                io::stderr(),
                "registry-mirror: warning: {field}: {message}; {advice}"
            )?;
        }
        let observed = observed(mirror);
        let names = issue::names(mirror, &observed);
        issue::certificates(
            &mut accepted,
            &references,
            &names,
            Timestamp::now(),
            &Terms::default(),
        )?;
        let desired = desired::objects(&accepted, &references, &observed, &release)?;
        manifests.extend(desired.children().map(|child| child.manifest.clone()));
    }
    print::objects(&manifests, args.output)
}

/// A cluster that holds nothing, and gives the Service the address that the spec asks for, if any: without one there
/// are no files for nodes yet.
fn observed(mirror: &RegistryMirror) -> Observed {
    let service = &mirror.spec.service;
    Observed {
        service_names: service.cluster_ip.iter().cloned().collect(),
        service: service.cluster_ip.clone().map(|ip| ServiceAddress {
            ip,
            port: service.port,
        }),
        ..Observed::default()
    }
}
