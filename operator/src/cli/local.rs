//! `registry-mirror local`: the operator's pipeline without a cluster, and the server in this process.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use crds::RegistryMirror;
use etcetera::BaseStrategy;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use mirror::{
    config::{
        Config,
        file::{File, Htpasswd},
    },
    logging,
    server::Server,
    traces::Traces,
};
use tempfile::TempDir;

use super::{
    Failure,
    documents::{Documents, FileArgs},
    kubelet,
    operator::stop_on_signal,
    render,
};
use crate::{
    certificates::{self, CertificateLifetimes},
    dereference::{self, References},
    desired::{self, Desired, Release},
    observed::Observed,
    validate::{self, Accepted, Serving, bundle, serving, users},
    warnings,
};

const EXAMPLES: &str = "\
Examples:
  registry-mirror local -f examples/docker-hub.yaml
      Serve it on 127.0.0.1:5000, and keep its cache in the user's cache directory
  skopeo inspect --tls-verify=false docker://127.0.0.1:5000/library/alpine
      Pull through it, from another terminal
  registry-mirror local -f mirror.yaml -f secret.yaml --cache-dir /srv/cache --admin-port 5001
      With credentials, a cache elsewhere, and /metrics on 127.0.0.1:5001";

/// The arguments of `local`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct LocalArgs {
    #[command(flatten)]
    files: FileArgs,
    /// The mirror, if the files contain several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The cache directory [default: registry-mirror/NAME in the user's cache directory]
    #[arg(long, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
    /// With tls.mode SelfSigned: the file for the CA certificates that clients trust [default: next to the cache
    /// directory, with the suffix .ca.crt]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The port on 127.0.0.1; 0 takes a free one [default: spec.service.port]
    #[arg(long)]
    port: Option<u16>,
    /// A port on 127.0.0.1 for /livez, /readyz, /status and /metrics; 0 takes a free one [default: none]
    #[arg(long)]
    admin_port: Option<u16>,
    /// A port on 127.0.0.1 for images, purge and prewarm of kubectl rmir; 0 takes a free one [default: none]
    #[arg(long)]
    actions_port: Option<u16>,
}

/// Serves until a signal.
pub(super) async fn run(args: LocalArgs) -> Result<(), Failure> {
    let documents = args.files.read(None)?;
    let mirror = choose(&documents, args.name.as_deref())?;
    let Ok(references) = dereference::read(mirror, &documents).await;
    let missing = dereference::references(mirror).into_iter();
    let mut missing = missing.filter(|reference| references.get(reference).is_none());
    if let Some(misplaced) = missing.find_map(|reference| documents.misplaced(mirror, &reference)) {
        return Err(Failure::Reference(misplaced));
    }
    let mut accepted = validate::accept(mirror, &references)?;
    // In a cluster the status reports a fault while the cache serves; here the user waits for the result.
    if let Some(problem) = accepted.credential_problems().next() {
        return Err(Failure::Reference(problem));
    }
    for warning in warnings::about_upstreams(mirror) {
        render::warn(warning)?;
    }
    certify(&mut accepted, &references)?;
    let desired = desired::objects(&accepted, &references, &Observed::default(), &Release::default())?;
    // Before anything secret is written: only a process that is asked to end can clean up.
    let shutdown = stop_on_signal()?;
    let private = kubelet::private_directory()
        .map_err(|error| Failure::Environment(format!("directory for credentials not created: {error}")))?;
    let file = file(&args, &accepted, desired, &private)?;
    let config = Config::new(&file).map_err(|error| Failure::Invalid(error.to_string()))?;
    // The spec's collector is one that Pods reach.
    let traces = Traces::from_environment().map_err(|error| Failure::Environment(error.to_string()))?;
    // The process has no other log. It is flushed at the end.
    let _log = logging::start(&config.log, traces.as_ref());
    // Before the port opens, for which clients may wait.
    if accepted.ca.is_some() {
        publish(&args, &accepted)?;
    }
    let server = Server::start(config).await?;
    if io::stderr().is_terminal() {
        banner(&accepted, &server, &cache(&args, &accepted)?)?;
    }
    let result = server.run(shutdown).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    Ok(result?)
}

/// Prints what is served, and how to pull through it, for a user who started the server on a terminal.
fn banner(accepted: &Accepted<'_>, server: &Server, cache: &Path) -> Result<(), Failure> {
    let scheme = if accepted.serving.is_some() {
        "https"
    } else {
        "http"
    };
    let address = server.address();
    let spec = &accepted.mirror.spec;
    let hosts: Vec<_> = spec
        .upstreams
        .iter()
        .map(|upstream| upstream.host.as_str())
        .collect();
    let first = hosts.first().copied().unwrap_or_default();
    let image = if first == "docker.io" {
        "library/alpine"
    } else {
        "NAME:TAG"
    };
    let insecure = if scheme == "http" {
        "--tls-verify=false "
    } else {
        ""
    };
    let mut lines = vec![
        format!(
            "\nRegistryMirror {} serves {} on {scheme}://{address}",
            accepted.mirror.name_any(),
            hosts.join(", ")
        ),
        format!("  cache    {}", cache.display()),
    ];
    let admin = server.admin_address();
    if let Some(admin) = admin {
        lines.push(format!("  page     http://{admin}/"));
        lines.push(format!(
            "  status   http://{admin}/status, http://{admin}/metrics"
        ));
    }
    let actions = server.actions_address();
    lines
        .extend(actions.map(|actions| format!("  images   kubectl rmir images --endpoint http://{actions}")));
    lines.push(format!(
        "  pull     skopeo inspect {insecure}docker://{address}/{image}"
    ));
    lines.push(format!("           podman pull {insecure}{address}/{image}"));
    let others = hosts.iter().skip(1);
    lines.extend(others.map(|host| format!("           podman pull {insecure}{address}/{host}/NAME:TAG")));
    lines.push("  end      Ctrl+C\n\n".to_owned());
    let text = lines.join("\n");
    Ok(io::stderr().write_all(text.as_bytes())?)
}

/// Issues certificates for this machine. Their keys stay in this process, so they last as long as the CA.
fn certify(accepted: &mut Accepted<'_>, references: &References) -> Result<(), Failure> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let lifetimes = CertificateLifetimes::default();
    let lifetimes = CertificateLifetimes {
        serving: lifetimes.ca,
        ..lifetimes
    };
    let now = Timestamp::now();
    Ok(certificates::ensure(
        accepted, references, &names, now, &lifetimes,
    )?)
}

/// Writes the CA certificates that clients trust. The default path is next to the cache directory, which may not be
/// writable.
fn publish(args: &LocalArgs, accepted: &Accepted<'_>) -> Result<(), Failure> {
    let cache = cache(args, accepted)?;
    fs::create_dir_all(&cache).map_err(|error| {
        Failure::Environment(format!(
            "{}: not created: {error}; set --cache-dir",
            cache.display()
        ))
    })?;
    let path = args
        .ca_file
        .clone()
        .map_or_else(|| beside_cache(args, accepted), Ok)?;
    let certificates = accepted
        .serving
        .as_ref()
        .and_then(Serving::ca_text)
        .unwrap_or_default();
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(&path, certificates))
        .map_err(|error| {
            Failure::Environment(format!("{} not written: {error}; set --ca-file", path.display()))
        })?;
    tracing::info!(target: "mirror::local", file = %path.display(), "clients have to trust the CA in this file until the next start");
    Ok(())
}

fn beside_cache(args: &LocalArgs, accepted: &Accepted<'_>) -> Result<PathBuf, Failure> {
    let cache = cache(args, accepted)?;
    let mut beside = cache.components().as_path().as_os_str().to_owned();
    beside.push(".ca.crt");
    Ok(beside.into())
}

fn cache(args: &LocalArgs, accepted: &Accepted<'_>) -> Result<PathBuf, Failure> {
    match &args.cache_dir {
        Some(directory) => Ok(directory.clone()),
        None => default_cache(&accepted.mirror.name_any()),
    }
}

pub(super) fn choose<'a>(
    documents: &'a Documents,
    name: Option<&str>,
) -> Result<&'a RegistryMirror, Failure> {
    let mirrors = &documents.mirrors;
    let names = || {
        mirrors
            .iter()
            .map(ResourceExt::name_any)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (name, mirrors.as_slice()) {
        (None, [mirror]) => Ok(mirror),
        (None, _) => Err(Failure::Invalid(format!(
            "several mirrors found: choose one of {} with --name",
            names()
        ))),
        (Some(name), mirrors) => mirrors
            .iter()
            .find(|mirror| mirror.name_any() == name)
            .ok_or_else(|| Failure::Invalid(format!("mirror {name} not found: choose one of {}", names()))),
    }
}

/// Returns the rendered configuration, with the values that a Pod has in its environment.
fn file(
    args: &LocalArgs,
    accepted: &Accepted<'_>,
    desired: Desired,
    private: &TempDir,
) -> Result<File, Failure> {
    let Desired {
        config: mut file,
        issued,
        ..
    } = desired;
    let spec = &accepted.mirror.spec;
    let cache = cache(args, accepted)?;
    let port = args
        .port
        .map_or_else(|| spec.service.port.to_string(), |port| port.to_string());
    let (credentials, certificates) = (private.path().join("credentials"), private.path().join("files"));
    kubelet::mount(&credentials, &issued.files())?;
    kubelet::mount(&certificates, &desired::files::all(accepted))?;
    file.http.addr = Some(format!("127.0.0.1:{port}"));
    file.http.debug.addr = args.admin_port.map(|port| format!("127.0.0.1:{port}"));
    file.http.actions.addr = args.actions_port.map(|port| format!("127.0.0.1:{port}"));
    // No kube-proxy leads anybody here.
    file.http.lame_duck = None;
    desired::config::take_at_start(accepted.mirror, &mut file);
    if let Some(bucket) = &accepted.bucket {
        file.storage = bucket.storage(&text(&credentials)?, &text(&certificates)?);
    }
    file.storage.filesystem.root_directory = Some(text(&cache)?);
    file.proxy.credentials_directory = Some(text(&credentials)?);
    file.proxy.files_directory = Some(text(&certificates)?);
    if accepted.serving.is_some() {
        let [certificate, key, _] = serving::FILES;
        file.http.tls.certificate = Some(text(&certificates.join(certificate))?);
        file.http.tls.key = Some(text(&certificates.join(key))?);
        if accepted.client_ca.is_some() {
            file.http.tls.client_cas = vec![text(&certificates.join(bundle::CLIENT_CA))?];
        }
    }
    if accepted.users.is_some() {
        file.auth.htpasswd = Some(Htpasswd {
            realm: Some(accepted.mirror.name_any()),
            path: Some(text(&certificates.join(users::FILE))?),
        });
    }
    Ok(file)
}

fn default_cache(mirror: &str) -> Result<PathBuf, Failure> {
    let base = etcetera::choose_base_strategy()
        .map_err(|error| Failure::Environment(format!("no cache directory: {error}; set --cache-dir")))?;
    Ok(base.cache_dir().join("registry-mirror").join(mirror))
}

fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Failure::Environment(format!(
            "{} is not UTF-8; choose another directory",
            path.display()
        ))
    })
}
