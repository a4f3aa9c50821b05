//! Clients and upstreams that speak TLS where plain HTTP is expected, and the reverse.

use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::hub::Hub;
use crate::openssl::{LOCAL, Openssl};
use crate::served::{Home, Served, client};

/// The beginning of a TLS handshake: a record with a part of a `ClientHello`.
const CLIENT_HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

async fn served(remote: &str, tls: bool) -> Served {
    let home = Home::new();
    let proxy = format!("proxy: {{remoteurl: '{remote}', cache: {{maxsize: 1Gi}}}}");
    if !tls {
        return home.serve("", &proxy, &[]).await;
    }
    let own = Openssl::new().self_signed(&format!("-newkey rsa:2048 -sha256 -addext {LOCAL}"));
    home.write("tls.crt", &own.chain);
    home.write("tls.key", &own.key);
    let tls = ", tls: {certificate: HOME/tls.crt, key: HOME/tls.key}";
    home.serve(tls, &proxy, &[]).await
}

/// A client that speaks another protocol than its port serves gets 400 with the action, and so does the log.
#[test_case(false, &CLIENT_HELLO, "use http://"; "TLS to plain HTTP")]
#[test_case(true, b"GET /v2/ HTTP/1.1\r\nhost: m\r\n\r\n", "use https://"; "plain HTTP to TLS")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_of_other_protocol_gets_400_with_action(tls: bool, sent: &[u8], action: &str) {
    let hub = Hub::start().await;
    let mut served = served(hub.url().as_str(), tls).await;
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(
        answer.contains(action) && answer.contains("\"UNSUPPORTED\""),
        "{answer}"
    );
    let line = served.line(action).await;
    assert_eq!(
        (&line["status"], &line["code"]),
        (&400.into(), &"UNSUPPORTED".into())
    );
}

/// A server that answers each connection with these bytes, and ends it.
async fn server_that_says(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    address.to_string()
}

/// The upstream of another protocol than its URL is named with the action in the response, the log and the status.
#[test_case("https", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "http:// if it has none"; "https to plain HTTP")]
#[test_case("http", b"\x15\x03\x01\x00\x02\x02\x46", "use https://"; "http to TLS that sends an alert")]
#[test_case("http", b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", "use https://"; "http to TLS of Go")]
#[test_case("http", b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: 57\r\n\r\n<h1>The plain HTTP request was sent to HTTPS port</h1>\r\n\r\n", "use https://"; "http to TLS of nginx")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_of_other_protocol_is_named_with_action(scheme: &str, says: &'static [u8], action: &str) {
    let address = server_that_says(says).await;
    let mut served = served(&format!("{scheme}://{address}"), false).await;
    let url = format!("http://{}/v2/library/app/manifests/1", served.address);
    let answer = client().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let body = answer.text().await.unwrap();
    assert!(body.contains(action), "{body}");
    served.line(action).await;
    let status = served.status().await;
    let error = status["upstreams"][0]["lastError"].as_str().unwrap_or_default();
    assert!(error.contains(action), "{status}");
}
