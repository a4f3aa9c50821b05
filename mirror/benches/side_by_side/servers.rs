//! This server and its peers, each as a process that ends with the benchmark.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Connection;
use crate::content::Content;
use crate::report::Report;
use crate::upstream::Upstream;

pub(crate) const OURS: &str = "registry-mirror";
pub(crate) const NGINX: &str = "nginx sendfile";
const DISTRIBUTION: &str = "Distribution 2.8";

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts all, one after the other, and pulls everything once through each.
    pub(crate) fn start_all(
        scratch: &Path,
        content: &Content,
        upstream: &Upstream,
        report: &mut Report,
    ) -> Vec<Self> {
        let servers = vec![
            Self::ours(scratch, upstream, report),
            Self::nginx(scratch, content, report),
            Self::distribution(scratch, upstream, report),
        ];
        for server in &servers {
            let mut connection = Connection::open(server.address).unwrap();
            for path in [
                server.tag(),
                server.manifest(content),
                server.small(content),
                server.layer(content),
            ] {
                connection
                    .get(&path)
                    .unwrap_or_else(|error| panic!("{}{path}: {error}", server.name));
            }
        }
        servers
    }

    fn ours(scratch: &Path, upstream: &Upstream, report: &mut Report) -> Self {
        let (port, root, file) = (free_port(), scratch.join("ours"), scratch.join("ours.yml"));
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\nproxy:\n  upstreams: [{{host: docker.io, remoteurl: 'http://{}'}}]\n  cache: {{tagttl: 1h, maxsize: 4Gi}}\n",
            root.display(),
            upstream.address
        );
        fs::write(&file, config).unwrap();
        let mut command = command(env!("CARGO_BIN_EXE_mirror"));
        command.arg("serve").arg(file);
        Self::start(OURS, command, port, scratch, report)
    }

    fn distribution(scratch: &Path, upstream: &Upstream, report: &mut Report) -> Self {
        let (port, root, file) = (free_port(), scratch.join("peer"), scratch.join("peer.yml"));
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\nproxy: {{remoteurl: 'http://{}'}}\n",
            root.display(),
            upstream.address
        );
        fs::write(&file, config).unwrap();
        let mut command = command("docker-registry");
        command.arg("serve").arg(file);
        Self::start(DISTRIBUTION, command, port, scratch, report)
    }

    /// Serves plain files: what the kernel can do at best.
    fn nginx(scratch: &Path, content: &Content, report: &mut Report) -> Self {
        let (port, own) = (free_port(), scratch.join("nginx"));
        fs::create_dir_all(&own).unwrap();
        for (name, bytes) in [
            ("layer", &content.layer),
            ("small", &content.small),
            ("manifest", &content.manifest),
        ] {
            fs::write(own.join(name), bytes).unwrap();
        }
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};", own.display()));
        let config = format!(
            "daemon off; worker_processes auto; pid {own}/pid; error_log {own}/log;\nevents {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; open_file_cache max=100; {}\n\
             server {{ listen 127.0.0.1:{port}; root {own}; }} }}\n",
            temporary.join(" "),
            own = own.display()
        );
        fs::write(own.join("conf"), config).unwrap();
        // Where root starts it, the workers must be root too: the files are in a private directory.
        let mut command = command("nginx");
        command.arg("-c").arg(own.join("conf")).args(["-g", "user root;"]);
        Self::start(NGINX, command, port, scratch, report)
    }

    fn start(
        name: &'static str,
        mut command: Command,
        port: u16,
        scratch: &Path,
        report: &mut Report,
    ) -> Self {
        let log = fs::File::create(scratch.join(format!("{port}.log"))).unwrap();
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = child
            .unwrap_or_else(|error| panic!("{name}: {error}; install it with tests/cluster/packages bench"));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server = Self { name, address, child };
        let path = if name == NGINX { "/small" } else { "/v2/" };
        while Connection::open(address)
            .and_then(|mut connection| connection.get(path))
            .is_err()
        {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{name} does not answer"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        report.add(
            "M7 start to first answer, ms",
            name,
            started.elapsed().as_secs_f64() * 1e3,
        );
        report.add("M7 idle anonymous memory, MiB", name, server.anonymous_mib());
        server
    }

    fn path(&self, kind: &str, reference: &str, plain: &str) -> String {
        if self.name == NGINX {
            format!("/{plain}")
        } else {
            format!("/v2/library/app/{kind}/{reference}")
        }
    }

    pub(crate) fn layer(&self, content: &Content) -> String {
        self.path("blobs", content.layer_digest.as_str(), "layer")
    }

    pub(crate) fn small(&self, content: &Content) -> String {
        self.path("blobs", content.small_digest.as_str(), "small")
    }

    pub(crate) fn manifest(&self, content: &Content) -> String {
        self.path("manifests", content.manifest_digest.as_str(), "manifest")
    }

    pub(crate) fn tag(&self) -> String {
        self.path("manifests", "latest", "manifest")
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
        let kib = |id: u32| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:").map(str::to_owned));
            line.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
                .unwrap_or_default()
        };
        self.processes().into_iter().map(kib).sum::<f64>() / 1024.0
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
        // SIGTERM first: nginx would leave its workers behind.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// Ends with this process, however that ends.
fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", program]);
    command
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}
