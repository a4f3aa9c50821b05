//! `kubectl rmir report`: a bundle for an issue, without secrets.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crds::RegistryMirror;
use flate2::{Compression, write::GzEncoder};
use k8s_openapi::api::{
    core::v1::{ConfigMap, PersistentVolumeClaim, Service},
    events::v1::Event,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, LogParams},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    cluster::{ClusterClient, MirrorArgs, is_running},
    redact::redact,
    server, terminal,
};
use crate::{cli::Failure, cluster::error_message, names};

const EXAMPLES: &str = "\
Examples:
  kubectl rmir report -n mirrors
      Write registry-mirror-report-NAME.tar.gz into this directory
  kubectl rmir report hub --out /tmp/hub.tar.gz
      Elsewhere

No Secret is read. User names, passwords and tokens in URLs, headers and logs are masked. Read the files before you
send them: they have the names of your images, Pods and addresses.";

/// The number of last lines of each log.
const LOG_LINES: i64 = 2_000;
/// The maximum number of objects of a kind.
const MAX_OBJECTS: u32 = 500;

/// The arguments of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReportArgs {
    /// The mirror [default: the only one of the namespace]
    #[arg(conflicts_with = "mirror", add = super::complete::mirrors())]
    name: Option<String>,
    /// The file [default: registry-mirror-report-NAME.tar.gz]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    on: MirrorArgs,
}

/// An archive of text files.
struct ReportBundle {
    archive: tar::Builder<GzEncoder<File>>,
    files: usize,
}

/// Writes the bundle, and prints its path.
///
/// # Errors
/// There is no such mirror, or the file can't be written. What can't be read becomes a file with the reason.
pub(super) async fn run(args: ReportArgs) -> Result<(), Failure> {
    let cluster = args.on.cluster.connect().await?;
    let name = args.name.as_deref().or(args.on.mirror.as_deref());
    let mirror = cluster.mirror(name).await?;
    let name = mirror.name_any();
    let default = || PathBuf::from(format!("registry-mirror-report-{name}.tar.gz"));
    let path = args.out.unwrap_or_else(default);
    let mut bundle = ReportBundle::create(&path)?;
    collect(&cluster, &mirror, &mut bundle).await?;
    let files = bundle.finish()?;
    writeln!(io::stdout(), "{}", path.display())?;
    terminal::print_note(&format!(
        "{files} files, without secrets: read them before you send them"
    ))
}

async fn collect(
    cluster: &ClusterClient,
    mirror: &RegistryMirror,
    bundle: &mut ReportBundle,
) -> Result<(), Failure> {
    let name = mirror.name_any();
    bundle.add("version.txt", env!("CARGO_PKG_VERSION"))?;
    bundle.add_object("mirror.yaml", mirror)?;
    let selector = format!("{}={name}", names::INSTANCE);
    let of_mirror = ListParams::default().labels(&selector).limit(MAX_OBJECTS);
    list::<ConfigMap>(cluster, &of_mirror, "configmaps.yaml", bundle).await?;
    list::<Service>(cluster, &of_mirror, "services.yaml", bundle).await?;
    list::<PersistentVolumeClaim>(cluster, &of_mirror, "persistentvolumeclaims.yaml", bundle).await?;
    let events = ListParams::default().limit(MAX_OBJECTS);
    list::<Event>(cluster, &events, "events.yaml", bundle).await?;
    let pods = match cluster.pods(&name).await {
        Ok(pods) => pods,
        Err(error) => return bundle.add("pods.yaml", &format!("not readable: {error}")),
    };
    bundle.add_object("pods.yaml", &pods)?;
    for pod in &pods {
        let pod_name = pod.name_any();
        bundle.add(&format!("logs/{pod_name}.log"), &log(cluster, &pod_name).await)?;
        if is_running(pod) {
            for path in ["status", "metrics"] {
                bundle.add(
                    &format!("{path}/{pod_name}.txt"),
                    &admin(cluster, &pod_name, path).await,
                )?;
            }
        }
    }
    Ok(())
}

async fn list<K>(
    cluster: &ClusterClient,
    params: &ListParams,
    file: &str,
    bundle: &mut ReportBundle,
) -> Result<(), Failure>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match api.list(params).await {
        Ok(objects) => bundle.add_object(file, &objects.items),
        Err(error) => bundle.add(file, &format!("not readable: {}", error_message(&error))),
    }
}

async fn log(cluster: &ClusterClient, pod: &str) -> String {
    let params = LogParams {
        tail_lines: Some(LOG_LINES),
        ..LogParams::default()
    };
    let log = cluster.pod_api().logs(pod, &params).await;
    log.unwrap_or_else(|error| format!("not readable: {}", error_message(&error)))
}

async fn admin(cluster: &ClusterClient, pod: &str, path: &str) -> String {
    let admin = cluster.admin(pod);
    let asked = async {
        let response = admin.get(&format!("/{path}"), None).await?;
        server::whole(&admin.name, response).await
    };
    match asked.await {
        Ok(body) => String::from_utf8_lossy(&body).into_owned(),
        Err(error) => format!("not readable: {error}"),
    }
}

impl ReportBundle {
    /// Creates the file. A file or a link that exists stays as it is.
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create_new(path).map_err(|error| {
            let path = path.display();
            Failure::Environment(match error.kind() {
                io::ErrorKind::AlreadyExists => format!("{path} exists; give another --out"),
                _ => format!("{path} not written: {error}; set --out"),
            })
        })?;
        let encoder = GzEncoder::new(file, Compression::default());
        Ok(Self {
            archive: tar::Builder::new(encoder),
            files: 0,
        })
    }

    fn add_object(&mut self, name: &str, object: &impl Serialize) -> Result<(), Failure> {
        let yaml = serde_saphyr::to_string(object).map_err(io::Error::other)?;
        self.add(name, &yaml)
    }

    /// Adds a file, whose secrets are masked.
    fn add(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        let text = redact(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        self.archive.append_data(&mut header, name, text.as_bytes())?;
        self.files += 1;
        Ok(())
    }

    /// Writes the end of the archive. Returns the number of files.
    fn finish(self) -> io::Result<usize> {
        self.archive.into_inner()?.finish()?.sync_all()?;
        Ok(self.files)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A report replaces no file, and writes through no link, also one whose target does not exist.
    #[test]
    fn report_refuses_an_existing_file_or_link() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link, target] = ["file", "link", "target"].map(|name| directory.path().join(name));
        fs::write(&file, "theirs").unwrap();
        symlink(&target, &link).unwrap();
        for path in [&file, &link] {
            let failure = ReportBundle::create(path).err().unwrap().to_string();
            let expected = format!("{} exists; give another --out", path.display());
            assert!(failure.contains(&expected), "{failure}");
        }
        assert_eq!(fs::read_to_string(file).unwrap(), "theirs");
        assert!(!target.exists());
    }
}
