//! Upstreams that are reached through an HTTP proxy.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::hub::Hub;
use crate::served::Home;

/// An HTTP proxy on 127.0.0.1 that remembers its request lines. It tunnels, and forwards what comes in plain.
struct Proxy {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (
            listener.local_addr().unwrap().to_string(),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, Arc::clone(&noted)));
            }
        });
        Self { address, seen }
    }

    fn seen(&self, method: &str) -> usize {
        let seen = self.seen.lock();
        seen.iter().filter(|line| line.starts_with(method)).count()
    }
}

/// One connection: a tunnel, or one request that is sent on as it came.
async fn pass(client: TcpStream, seen: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let line = head.lines().next()?.to_owned();
    seen.lock().push(line.clone());
    let target = line.split(' ').nth(1)?;
    if line.starts_with("CONNECT ") {
        let mut server = TcpStream::connect(target).await.ok()?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
        tokio::io::copy_bidirectional(&mut client, &mut server)
            .await
            .ok()?;
        return Some(());
    }
    let authority = target.strip_prefix("http://")?.split('/').next()?;
    let mut server = TcpStream::connect(authority).await.ok()?;
    let origin = head.replacen(&format!("http://{authority}"), "", 1);
    let closing = origin.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    server.write_all(closing.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await.ok()?;
    client.write_all(&answer).await.ok()
}

#[tokio::test]
async fn proxyurl_tunnels_to_its_upstream_only() {
    let (far, near, proxy) = (Hub::start_tls().await, Hub::start().await, Proxy::start().await);
    let digest = far.push_blob("app", b"bytes");
    near.push_blob("app", b"bytes");
    let yaml = format!(
        "proxy: {{cache: {{maxsize: 1Gi}}, upstreams: [\
         {{host: far.test, remoteurl: '{}', tls: {{cafile: '{}'}}, proxyurl: 'http://{}'}}, \
         {{host: near.test, remoteurl: '{}'}}]}}",
        far.url(),
        far.ca_file().unwrap().display(),
        proxy.address,
        near.url(),
    );
    let served = Home::new().serve("", &yaml, &[]).await;
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(
        served.get(&format!("{path}?ns=far.test")).await,
        (200, b"bytes".to_vec())
    );
    let tunnels = proxy.seen("CONNECT");
    assert!(tunnels > 0);
    assert_eq!(
        served.get(&format!("{path}?ns=near.test")).await,
        (200, b"bytes".to_vec())
    );
    assert_eq!((proxy.seen("CONNECT"), proxy.seen("GET")), (tunnels, 0));
}

#[tokio::test]
async fn environment_proxies_respect_no_proxy() {
    let (hub, proxy) = (Hub::start().await, Proxy::start().await);
    let digest = hub.push_blob("app", b"bytes");
    let yaml = format!("proxy: {{remoteurl: '{}', cache: {{maxsize: 1Gi}}}}", hub.url());
    let url = format!("http://{}", proxy.address);
    for (no_proxy, passes) in [("", true), ("127.0.0.1", false)] {
        let before = proxy.seen("GET");
        let environment = [("HTTP_PROXY", url.as_str()), ("NO_PROXY", no_proxy)];
        let served = Home::new().serve("", &yaml, &environment).await;
        let path = format!("/v2/app/blobs/{digest}");
        assert_eq!(served.get(&path).await, (200, b"bytes".to_vec()), "{no_proxy:?}");
        assert_eq!(proxy.seen("GET") > before, passes, "{no_proxy:?}");
    }
}

#[tokio::test]
async fn all_proxy_variables_are_used() {
    let (plain, sealed) = (Hub::start().await, Hub::start_tls().await);
    let digest = plain.push_blob("app", b"bytes");
    sealed.push_blob("app", b"bytes");
    let yaml = format!(
        "proxy: {{cache: {{maxsize: 1Gi}}, upstreams: [{{host: plain.test, remoteurl: '{}'}}, \
         {{host: sealed.test, remoteurl: '{}', tls: {{cafile: '{}'}}}}]}}",
        plain.url(),
        sealed.url(),
        sealed.ca_file().unwrap().display(),
    );
    for (variable, tunnels, forwards) in [
        ("HTTPS_PROXY", true, false),
        ("https_proxy", true, false),
        ("http_proxy", false, true),
        ("ALL_PROXY", true, true),
        ("all_proxy", true, true),
    ] {
        let proxy = Proxy::start().await;
        let url = format!("http://{}", proxy.address);
        let served = Home::new().serve("", &yaml, &[(variable, url.as_str())]).await;
        for host in ["plain.test", "sealed.test"] {
            let path = format!("/v2/app/blobs/{digest}?ns={host}");
            assert_eq!(
                served.get(&path).await,
                (200, b"bytes".to_vec()),
                "{variable} {host}"
            );
        }
        let seen = (proxy.seen("CONNECT") > 0, proxy.seen("GET") > 0);
        assert_eq!(seen, (tunnels, forwards), "{variable}");
    }
}
