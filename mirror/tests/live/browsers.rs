//! The needs of pages in browsers: preflights, configured headers, redirects below the prefix.

use reqwest::{Response, redirect};

use crate::hub::Hub;
use crate::served::{Home, Served};

const HTTP: &str = ", prefix: /mirror/, headers: {Access-Control-Allow-Origin: ['https://ui.test'], \
                    Access-Control-Allow-Methods: [HEAD, GET, OPTIONS], Cache-Control: [private]}";

async fn served(hub: &Hub) -> Served {
    let home = Home::new();
    home.write("users", &format!("jane:{}\n", bcrypt::hash("secret", 4).unwrap()));
    let rest = format!(
        "proxy: {{remoteurl: '{}', cache: {{maxsize: 1Gi}}}}\nauth: {{htpasswd: {{realm: mirror, path: HOME/users}}}}",
        hub.url()
    );
    home.serve(HTTP, &rest, &[]).await
}

async fn ask(served: &Served, method: &str, path: &str, login: bool) -> Response {
    crate::served::client();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none());
    let url = format!("http://{}{path}", served.address);
    let request = client.build().unwrap().request(method.parse().unwrap(), url);
    let request = if login {
        request.basic_auth("jane", Some("secret"))
    } else {
        request
    };
    request.send().await.unwrap()
}

fn all<'a>(answer: &'a Response, name: &str) -> Vec<&'a str> {
    let values = answer.headers().get_all(name).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

/// A browser sends no credentials in a preflight, and needs the configured headers in the answer to it.
#[tokio::test]
async fn preflight_needs_no_login_and_has_headers() {
    let hub = Hub::start().await;
    let served = served(&hub).await;
    for path in [
        "/mirror/v2/",
        "/mirror/v2/app/manifests/1",
        "/mirror/v2/app/tags/list",
    ] {
        let answer = ask(&served, "OPTIONS", path, false).await;
        assert_eq!(answer.status(), 204, "{path}");
        assert_eq!(
            all(&answer, "access-control-allow-origin"),
            ["https://ui.test"],
            "{path}"
        );
        assert_eq!(
            all(&answer, "access-control-allow-methods"),
            ["HEAD", "GET", "OPTIONS"],
            "{path}"
        );
        assert_eq!(all(&answer, "allow"), ["GET, HEAD, OPTIONS"], "{path}");
        let answer = ask(&served, "GET", path, false).await;
        assert_eq!(answer.status(), 401, "{path}");
        assert_eq!(
            all(&answer, "access-control-allow-origin"),
            ["https://ui.test"],
            "{path}"
        );
    }
    assert_eq!(hub.count("* "), 0);
}

/// The server's own `Cache-Control` stays for content by digest, as with Distribution; else the configured one counts.
#[tokio::test]
async fn configured_cache_control_is_for_mutable_content() {
    let hub = Hub::start().await;
    let (manifest, layers) = hub.push_image("app", "1", &[b"layer"]);
    let served = served(&hub).await;
    for (path, expected) in [
        (format!("blobs/{}", layers[0]), "max-age=31536000"),
        (format!("manifests/{manifest}"), "max-age=31536000"),
        ("manifests/1".to_owned(), "private"),
        ("tags/list".to_owned(), "private"),
        ("manifests/none".to_owned(), "private"),
    ] {
        let answer = ask(&served, "GET", &format!("/mirror/v2/app/{path}"), true).await;
        assert_eq!(all(&answer, "cache-control"), [expected], "{path}");
    }
}

/// A redirect to the clean path stays below the prefix, and comes before the login.
#[tokio::test]
async fn redirect_to_clean_path_keeps_prefix() {
    let hub = Hub::start().await;
    let served = served(&hub).await;
    let answer = ask(&served, "GET", "/mirror//v2//app/tags/list?n=1", false).await;
    assert_eq!(answer.status(), 301);
    assert_eq!(all(&answer, "location"), ["/mirror/v2/app/tags/list?n=1"]);
    assert_eq!(all(&answer, "access-control-allow-origin"), ["https://ui.test"]);
}
