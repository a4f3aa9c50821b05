//! Directories shared with CNCF Distribution, whose server (Debian's `docker-registry`) runs here.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A running registry; killed on drop.
struct Registry {
    process: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Serves a directory, or mirrors `remote` into it.
    fn start(root: &Path, remote: Option<&Registry>) -> Self {
        let config = tempfile::NamedTempFile::new().unwrap();
        let proxy = remote.map_or(String::new(), |remote| {
            format!("proxy: {{remoteurl: 'http://{}'}}\n", remote.address)
        });
        write!(
            config.as_file(),
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{proxy}",
            root.display()
        )
        .unwrap();
        let mut process = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(config.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs Debian's package docker-registry");
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = log
            .by_ref()
            .find_map(|line| {
                let line = line.ok()?;
                let (_, rest) = line.split_once("listening on ")?;
                Some(
                    rest.chars()
                        .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                        .collect(),
                )
            })
            .expect("the registry tells its address");
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address }
    }

    /// Returns the status and the body of a GET.
    fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "GET {path} HTTP/1.0\r\nHost: {}\r\nAccept: {IMAGE}\r\n\r\n",
            self.address
        );
        connection.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(end + 4))
    }

    /// Ends it as an administrator does, so that it writes its state.
    fn stop(mut self) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap();
    }
}

/// An image of one layer.
struct Image {
    config: Vec<u8>,
    layer: Vec<u8>,
    manifest: Manifest,
}

impl Image {
    fn new() -> Self {
        let (config, layer) = (
            b"{\"architecture\":\"amd64\",\"os\":\"linux\"}".to_vec(),
            bytes(7, 5000),
        );
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
            digest(&config),
            config.len(),
            digest(&layer),
            layer.len()
        );
        Self {
            config,
            layer,
            manifest: manifest(&text),
        }
    }

    async fn store(&self, place: &Place) {
        let store = place.open().await;
        put(&store, &nginx(), &self.config).await;
        put(&store, &nginx(), &self.layer).await;
        store.put_manifest(&nginx(), &self.manifest).await.unwrap();
        let tag = "latest".parse().unwrap();
        store
            .put_tag(&nginx(), &tag, self.manifest.digest())
            .await
            .unwrap();
        store
            .expire(Some(HOUR), mirror::config::TtlFrom::FirstFetch)
            .await
            .unwrap();
        store.flush().await;
    }

    fn assert_served_by(&self, registry: &Registry) {
        let base = "/v2/library/nginx";
        let manifest = registry.get(&format!("{base}/manifests/latest"));
        assert_eq!(manifest, (200, self.manifest.bytes().to_vec()));
        for blob in [&self.config, &self.layer] {
            let answer = registry.get(&format!("{base}/blobs/{}", digest(blob)));
            assert_eq!(answer, (200, blob.clone()));
        }
    }
}

/// Returns a cache that Distribution filled from `upstream`, with the state of its scheduler.
fn filled_by_distribution(image: &Image, upstream: &Registry) -> Place {
    let place = Place::new();
    let mirror = Registry::start(place.path(), Some(upstream));
    image.assert_served_by(&mirror);
    // It stores behind the answers.
    let start = Instant::now();
    let links = || place.tree().keys().filter(|path| path.ends_with("link")).count();
    let state = || fs::read_to_string(place.path().join("scheduler-state.json")).unwrap_or_default();
    while links() < 5 || state().matches("Expiry").count() < 3 {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{} links, {}",
            links(),
            state()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    mirror.stop();
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_serves_our_cache() {
    let (image, place) = (Image::new(), Place::new());
    image.store(&place).await;
    let origin = Registry::start(place.path(), None);
    image.assert_served_by(&origin);
    let state = fs::read_to_string(place.path().join("scheduler-state.json")).unwrap();
    assert_eq!(state.matches(r#""EntryType":0"#).count(), 2, "{state}");
    assert_eq!(state.matches(r#""EntryType":1"#).count(), 1, "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_cache_is_served_and_expires_in_time() {
    let (image, origin) = (Image::new(), Place::new());
    image.store(&origin).await;
    let upstream = Registry::start(origin.path(), None);
    let place = filled_by_distribution(&image, &upstream);
    let store = place.open().await;
    for blob in [&image.config, &image.layer] {
        assert_eq!(get(&store, &nginx(), &digest(blob)).await.as_ref(), Some(blob));
    }
    let found = store.manifest(&nginx(), image.manifest.digest()).await.unwrap();
    assert_eq!(found.as_ref(), Some(&image.manifest));
    let tag = store
        .tag(&nginx(), &"latest".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(tag.digest, *image.manifest.digest());
    let week = Some(168 * HOUR);
    place.clock.advance(167 * HOUR);
    assert_eq!(
        store
            .expire(week, mirror::config::TtlFrom::FirstFetch)
            .await
            .unwrap(),
        0
    );
    place.clock.advance(2 * HOUR);
    assert_eq!(
        store
            .expire(week, mirror::config::TtlFrom::FirstFetch)
            .await
            .unwrap(),
        3
    );
}

/// The mirror and Distribution write the same files with the same bytes.
#[tokio::test(flavor = "multi_thread")]
async fn cache_files_equal_distributions() {
    let (image, origin) = (Image::new(), Place::new());
    image.store(&origin).await;
    let upstream = Registry::start(origin.path(), None);
    let theirs = filled_by_distribution(&image, &upstream);
    assert_eq!(origin.tree(), theirs.tree());
}

/// Distribution continues with the expiry state that the mirror wrote.
#[tokio::test(flavor = "multi_thread")]
async fn distribution_reads_written_expiry_state() {
    let (image, origin) = (Image::new(), Place::new());
    image.store(&origin).await;
    let upstream = Registry::start(origin.path(), None);
    let place = filled_by_distribution(&image, &upstream);
    let store = place.open().await;
    store
        .expire(Some(168 * HOUR), mirror::config::TtlFrom::FirstFetch)
        .await
        .unwrap();
    store.flush().await;
    drop(store);
    let mirror = Registry::start(place.path(), Some(&upstream));
    image.assert_served_by(&mirror);
    mirror.stop();
    let state = fs::read_to_string(place.path().join("scheduler-state.json")).unwrap();
    assert_eq!(state.matches("ExpiryData").count(), 3, "{state}");
}
