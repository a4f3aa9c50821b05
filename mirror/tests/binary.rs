//! The binary: what it prints, how it ends, and what it says when it fails.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_case::test_case;

/// A directory of a test's own, with a configuration in it.
struct Home(TempDir);

impl Home {
    fn new(yaml: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.write("config.yml", yaml);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `HOME` in the text stands for the directory.
    fn write(&self, name: &str, text: &str) {
        let text = text.replace("HOME", &self.0.path().display().to_string());
        fs::write(self.path(name), text).unwrap();
    }

    fn mirror(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mirror"));
        command.args(arguments).current_dir(self.0.path()).env_clear();
        command
    }

    fn ends(&self, arguments: &[&str]) -> (i32, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.mirror(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap_or(-1), text(stdout), text(stderr))
    }
}

const SERVED: &str = "
version: 0.1
log: {formatter: json}
storage: {filesystem: {rootdirectory: HOME/cache}}
http: {addr: '127.0.0.1:0', debug: {addr: '127.0.0.1:0'}, draintimeout: 5s}
proxy: {remoteurl: 'http://127.0.0.1:9', ttl: 1h}
";

#[test_case(
    "proxy: {remoturl: x}",
    2,
    "config.yml line 1: proxy.remoturl: unknown key; known here: remoteurl"
)]
#[test_case("proxy: [", 2, "config.yml line 1"; "no yaml")]
#[test_case("{}", 2, "proxy.remoteurl: must be set")]
#[test_case(
    "{proxy: {remoteurl: 'https://a'}, middleware: {}}",
    2,
    "middleware is not supported"
)]
#[test_case(
    "{storage: {filesystem: {rootdirectory: HOME/cache}}, proxy: {upstreams: [{host: a, tls: {cafile: HOME/no.pem}}]}}",
    3,
    "no.pem"
)]
#[test_case(
    "{proxy: {remoteurl: 'https://a'}, http: {tls: {certificate: HOME/no.crt, key: HOME/no.key}}}",
    3,
    "no.crt"
)]
fn invalid_configuration_ends_check_and_serve(yaml: &str, code: i32, message: &str) {
    let home = Home::new("");
    home.write("config.yml", &format!("{yaml}\n"));
    for command in ["check", "serve"] {
        let (ended, _, stderr) = home.ends(&[command, "config.yml"]);
        assert_eq!(ended, code, "{stderr}");
        assert!(stderr.contains(message), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn missing_htpasswd_file_is_a_notice() {
    let home = Home::new("");
    let auth = "auth: {htpasswd: {realm: r, path: HOME/no}}";
    home.write(
        "config.yml",
        &format!("{{proxy: {{remoteurl: 'https://a'}}, {auth}}}"),
    );
    let (code, printed, stderr) = home.ends(&["check", "config.yml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(printed.contains("htpasswd"), "{printed}");
    assert!(
        stderr.contains("auth.htpasswd.path: cannot read the htpasswd file"),
        "{stderr}"
    );
    assert!(
        stderr.contains("all logins are refused until it is there"),
        "{stderr}"
    );
}

/// A start with a FIFO, a device or a huge file in the place of one ends with a message, and waits for nothing.
#[test_case("config.yml", "it is larger than 4 MiB", |path| fs::File::create(path).unwrap().set_len(600 << 20).unwrap(); "huge")]
#[test_case("config.yml", "it is a FIFO", make_fifo; "the configuration")]
#[test_case("ca.pem", "it is a FIFO", make_fifo; "a CA file")]
#[test_case("tls.crt", "it is a FIFO", make_fifo; "a certificate")]
#[test_case("ca.pem", "it is a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(); "endless")]
fn start_with_unreadable_file_ends(name: &str, message: &str, make: fn(&Path)) {
    let home = Home::new("");
    home.write(
        "config.yml",
        "{proxy: {upstreams: [{host: a.test, tls: {cafile: HOME/ca.pem}}]}, http: {tls: {certificate: HOME/tls.crt, key: HOME/tls.key}}}",
    );
    let issued = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    home.write("ca.pem", &issued.cert.pem());
    home.write("tls.crt", &issued.cert.pem());
    home.write("tls.key", &issued.signing_key.serialize_pem());
    fs::remove_file(home.path(name)).unwrap();
    make(&home.path(name));
    for command in ["check", "serve"] {
        let (ended, _, stderr) = home.ends(&[command, "config.yml"]);
        assert_eq!(ended, 3, "{stderr}");
        assert!(stderr.contains(name) && stderr.contains(message), "{stderr}");
    }
}

fn make_fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
}

/// The error for a missing configuration file names the file.
#[test]
fn missing_configuration_file_is_named() {
    let (code, _, stderr) = Home::new("").ends(&["serve", "nowhere.yml"]);
    assert_eq!(code, 3);
    assert_eq!(stderr.lines().count(), 1);
    assert!(
        stderr.contains("cannot read the configuration file nowhere.yml"),
        "{stderr}"
    );
}

/// Invalid arguments end with the exit code for invalid input.
#[test_case(&["serv"])]
#[test_case(&["serve", "a", "b"])]
#[test_case(&[])]
fn invalid_arguments_are_invalid_input(arguments: &[&str]) {
    assert_eq!(Home::new("").ends(arguments).0, 2);
}

/// The help shows examples and the exit codes.
#[test]
fn help_shows_examples_and_exit_codes() {
    let (code, help, _) = Home::new("").ends(&["--help"]);
    assert_eq!(code, 0);
    for part in [
        "mirror serve config.yml",
        "mirror check config.yml",
        "Exit codes:",
    ] {
        assert!(help.contains(part), "{help}");
    }
}

/// The server prints its version.
#[test]
fn version_is_printed() {
    let (code, version, _) = Home::new("").ends(&["--version"]);
    assert_eq!(
        (code, version),
        (0, format!("mirror {}\n", env!("CARGO_PKG_VERSION")))
    );
}

/// The completion lists the commands.
#[test]
fn completion_lists_the_commands() {
    let (code, script, _) = Home::new("").ends(&["completion", "bash"]);
    assert!(code == 0 && script.contains("completion") && script.contains("check"));
    assert!(
        script.contains("--explain") && script.contains("proxy.ttl"),
        "keys are completed"
    );
}

#[test]
fn check_prints_configuration_with_masked_secrets() {
    let home =
        Home::new("{proxy: {remoteurl: 'https://quay.io', username: u, password: hunter2}, redis: {}}");
    let (code, stdout, stderr) = home.ends(&["check", "config.yml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains("remoteurl: https://quay.io/") && stdout.contains("ttl: 168h"),
        "{stdout}"
    );
    assert!(!stdout.contains("hunter2"), "{stdout}");
    assert!(stderr.starts_with("redis: no effect here"), "{stderr}");
    home.write("again.yml", &stdout);
    assert_eq!(home.ends(&["check", "again.yml"]).1, stdout);
}

/// The configuration is not read: there is none here.
#[test_case(&["--explain", "proxy.ttl"], &["proxy.ttl\n", "168h", "REGISTRY_PROXY_TTL", "Distribution: the same"])]
#[test_case(&["--explain", "REGISTRY_PROXY_TTL"], &["proxy.ttl\n"]; "a variable")]
#[test_case(&["--explain", "health.tcp"], &["health.tcp[].addr\n", "\n\nhealth.tcp[].timeout\n"]; "a section")]
#[test_case(&["--explain", "storage.oss"], &["refused here", "not a supported storage driver"])]
#[test_case(&["--explain"], &["version\n", "proxy.cache.maxsize\n", "redis\n"]; "no key")]
#[test_case(&["--explain", "all"], &["version\n", "policy\n"])]
fn check_explains_keys(arguments: &[&str], parts: &[&str]) {
    let home = Home(tempfile::tempdir().unwrap());
    let mut command = vec!["check"];
    command.extend(arguments);
    let (code, stdout, stderr) = home.ends(&command);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(parts.iter().all(|part| stdout.contains(part)), "{stdout}");
}

/// An unknown key for `--explain` is invalid input, and the error suggests a key.
#[test]
fn explain_unknown_key_is_invalid_input() {
    let (code, stdout, stderr) = Home::new("").ends(&["check", "--explain", "proxy.tll"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(
        stderr.contains("proxy.tll is not a configuration key (did you mean proxy.ttl?)"),
        "{stderr}"
    );
}

/// A key that Distribution honours in another way is a notice of `check`, and no line of a server's log.
#[test]
fn check_prints_differences_from_distribution() {
    let home = Home::new(
        "{proxy: {remoteurl: 'https://quay.io'}, http: {debug: {addr: ':1', prometheus: {enabled: true}}}, \
         storage: {maintenance: {readonly: {enabled: true}}}}",
    );
    let (code, _, stderr) = home.ends(&["check", "config.yml"]);
    assert_eq!(code, 0, "{stderr}");
    for notice in [
        "storage.maintenance.readonly: no effect here: clients can change nothing",
        "http.debug.prometheus.enabled: differs from Distribution: ",
    ] {
        assert!(stderr.contains(notice), "{stderr}");
    }
}

/// Environment variables override the file, and may name it.
#[test]
fn variables_override_and_name_the_file() {
    let home = Home::new("proxy: {remoteurl: 'https://quay.io'}");
    let mut command = home.mirror(&["check"]);
    command
        .env("REGISTRY_CONFIGURATION_PATH", "config.yml")
        .env("REGISTRY_PROXY_TTL", "2h")
        .env("REGISTRY_SERVICE_PORT", "5000");
    let output = command.output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        stdout.contains("ttl: 2h") && stdout.contains("quay.io"),
        "{stdout}"
    );
    assert!(stderr.contains("REGISTRY_SERVICE_PORT"), "{stderr}");
}

/// A port that is in use ends the server with the exit code for the environment.
#[test]
fn taken_port_is_an_environment_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = Home::new("");
    home.write("config.yml", &SERVED.replacen("127.0.0.1:0", &address, 1));
    let (code, _, stderr) = home.ends(&["serve", "config.yml"]);
    assert_eq!(code, 4, "{stderr}");
    assert!(
        stderr.contains(&format!("cannot listen on {address} (http.addr)")),
        "{stderr}"
    );
}

/// A cache that is no directory ends the server with the exit code for the environment.
#[test]
fn cache_file_is_an_environment_error() {
    let home = Home::new("");
    home.write("config.yml", SERVED);
    home.write("cache", "a file");
    let (code, _, stderr) = home.ends(&["serve", "config.yml"]);
    assert_eq!(code, 4, "{stderr}");
    assert!(
        stderr.contains(&home.path("cache").display().to_string()),
        "{stderr}"
    );
}

/// Waits for a process to end by itself; ends it where it does not.
fn within_20_seconds(process: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > Duration::from_secs(20) {
            process.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server that runs; ended when dropped.
struct Served {
    process: Child,
    log: Receiver<String>,
    seen: Vec<String>,
}

impl Served {
    fn start(home: &Home) -> Self {
        home.write("config.yml", SERVED);
        Self::of_what_is_there(home)
    }

    fn of_what_is_there(home: &Home) -> Self {
        let mut process = home
            .mirror(&["serve", "config.yml"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = mpsc::channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            let mut texts = stderr.lines().map_while(Result::ok);
            texts.try_for_each(|line| lines.send(line))
        });
        Self {
            process,
            log,
            seen: Vec::new(),
        }
    }

    /// The first line from here on that has this text.
    fn line(&mut self, text: &str) -> serde_json::Value {
        loop {
            let line = self.log.recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen));
            if line.contains(text) {
                return serde_json::from_str(&line).unwrap();
            }
            self.seen.push(line);
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn end(&mut self) -> Option<i32> {
        within_20_seconds(&mut self.process).code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn addresses(server: &mut Served) -> (String, String) {
    let line = server.line("\"serving\"");
    let text = |name: &str| line[name].as_str().unwrap().to_owned();
    (text("address"), text("admin"))
}

/// The server serves until SIGTERM, and ends with exit code 0.
#[test]
fn server_ends_with_zero_on_sigterm() {
    let home = Home::new("");
    let mut server = Served::start(&home);
    let (address, admin) = addresses(&mut server);
    assert!(get(&address, "/v2/").starts_with("HTTP/1.1 200"));
    assert!(get(&admin, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(&admin, "/livez").starts_with("HTTP/1.1 200"));
    assert!(get(&admin, "/metrics").contains("registry_mirror_cache_bytes"));
    let status = get(&admin, "/status");
    assert!(
        status.contains(r#""host":"127.0.0.1:9""#) && status.contains("configurationVersion"),
        "{status}"
    );
    server.signal("-TERM");
    assert_eq!(server.end(), Some(0));
}

/// A second server on the same cache ends at once.
#[test]
fn second_server_on_one_cache_ends() {
    let home = Home::new("");
    let mut first = Served::start(&home);
    addresses(&mut first);
    let (code, _, stderr) = home.ends(&["serve", "config.yml"]);
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("in use by another process"), "{stderr}");
}

#[test]
fn sighup_reloads_and_names_keys_that_need_restart() {
    let home = Home::new("");
    let mut server = Served::start(&home);
    let (_, admin) = addresses(&mut server);
    home.write("config.yml", &SERVED.replace("5s", "7s").replace("1h", "2h"));
    server.signal("-HUP");
    assert_eq!(server.line("next start")["key"], "http.draintimeout");
    let version = server.line("in force")["version"].as_str().unwrap().to_owned();
    assert!(get(&admin, "/status").contains(&version));
}

/// A broken configuration leaves the old one in force, and the status and metrics report it.
#[test]
fn broken_configuration_keeps_the_old() {
    let home = Home::new("");
    let mut server = Served::start(&home);
    let (address, admin) = addresses(&mut server);
    home.write("config.yml", "proxy: {remoturl: x}");
    server.signal("-HUP");
    assert_eq!(server.line("not taken")["level"], "error");
    assert!(get(&address, "/v2/").starts_with("HTTP/1.1 200"));
    assert!(get(&admin, "/status").contains("unknown key"));
    assert!(get(&admin, "/metrics").contains(r#"registry_mirror_reloads_total{result="refused"} 1"#));
}

#[test]
fn unknown_configuration_falls_back_to_last_good_one() {
    let home = Home::new("");
    home.write("last-good.yml", SERVED);
    home.write("config.yml", &format!("{SERVED}future: {{key: 1}}\n"));
    let mut server = Served::of_what_is_there(&home);
    assert_eq!(server.line("not taken")["level"], "error");
    let (address, admin) = addresses(&mut server);
    assert!(get(&address, "/v2/").starts_with("HTTP/1.1 200"));
    let status = get(&admin, "/status");
    assert!(status.contains("future"), "{status}");
    // The server accepts the keys that it knows.
    home.write("config.yml", &SERVED.replace("1h", "3h"));
    server.line("in force");
    assert!(!get(&admin, "/status").contains("future"));
}

/// A last good configuration that is invalid too changes nothing: the start fails with the first error.
#[test]
fn invalid_last_good_config_is_not_used() {
    let home = Home::new("future: {key: 1}");
    home.write("last-good.yml", "also: {unknown: 1}");
    let (code, _, stderr) = home.ends(&["serve", "config.yml"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("future"), "{stderr}");
}

/// The server notices an edit of its configuration without a signal.
#[test]
fn config_edit_is_noticed_without_signal() {
    let home = Home::new("");
    let mut server = Served::start(&home);
    addresses(&mut server);
    home.write("config.yml", &SERVED.replace("1h", "3h"));
    server.line("in force");
    assert!(Path::new(&home.path("cache")).is_dir());
}
