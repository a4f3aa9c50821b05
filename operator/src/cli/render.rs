//! `registry-mirror render`.

use std::{
    fmt,
    io::{self, Write},
};

use crds::RegistryMirror;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::Value;

use super::{
    Failure,
    documents::{DEFAULT_NAMESPACE, Documents, FileArgs},
    placeholders::Placeholders,
    print::{self, OutputFormat},
};
use crate::{
    certificates::{self, CertificateLifetimes},
    dereference::{self, Reader, Reference, References},
    desired::{self, Child, Platform, Release},
    kind::Kind,
    names,
    observed::{Observed, ServiceAddress},
    peer_secret,
    policy::Policy,
    validate, warnings,
};

const EXAMPLES: &str = "\
Examples:
  registry-mirror render -f mirror.yaml -f secret.yaml
      Show every object that the operator would apply
  registry-mirror render -f mirror.yaml -n mirrors --strict --show-secrets
      With the values of Secrets, and only if the files have everything that the mirror refers to
  registry-mirror render -f mirrors/ -o json
      Of all mirrors in a directory, as one List for a machine
  kubectl get rmir,secret,configmap -n mirrors -o yaml | registry-mirror render -f -
      What a new version of the operator would make of what is there

The values of Secrets are masked with a text that is not base64: kubectl apply refuses these Secrets.";

/// A value in place of a Secret's. It is not base64, so that no API server accepts it.
const MASKED: &str = "(masked: --show-secrets prints the value)";
/// The same for a value that no file holds.
const PLACEHOLDER: &str = "(placeholder: the files do not hold the value)";

/// The arguments of `render`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RenderArgs {
    #[command(flatten)]
    files: FileArgs,
    /// The namespace of mirrors that name none. Absent: the objects name none either
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Print the values of Secrets
    #[arg(long)]
    show_secrets: bool,
    /// Fail with exit code 3 if an object that a mirror refers to is not in the files
    #[arg(long)]
    strict: bool,
    /// The server's image where the spec names none
    #[arg(long, default_value_t = Release::default().server_image, value_name = "IMAGE")]
    server_image: String,
    /// The kind of cluster, as the operator has it
    #[arg(long, value_enum, default_value_t, value_name = "PLATFORM")]
    platform: Platform,
    /// The format of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: OutputFormat,
}

/// Prints every object of every mirror, and warns of missing references and of risks.
pub(super) async fn run(args: RenderArgs) -> Result<(), Failure> {
    let documents = args.files.read(args.namespace.as_deref())?;
    let mut manifests = Vec::new();
    for mirror in &documents.mirrors {
        manifests.extend(objects(&args, mirror, &documents).await?);
    }
    if !args.show_secrets && manifests.iter().any(is_secret) {
        writeln!(
            io::stderr(),
            "registry-mirror: values of Secrets are masked, and kubectl apply refuses them; --show-secrets prints them"
        )?;
    }
    print::objects(&manifests, args.output)
}

/// Returns the objects of a mirror as they are printed.
async fn objects(
    args: &RenderArgs,
    given: &RegistryMirror,
    documents: &Documents,
) -> Result<Vec<Value>, Failure> {
    let mut mirror = given.clone();
    mirror
        .metadata
        .namespace
        .get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
    if given.metadata.namespace.is_none() && names_namespace(&mirror) {
        warn(
            "metadata.namespace is missing, and certificates, traces and the prefix in a bucket name default: set one with --namespace",
        )?;
    }
    let Ok(references) = dereference::read(&mirror, documents).await;
    let missing = missing(&mirror, &references);
    let placeholders =
        Placeholders::new(&mirror, documents, &missing).map_err(certificates::CertificateError::from)?;
    let has_placeholders = placeholders.references().next().is_some();
    let desired = if args.strict {
        desired(args, &mirror, documents).await?
    } else {
        for reference in placeholders.references() {
            match documents.misplaced(&mirror, reference) {
                Some(misplaced) => warn(misplaced)?,
                None => warn(format_args!(
                    "{reference} not found in the files, its values are placeholders: add its file with -f"
                ))?,
            }
        }
        desired(args, &mirror, &placeholders).await?
    };
    let children = desired.children().map(|child| {
        let mut manifest = child.manifest.clone();
        if is_secret(&manifest) && (has_placeholders && has_files(&mirror, child)) {
            mask(&mut manifest, PLACEHOLDER);
        } else if is_secret(&manifest) && !args.show_secrets {
            mask(&mut manifest, MASKED);
        }
        if given.metadata.namespace.is_none() {
            leave_namespace_open(&mut manifest);
        }
        manifest
    });
    Ok(children.collect())
}

/// Returns what the operator would apply, and warns of what the spec allows to go wrong.
async fn desired<R>(
    args: &RenderArgs,
    mirror: &RegistryMirror,
    reader: &R,
) -> Result<desired::Desired, Failure>
where
    R: Reader<Error = std::convert::Infallible>,
{
    let release = Release {
        server_image: args.server_image.clone(),
        platform: args.platform,
        ..Release::default()
    };
    let Ok(references) = dereference::read(mirror, reader).await;
    let mut accepted = validate::accept(mirror, &references)?;
    for problem in accepted.credential_problems() {
        if args.strict {
            return Err(Failure::Reference(problem));
        }
        warn(problem)?;
    }
    if let Err(refused) = Policy::default().check(mirror, &release.server_image, None) {
        warn(format_args!(
            "an operator with the default policy refuses the mirror: {refused}"
        ))?;
    }
    for risk in warnings::find(mirror, &release.server_image) {
        warn(risk)?;
    }
    let observed = observed(mirror);
    let names = certificates::subject_names(mirror, &observed);
    let (now, terms) = (Timestamp::now(), CertificateLifetimes::default());
    // A new secret in each output would be a change each time: the servers act alone until a file has one.
    peer_secret::keep(&mut accepted, &references);
    certificates::ensure(&mut accepted, &references, &names, now, &terms)?;
    Ok(desired::objects(&accepted, &references, &observed, &release)?)
}

/// Returns whether values of objects, such as the names in a certificate, have the namespace in them.
fn names_namespace(mirror: &RegistryMirror) -> bool {
    let bucket = mirror.spec.storage.object_store.as_ref();
    certificates::is_self_signed(mirror)
        || mirror.spec.observability.otlp_endpoint.is_some()
        || bucket.is_some_and(|bucket| bucket.prefix().is_none())
}

pub(super) fn warn(message: impl fmt::Display) -> io::Result<()> {
    writeln!(io::stderr(), "registry-mirror: warning: {message}")
}

/// Returns the references of a mirror to objects that no file holds.
fn missing(mirror: &RegistryMirror, references: &References) -> Vec<Reference> {
    let mut all = dereference::references(mirror);
    all.retain(|reference| references.get(reference).is_none());
    all.into_iter().collect()
}

fn is_secret(manifest: &Value) -> bool {
    manifest["kind"] == "Secret"
}

/// Returns whether an object is the Secret with copies of the files that a spec refers to.
fn has_files(mirror: &RegistryMirror, child: &Child) -> bool {
    let holds_bucket = mirror.spec.storage.object_store.is_some();
    let (mirror, name) = (mirror.name_any(), child.name.as_str());
    child.kind == Kind::Secret
        && (name == names::files(&mirror) || holds_bucket && name == names::credentials(&mirror))
}

/// Puts a text in place of each value of a Secret.
fn mask(secret: &mut Value, text: &str) {
    let data = secret.get_mut("data").and_then(Value::as_object_mut);
    data.into_iter()
        .flat_map(|data| data.values_mut())
        .for_each(|value| *value = text.into());
}

/// Removes the namespace, so that `kubectl apply -n` chooses it.
fn leave_namespace_open(manifest: &mut Value) {
    let metadata = manifest.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.and_then(|metadata| metadata.remove("namespace"));
}

/// Returns the state of a cluster that holds nothing, and gives the Service the address that the spec asks for, if any:
/// without an address there are no files for nodes yet.
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
