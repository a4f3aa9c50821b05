//! `registry-mirror node-config`.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crds::{RegistryMirror, tls::TlsMode};
use kube::ResourceExt;
use mirror::file_read::{self, MAX_FILE};

use super::{
    Failure,
    documents::{DEFAULT_NAMESPACE, Documents, FileArgs},
    local,
};
use crate::{
    dereference::{Reader, Reference},
    names::{self, CA_BUNDLE_KEY},
    node_config::{self, Marker, NodeEndpoint, NodeFile, NodeRoot, Runtime},
    observed::ServiceAddress,
    validate::bundle,
};

const EXAMPLES: &str = "\
Examples:
  kubectl get rmir/hub configmap/hub-hosts -o yaml | registry-mirror node-config -f - --runtime containerd --out files
      Write files/etc/containerd/certs.d/HOST/hosts.toml for a mirror that runs
  registry-mirror node-config -f mirror.yaml --runtime containerd --endpoint http://10.96.0.20:5000 --out /
      Configure this machine for a mirror at that address
  registry-mirror node-config -f mirror.yaml --runtime talos --endpoint https://10.96.0.20:5000 --ca-file ca.crt --out .
      Write a patch for talosctl, with the CA that signed the mirror's certificate

The command replaces a file that it wrote before. It replaces another file only with --force. JSON has no comments: an
existing daemon.json counts as another file. Links below the directory are not followed.";

/// The arguments of `node-config`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct NodeConfigArgs {
    #[command(flatten)]
    files: FileArgs,
    /// The mirror, if the files hold several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The container runtime, or the system, of the nodes
    #[arg(long, value_enum, value_name = "RUNTIME")]
    runtime: Runtime,
    /// The mirror's address for nodes, such as http://10.96.0.20:5000
    /// [default: status.endpoint.url, else spec.service.clusterIP]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// The CA certificates, in PEM, that nodes have to trust
    /// [default: ca.crt of ConfigMap NAME-ca, ConfigMap NAME-hosts or the Secret of spec.tls in the files]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The directory that stands for the root directory of a node; paths on the node are made below it
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// Replace files that this command did not write
    #[arg(long)]
    force: bool,
}

/// Writes the files for a runtime, prints their paths, and prints the limits of the runtime to stderr.
pub(super) async fn run(args: NodeConfigArgs) -> Result<(), Failure> {
    let documents = args.files.read(None)?;
    let mirror = local::choose(&documents, args.name.as_deref())?;
    let endpoint = endpoint(&args, mirror, &documents).await?;
    let made = node_config::files(args.runtime, mirror, &endpoint)
        .map_err(|error| Failure::Invalid(format!("RegistryMirror {}: {error}", mirror.name_any())))?;
    let id = node_config::mirror_id(mirror);
    let files = made.files.into_iter().map(|file| Marker::COMMAND.add(file, &id));
    let written = write(&args, files.collect())?;
    for path in written {
        writeln!(io::stdout(), "{}", args.out.join(path).display())?;
    }
    for note in made.notes {
        writeln!(io::stderr(), "registry-mirror: note: {note}")?;
    }
    Ok(())
}

/// Returns the mirror's address for nodes, with the CA certificates of an https endpoint.
async fn endpoint(
    args: &NodeConfigArgs,
    mirror: &RegistryMirror,
    documents: &Documents,
) -> Result<NodeEndpoint, Failure> {
    let mut endpoint = address(args, mirror, documents)?;
    let given = args.ca_file.as_deref().map(certificates_of_file).transpose()?;
    if endpoint.url.starts_with("http://") {
        return match given {
            Some(_) => Err(Failure::Invalid(format!(
                "--ca-file: the endpoint is {}, which has no certificate: give an https endpoint, or leave --ca-file out",
                endpoint.url
            ))),
            None => Ok(endpoint),
        };
    }
    endpoint.certificates = match given {
        Some(pem) => Some(pem),
        None => certificates(mirror, documents).await?,
    };
    if endpoint.certificates.is_none() && mirror.spec.tls.mode == TlsMode::SelfSigned {
        let name = mirror.name_any();
        return Err(Failure::Reference(format!(
            "RegistryMirror {name}: the CA of its certificate is not in the files: add ConfigMap {} with -f, or give --ca-file",
            names::ca_bundle(&name)
        )));
    }
    Ok(endpoint)
}

fn address(
    args: &NodeConfigArgs,
    mirror: &RegistryMirror,
    documents: &Documents,
) -> Result<NodeEndpoint, Failure> {
    let (url, origin) = match (
        &args.endpoint,
        documents.url(mirror),
        &mirror.spec.service.cluster_ip,
    ) {
        (Some(url), ..) => (url.clone(), "--endpoint"),
        (None, Some(url), _) => (url.to_owned(), "status.endpoint.url"),
        (None, None, Some(ip)) => {
            let (ip, port) = (ip.clone(), mirror.spec.service.port);
            let address = ServiceAddress { ip, port };
            (address.url(mirror.spec.tls.mode), "spec.service.clusterIP")
        }
        (None, None, None) => {
            return Err(Failure::Invalid(format!(
                "RegistryMirror {} has no address yet: give --endpoint, set spec.service.clusterIP, or read the mirror \
                 from the cluster (kubectl get rmir -o yaml)",
                mirror.name_any()
            )));
        }
    };
    NodeEndpoint::parse(&url, None).map_err(|error| Failure::Invalid(format!("{origin}: {url:?} {error}")))
}

fn certificates_of_file(path: &Path) -> Result<String, Failure> {
    let bytes = file_read::read(path, MAX_FILE).map_err(|error| {
        Failure::Invalid(format!("--ca-file: {}: can't be read: {error}", path.display()))
    })?;
    certificates_of(&bytes)
        .map_err(|error| Failure::Invalid(format!("--ca-file: {}: {error}", path.display())))
}

/// Returns the certificates of a bundle, without anything else that it holds, such as a private key.
fn certificates_of(bytes: &[u8]) -> Result<String, String> {
    let pem = bundle::certificates(bytes)?;
    String::from_utf8(pem).map_err(|error| error.to_string())
}

/// Returns the CA certificates from the first document that holds them.
async fn certificates(mirror: &RegistryMirror, documents: &Documents) -> Result<Option<String>, Failure> {
    let name = mirror.name_any();
    let namespace = mirror.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let secret = mirror.spec.tls.secret_name.as_deref().map(Reference::secret);
    let published = [names::ca_bundle(&name), names::hosts(&name)].map(|name| Reference::config_map(&name));
    for reference in published.into_iter().chain(secret) {
        let Ok(contents) = documents.read(&namespace, &reference).await;
        if let Some(pem) = contents
            .as_ref()
            .and_then(|contents| contents.data.get(CA_BUNDLE_KEY))
        {
            let pem = certificates_of(pem)
                .map_err(|error| Failure::Reference(format!("{reference}, key {CA_BUNDLE_KEY}: {error}")))?;
            return Ok(Some(pem));
        }
    }
    Ok(None)
}

/// Writes the files that are not there yet, or differ, and returns the paths of all. Writes nothing if one of them is
/// not this command's.
fn write(args: &NodeConfigArgs, files: Vec<NodeFile>) -> Result<Vec<String>, Failure> {
    let failed = |path: &str, error: &io::Error| {
        Failure::Environment(format!("can't write {}: {error}", args.out.join(path).display()))
    };
    fs::create_dir_all(&args.out).map_err(|error| failed("", &error))?;
    let root = NodeRoot::open(&args.out).map_err(|error| failed("", &error))?;
    let mut planned = Vec::new();
    for file in files {
        let found = root
            .read(&file.path)
            .map_err(|error| failed(&file.path, &error))?;
        if found
            .as_ref()
            .is_some_and(|found| !may_replace(found, &file, args.force))
        {
            return Err(Failure::Environment(format!(
                "{} exists, and this command did not write it: move it, merge the settings by hand, or use --force",
                args.out.join(&file.path).display()
            )));
        }
        planned.push((file, found));
    }
    for (file, found) in &planned {
        if found.as_deref() != Some(file.text.as_bytes()) {
            root.write(&file.path, file.text.as_bytes(), found.is_some())
                .map_err(|error| failed(&file.path, &error))?;
        }
    }
    Ok(planned.into_iter().map(|(file, _)| file.path).collect())
}

fn may_replace(found: &[u8], file: &NodeFile, force: bool) -> bool {
    force || found == file.text.as_bytes() || Marker::COMMAND.is_in(found)
}
