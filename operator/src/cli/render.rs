//! `registry-mirror render`.

use std::io::{self, Write};

use super::{Failure, documents::Files};
use crate::{
    dereference,
    desired::{self, Release},
    observed::Observed,
    validate,
};

/// What to render.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    /// The server's image where the spec names none
    #[arg(long, default_value_t = Release::default().server_image, value_name = "IMAGE")]
    server_image: String,
}

/// Prints every object of every mirror. Secrets that are not in the files are warned of: the operator would say so in
/// the status, and apply the rest.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let documents = args.files.read()?;
    let release = Release {
        server_image: args.server_image,
    };
    let mut manifests = Vec::new();
    for mirror in &documents.mirrors {
        let Ok(references) = dereference::read(mirror, &documents).await;
        let accepted = validate::accept(mirror, &references)?;
        for problem in accepted.credential_problems() {
            writeln!(io::stderr(), "registry-mirror: warning: {problem}")?;
        }
        let desired = desired::objects(&accepted, &references, &Observed::default(), &release)?;
        manifests.extend(desired.children().map(|child| child.manifest.clone()));
    }
    super::print(&manifests)
}
