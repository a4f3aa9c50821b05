//! The hosts that an upstream names in redirects and challenges: few connections to them stay open, and one request of a
//! client causes a bounded number of requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::TryStreamExt;
use mirror::clock::Clock;
use mirror::digest::{Algorithm, Digest};
use mirror::upstream::Upstream;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::hub::Hub;
use crate::{blob, eventually, name, tag};

/// A server on ports of its own that keeps every connection open.
#[derive(Clone, Default)]
struct Server {
    open: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
}

/// Returns the response to a request line; the second value is `true` if the request has an `Authorization`.
type Respond = fn(&str, bool, SocketAddr) -> String;

impl Server {
    /// Listens on one more port.
    async fn listen(&self, respond: Respond) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, server) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                server.open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = server.serve(stream, respond, address).await;
                    server.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        address
    }

    async fn serve(
        &self,
        mut stream: TcpStream,
        respond: Respond,
        address: SocketAddr,
    ) -> std::io::Result<()> {
        let mut head = Vec::new();
        while stream.read_buf(&mut head).await? > 0 {
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            let line = text.lines().next().unwrap_or_default().to_owned();
            let is_authorized = text.to_lowercase().contains("\nauthorization:");
            self.seen.lock().push(line.clone());
            stream
                .write_all(respond(&line, is_authorized, address).as_bytes())
                .await?;
            head.clear();
        }
        Ok(())
    }

    fn count(&self, part: &str) -> usize {
        let seen = self.seen.lock();
        seen.iter().filter(|line| line.contains(part)).count()
    }

    /// Returns a client of a registry at this address.
    fn upstream(address: SocketAddr, hub: &Hub) -> Upstream {
        let mut config = hub.config();
        config.remote = format!("http://{address}/").parse().unwrap();
        Upstream::new(&config, Clock::system()).unwrap()
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

/// Each blob is at another host; the connections to most of them end with the response.
#[tokio::test]
async fn few_connections_to_named_hosts_stay_open() {
    let (hub, servers) = (Hub::start().await, Server::default());
    let digest = Digest::compute(Algorithm::Sha256, b"layer");
    let upstream = crate::upstream(&hub);
    for _ in 0..60 {
        let address = servers.listen(|_, _, _| response("200 OK", "", "layer")).await;
        let location = format!("http://{address}/layer");
        hub.once("GET blobs", crate::hub::Fault::redirect(&location));
        let answer = blob(&upstream, &digest).await.unwrap();
        let chunks: Vec<_> = answer.body.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), b"layer");
    }
    assert_eq!(servers.count("GET /layer"), 60);
    eventually("few connections", || servers.open.load(Ordering::SeqCst) <= 8).await;
    assert!(servers.open.load(Ordering::SeqCst) > 0, "some stay open");
}

/// Each redirect names a repository that needs another token, and the token server redirects too.
#[tokio::test]
async fn one_request_causes_bounded_requests() {
    let (hub, servers) = (Hub::start().await, Server::default());
    let respond: Respond = |line, is_authorized, address| {
        let path = line.split(' ').nth(1).unwrap();
        let number = |text: &str| text.parse::<usize>().unwrap_or_default();
        if let Some(rest) = path.strip_prefix("/token/") {
            let step = number(rest.split('?').next().unwrap());
            if step < 6 {
                let location = format!("location: http://{address}/token/{}\r\n", step + 1);
                return response("307 Temporary Redirect", &location, "");
            }
            return response("200 OK", "", r#"{"token":"t"}"#);
        }
        let step = number(path.trim_start_matches("/v2/app").split('/').next().unwrap());
        if is_authorized {
            let location = format!("location: /v2/app{}/manifests/v1\r\n", step + 1);
            return response("307 Temporary Redirect", &location, "");
        }
        let challenge =
            format!("www-authenticate: Bearer realm=\"http://{address}/token/0\",service=\"{step}\"\r\n");
        response("401 Unauthorized", &challenge, "")
    };
    let address = servers.listen(respond).await;
    let upstream = Server::upstream(address, &hub);
    let error = upstream.manifest(&name("app0"), &tag("v1")).await.unwrap_err();
    assert!(error.to_string().contains("more than 20 requests"), "{error}");
    assert_eq!(servers.count(""), 20);
}

/// A registry that names another token server for each repository: switches between repositories fetch no more tokens.
#[tokio::test]
async fn realm_per_repository_keeps_its_tokens() {
    let (hub, servers) = (Hub::start().await, Server::default());
    let respond: Respond = |line, is_authorized, address| {
        let path = line.split(' ').nth(1).unwrap();
        if path.starts_with("/token/") {
            return response("200 OK", "", r#"{"token":"t","expires_in":3600}"#);
        }
        if is_authorized {
            return response(
                "200 OK",
                "content-type: application/json\r\n",
                r#"{"name":"x","tags":["a"]}"#,
            );
        }
        let repository = path.trim_start_matches("/v2/").split('/').next().unwrap();
        let challenge = format!(
            "www-authenticate: Bearer realm=\"http://{address}/token/{repository}\",\
             service=\"s\",scope=\"repository:{repository}:pull\"\r\n"
        );
        response("401 Unauthorized", &challenge, "")
    };
    let address = servers.listen(respond).await;
    let upstream = Server::upstream(address, &hub);
    let repositories = ["one", "two", "three"].map(name);
    let pull_all = async || {
        for repository in &repositories {
            upstream.tags(repository, "").await.unwrap();
        }
    };
    for _ in 0..2 {
        pull_all().await;
    }
    let before = servers.count("/token/");
    for _ in 0..5 {
        pull_all().await;
    }
    assert_eq!(servers.count("/token/"), before, "{before} in the first rounds");
}
