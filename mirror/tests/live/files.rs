//! Files in whose place something else is: a FIFO, a directory, gigabytes. The server stays alive, reports the file, and
//! reloads it once it is repaired.

use std::fs;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;
use test_case::test_case;

use crate::hub::Hub;
use crate::served::{Home, Served, eventually};

/// The things that are put in the place of a file.
#[derive(Clone, Copy)]
enum Obstacle {
    Fifo,
    Huge,
    Endless,
    LinkLoop,
}

impl Obstacle {
    /// Puts it in the place of a file; returns a part of the message about it.
    fn place(self, home: &Home, name: &str) -> &'static str {
        let path = home.path(name);
        fs::rename(&path, home.path("kept")).unwrap();
        match self {
            Self::Fifo => {
                mkfifoat(CWD, &path, Mode::RWXU).unwrap();
                "it is a FIFO, not a regular file"
            }
            Self::Huge => {
                fs::File::create(&path).unwrap().set_len(600 << 20).unwrap();
                "it is larger than 4 MiB"
            }
            Self::Endless => {
                std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
                "it is a device, not a regular file"
            }
            Self::LinkLoop => {
                std::os::unix::fs::symlink(&path, &path).unwrap();
                "symbolic links"
            }
        }
    }
}

/// Replaces an obstacle by the file.
fn repair(home: &Home, name: &str) {
    fs::rename(home.path("kept"), home.path(name)).unwrap();
}

/// Starts a server that has each kind of file; returns it with the hub.
async fn served() -> (Hub, Served) {
    crate::served::client();
    let (hub, home) = (Hub::start().await, Home::new());
    hub.push_image("library/app", "v1", &[b"layer"]);
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    home.write("ca.pem", &issued.cert.pem());
    home.write("tls.crt", &issued.cert.pem());
    home.write("tls.key", &issued.signing_key.serialize_pem());
    home.write("users", &format!("jane:{}\n", bcrypt::hash("secret", 4).unwrap()));
    fs::create_dir(home.path("credentials")).unwrap();
    home.write(
        "credentials/config.json",
        r#"{"auths":{"registry.test":{"username":"jane","password":"secret"}}}"#,
    );
    let tls = ", tls: {certificate: HOME/tls.crt, key: HOME/tls.key}";
    let rest = format!(
        "auth: {{htpasswd: {{realm: mirror, path: HOME/users}}}}\n\
         proxy: {{credentialsdirectory: HOME/credentials, cache: {{maxsize: 1Gi}}, upstreams: [\
         {{host: registry.test, remoteurl: '{}', tls: {{cafile: HOME/ca.pem}}}}]}}",
        hub.url()
    );
    (hub, home.serve(tls, &rest, &[]).await)
}

/// Returns the memory of the process of its own, in MiB.
fn memory(served: &Served) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", served.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes / 1024
}

/// The server reports a file that it cannot read, answers probes meanwhile, and reloads the repaired file.
#[test_case("config.yml", Obstacle::Fifo; "the configuration a fifo")]
#[test_case("config.yml", Obstacle::Huge; "the configuration huge")]
#[test_case("config.yml", Obstacle::Endless; "the configuration endless")]
#[test_case("config.yml", Obstacle::LinkLoop; "the configuration a loop")]
#[test_case("ca.pem", Obstacle::Fifo; "a CA file a fifo")]
#[test_case("ca.pem", Obstacle::Huge; "a CA file huge")]
#[test_case("tls.crt", Obstacle::Fifo; "the certificate a fifo")]
#[test_case("tls.crt", Obstacle::Huge; "the certificate huge")]
#[test_case("tls.key", Obstacle::Fifo; "the key a fifo")]
#[test_case("tls.key", Obstacle::Endless; "the key endless")]
#[test_case("users", Obstacle::Fifo; "the users a fifo")]
#[test_case("users", Obstacle::Huge; "the users huge")]
#[tokio::test]
async fn unreadable_file_is_reported_then_reloaded(name: &str, obstacle: Obstacle) {
    let (_hub, mut served) = served().await;
    let message = obstacle.place(&served.home, name);
    let line = served.line(message).await;
    let text = line.to_string();
    assert!(text.contains(name), "{text}");
    assert_eq!(served.admin("/livez").await.0, 200);
    repair(&served.home, name);
    let reloaded = match name {
        "config.yml" => "the new configuration is in force",
        "users" => "users can log in",
        _ => "a file that the configuration names changed",
    };
    served.line(reloaded).await;
    assert!(memory(&served) < 200, "{} MiB", memory(&served));
    served.signal(Signal::TERM);
    assert_eq!(served.ended().await, Some(0));
}

/// The server reports an unreadable file of credentials in `/status`, and reads the repaired one.
#[test_case(Obstacle::Fifo; "a fifo")]
#[test_case(Obstacle::Huge; "huge")]
#[tokio::test]
async fn unreadable_credentials_are_reported(obstacle: Obstacle) {
    let (_hub, mut served) = served().await;
    served.forget_log();
    let name = "credentials/config.json";
    let message = obstacle.place(&served.home, name);
    let credentials = async || served.status().await["upstreams"][0]["credentials"].to_string();
    eventually("the report", async || credentials().await.contains(message)).await;
    assert_eq!(served.admin("/livez").await.0, 200);
    repair(&served.home, name);
    eventually("the repair", async || !credentials().await.contains(message)).await;
    served.signal(Signal::TERM);
    assert_eq!(served.ended().await, Some(0));
}
