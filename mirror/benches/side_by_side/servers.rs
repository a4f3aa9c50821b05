//! This server and its peers, each as a process that ends with the benchmark.

mod place;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::{ClientConfig, RootCertStore};

use crate::client::Target;
use crate::content::Content;
pub(crate) use place::{Place, command, free_port, serve};

pub(crate) const OURS: &str = "registry-mirror";
pub(crate) const NGINX: &str = "nginx sendfile";
const DISTRIBUTION_2: &str = "Distribution 2.8";
pub(crate) const DISTRIBUTION_3: &str = "Distribution 3";

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) started_in: Duration,
    config: PathBuf,
    /// The path that it has answered once it has started.
    first: String,
    command: Command,
    child: Child,
}

/// A server by its name, or why it did not start.
pub(crate) type Started = (&'static str, io::Result<Server>);

/// The directory in which servers are made, and the registry that they pull through.
pub(crate) struct Site<'a> {
    pub(crate) scratch: &'a Path,
    pub(crate) upstream: SocketAddr,
}

/// Further keys of this server's configuration file.
#[derive(Default)]
pub(crate) struct Keys {
    /// Keys below `storage`, after a comma.
    pub(crate) storage: String,
    /// Keys below `http`, after a comma.
    pub(crate) http: String,
    /// Whole lines.
    pub(crate) top: String,
}

/// A certificate for `localhost`: where its files are, and how clients trust it.
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    client: Arc<ClientConfig>,
}

impl Site<'_> {
    /// All that are measured.
    pub(crate) fn all(&self, content: &Content) -> Vec<Started> {
        let mut all = self.registries("cache: {tagttl: 1h, maxsize: 8Gi}");
        all.insert(1, self.nginx(content, None));
        all
    }

    /// Those that pull through; ours with this below `proxy`.
    pub(crate) fn registries(&self, ours: &str) -> Vec<Started> {
        vec![
            self.ours(ours, None),
            self.distribution_2(),
            self.distribution_3(),
        ]
    }

    /// Ours and nginx over TLS, of which clients accept one cipher.
    pub(crate) fn secure(&self, content: &Content) -> Vec<Started> {
        let certificate = Certificate::new(self.scratch);
        vec![
            self.ours("cache: {tagttl: 1h}", Some(&certificate)),
            self.nginx(content, Some(&certificate)),
        ]
    }

    /// This server, with more below `proxy`.
    pub(crate) fn ours(&self, proxy: &str, tls: Option<&Certificate>) -> Started {
        let place = Place::new(self.scratch, "/v2/");
        let http = tls.map_or(String::new(), |tls| {
            let (certificate, key) = (tls.chain.display(), tls.key.display());
            format!(", tls: {{certificate: {certificate}, key: {key}}}")
        });
        let keys = Keys {
            http,
            ..Keys::default()
        };
        let config = self.configuration(&place, &place.root, proxy, &keys);
        let command = serve(&place, &config);
        place.start(OURS, command, tls)
    }

    /// This server with its cache in this directory, once it has answered this.
    pub(crate) fn ours_on(&self, cache: &Path, proxy: &str, first: &str) -> io::Result<Server> {
        let place = Place::new(self.scratch, first);
        let config = self.configuration(&place, cache, proxy, &Keys::default());
        let command = serve(&place, &config);
        place.start(OURS, command, None).1
    }

    /// Starts this server with an empty cache and further keys.
    pub(crate) fn ours_with(&self, keys: &Keys, proxy: &str) -> io::Result<Server> {
        let place = Place::new(self.scratch, "/v2/");
        let config = self.configuration(&place, &place.root, proxy, keys);
        let command = serve(&place, &config);
        place.start(OURS, command, None).1
    }

    fn configuration(&self, place: &Place, cache: &Path, proxy: &str, keys: &Keys) -> String {
        format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}{}}}\n\
             http: {{addr: '127.0.0.1:{}'{}}}\n{}proxy:\n  upstreams: [{{host: docker.io, remoteurl: 'http://{}'}}]\n  {proxy}\n",
            cache.display(),
            keys.storage,
            place.port,
            keys.http,
            keys.top,
            self.upstream
        )
    }

    fn distribution_2(&self) -> Started {
        self.distribution(DISTRIBUTION_2, "docker-registry", None)
    }

    fn distribution_3(&self) -> Started {
        self.distribution(DISTRIBUTION_3, "registry", None)
    }

    /// Starts Distribution 3 with these keys below `storage`.
    pub(crate) fn distribution_on(&self, storage: &str) -> io::Result<Server> {
        self.distribution(DISTRIBUTION_3, "registry", Some(storage)).1
    }

    fn distribution(&self, name: &'static str, program: &str, storage: Option<&str>) -> Started {
        let place = Place::new(self.scratch, "/v2/");
        let directory = format!("filesystem: {{rootdirectory: {}}}", place.root.display());
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{{}}}\n\
             http: {{addr: '127.0.0.1:{}'}}\nproxy: {{remoteurl: 'http://{}'}}\n",
            storage.unwrap_or(&directory),
            place.port,
            self.upstream
        );
        let mut command = command(program);
        command
            .arg("serve")
            .arg(place.config(&config))
            .env("OTEL_TRACES_EXPORTER", "none");
        place.start(name, command, None)
    }

    /// Serves plain files: what the kernel can do at best.
    fn nginx(&self, content: &Content, tls: Option<&Certificate>) -> Started {
        let place = Place::new(self.scratch, "/small");
        let own = &place.root;
        fs::create_dir_all(own).unwrap();
        let small = &content.bytes[..Content::SMALL];
        for (name, bytes) in [
            ("layer", &*content.bytes),
            ("small", small),
            ("manifest", &content.manifest_bytes),
        ] {
            fs::write(own.join(name), bytes).unwrap();
        }
        let own = own.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {own}/{kind};"))
            .join(" ");
        let (ssl, certificate) = match tls {
            None => ("", String::new()),
            Some(tls) => {
                let (certificate, key) = (tls.chain.display(), tls.key.display());
                (
                    " ssl",
                    format!(
                        "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;"
                    ),
                )
            }
        };
        let config = format!(
            "daemon off; worker_processes auto; pid {own}/pid; error_log {own}/log;\nevents {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; open_file_cache max=100; {temporary}\n\
             server {{ listen 127.0.0.1:{port}{ssl}; {certificate} root {own}; }} }}\n",
            port = place.port
        );
        let mut command = command("nginx");
        // If root starts nginx, its workers must be root too: the files are in a private directory.
        command
            .arg("-c")
            .arg(place.config(&config))
            .args(["-g", "user root;"]);
        place.start(NGINX, command, tls)
    }
}

impl Certificate {
    fn new(scratch: &Path) -> Self {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (scratch.join("tls.crt"), scratch.join("tls.key"));
        fs::write(&chain, issued.cert.pem()).unwrap();
        fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone()).unwrap();
        let mut provider = default_provider();
        provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
        let client = ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            chain,
            key,
            client: client.into(),
        }
    }
}

impl Server {
    /// Has it read its configuration again, in which one text stands for another from now on.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) -> io::Result<()> {
        let text = fs::read_to_string(&self.config)?.replace(from, to);
        fs::write(&self.config, text)?;
        Ok(kill_process(Pid::from_child(&self.child), Signal::HUP)?)
    }

    /// Pulls everything once.
    pub(crate) fn warm(&self, content: &Content) -> io::Result<()> {
        let mut connection = self.target.connect()?;
        for path in [
            self.tag(),
            self.manifest(content),
            self.small(content),
            self.layer(content),
        ] {
            connection.get(&path)?;
        }
        Ok(())
    }

    fn path(&self, kind: &str, reference: &str, plain: &str) -> String {
        if self.name == NGINX {
            format!("/{plain}")
        } else {
            Self::path_of(kind, reference)
        }
    }

    /// Returns the path of content at a registry.
    pub(crate) fn path_of(kind: &str, reference: &str) -> String {
        format!("/v2/library/app/{kind}/{reference}")
    }

    /// A layer's path; nginx has but one.
    pub(crate) fn blob(&self, digest: &str) -> String {
        self.path("blobs", digest, "layer")
    }

    pub(crate) fn layer(&self, content: &Content) -> String {
        self.blob(content.layer.as_str())
    }

    pub(crate) fn small(&self, content: &Content) -> String {
        self.path("blobs", content.small.as_str(), "small")
    }

    pub(crate) fn manifest(&self, content: &Content) -> String {
        self.path("manifests", content.manifest.as_str(), "manifest")
    }

    pub(crate) fn tag(&self) -> String {
        self.path("manifests", "latest", "manifest")
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_distribution(&self) -> bool {
        self.name.starts_with("Distribution")
    }

    /// Seconds of CPU that it and its workers have used.
    pub(crate) fn cpu(&self) -> f64 {
        let ticks = |id: u32| {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            // User and system time are the 14th and 15th field; the second may hold spaces, and ends with a bracket.
            let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            let used: f64 = rest
                .split_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse::<f64>().ok())
                .sum();
            used
        };
        self.processes().into_iter().map(ticks).sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
    }

    /// `RssAnon` of it and its workers.
    pub(crate) fn anonymous_mib(&self) -> f64 {
        self.memory_mib("RssAnon:")
    }

    /// Returns `VmRSS` of the server and its workers: anonymous memory and the pages of files that are mapped.
    pub(crate) fn resident_mib(&self) -> f64 {
        self.memory_mib("VmRSS:")
    }

    fn memory_mib(&self, field: &str) -> f64 {
        let kib = |id: u32| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(field).map(str::to_owned));
            line.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
                .unwrap_or_default()
        };
        self.processes().into_iter().map(kib).sum::<f64>() / 1024.0
    }

    /// Ends the server at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Ends the server, and waits for its end.
    fn terminate(&mut self) {
        // SIGTERM first: nginx would leave its workers behind.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
        let _ = self.child.wait();
    }

    fn processes(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        std::iter::once(id)
            .chain(children.split_whitespace().filter_map(|id| id.parse().ok()))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.terminate();
    }
}
