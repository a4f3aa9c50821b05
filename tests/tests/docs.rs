//! The documentation: its links lead somewhere, and the commands of a tutorial run as typed.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use test_case::test_case;
use testbed::Upstream;
use testbed::binaries::{self, workspace};
use testbed::image::Random;
use testbed::pki::Authority;
use testbed::process::{command, free_ports};
use testbed::scratch::Scratch;
use testbed::upstream;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// The pages whose commands run without a cluster.
const PAGES: [&str; 6] = [
    "README.md",
    "docs/tutorials/local.md",
    "docs/how-to/air-gap.md",
    "docs/how-to/credentials.md",
    "docs/how-to/private-images.md",
    "docs/how-to/tls.md",
];
/// The comment before a block of commands that no test runs, with the reason.
const NOT_RUN: &str = "<!-- not run: ";

/// Each relative link names a file of the repository, and its anchor a heading of that file.
#[test]
fn links_and_anchors_exist() {
    let pages: HashMap<PathBuf, Page> = pages().map(|path| (path.clone(), Page::read(&path))).collect();
    let mut broken = Vec::new();
    for (path, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            let Ok(target) = target.canonicalize() else {
                broken.push(format!("{}: no file {link}", path.display()));
                continue;
            };
            let has_anchor = pages.get(&target).is_none_or(|page| page.has_anchor(anchor));
            if !anchor.is_empty() && !has_anchor {
                broken.push(format!("{}: no heading {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Each block of commands runs in a test, or a comment before it has the reason against that.
#[test]
fn commands_are_run_or_marked() {
    let mut unmarked = Vec::new();
    let (mut run, mut marked) = (0, 0);
    for path in pages() {
        for block in Page::read(&path).commands {
            if !block.run {
                marked += 1;
            } else if PAGES.iter().any(|page| workspace().join(page) == path) {
                run += 1;
            } else {
                unmarked.push(format!("{}: {}", path.display(), block.text));
            }
        }
    }
    println!("{run} blocks of commands run, {marked} are marked");
    assert!(
        unmarked.is_empty(),
        "put {NOT_RUN}REASON --> before: {unmarked:#?}"
    );
}

/// The commands of a page run in their order. A proxy answers in place of Docker Hub, the ports are free ones, and the
/// files are in a directory of the test.
#[test_case(PAGES[0]; "readme")]
#[test_case(PAGES[1]; "tutorial")]
#[test_case(PAGES[2]; "air gap")]
#[test_case(PAGES[3]; "credentials")]
#[test_case(PAGES[4]; "private images")]
#[test_case(PAGES[5]; "tls")]
#[tokio::test]
async fn page_runs_as_typed(page: &str) {
    let scratch = Scratch::new("docs").unwrap();
    let authority = Authority::new("Docker Hub of a test").unwrap();
    let bundle = scratch.write("ca.pem", authority.certificate()).unwrap();
    let hub = upstream::Options::default().tls(authority.serving(&["registry-1.docker.io"]).unwrap());
    let hub = Upstream::start(hub).await.unwrap();
    let image = Random::new(7, &[4096, 1024])
        .write(&scratch.path().join("image"), "latest")
        .unwrap();
    hub.push(&image, "latest", "library/alpine:latest").await.unwrap();
    let proxy = proxy_to(hub.address().to_string()).await;

    let commands = Page::read(&workspace().join(page)).commands;
    let script: String = commands
        .into_iter()
        .filter(|block| block.run)
        .map(|block| block.text)
        .collect();
    let script = with_own_addresses(&script, scratch.path());
    let programs = Path::new(env!("CARGO_BIN_EXE_demo")).parent().unwrap();
    let kubectl = binaries::get("kubectl").await.unwrap();
    let path = [programs, kubectl.parent().unwrap()].map(|directory| directory.display().to_string());
    let path = format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap());
    let mut bash = command("bash");
    bash.args([
        "-o", "monitor", "-o", "errexit", "-o", "pipefail", "-o", "xtrace", "-c", &script,
    ]);
    bash.env("PATH", path)
        .env("SSL_CERT_FILE", bundle)
        .env("HTTPS_PROXY", proxy)
        .env("NO_PROXY", "127.0.0.1")
        .current_dir(workspace())
        .stdin(Stdio::null());
    let mut bash = tokio::process::Command::from(bash);
    let output = tokio::time::timeout(Duration::from_mins(2), bash.kill_on_drop(true).output());
    let output = output.await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    let left = fs::read_dir(scratch.path()).unwrap();
    let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ca.pem", "image"].map(Into::into).into());
}

/// Returns a script with free ports in place of those of the page, and a directory in place of /tmp.
fn with_own_addresses(script: &str, directory: &Path) -> String {
    let [port, admin, actions] = free_ports().unwrap().map(|port: u16| port.to_string());
    let serve = "registry-mirror local --port @port@";
    let placeholders = [
        ("registry-mirror local", serve),
        ("127.0.0.1:5000", "127.0.0.1:@port@"),
        ("5001", "@admin@"),
        ("5003", "@actions@"),
    ];
    let script = placeholders
        .iter()
        .fold(script.to_owned(), |script, (from, to)| script.replace(from, to));
    let directory = format!("{}/", directory.display());
    let values = [
        ("@port@", &port),
        ("@admin@", &admin),
        ("@actions@", &actions),
        ("/tmp/", &directory),
    ];
    values
        .iter()
        .fold(script, |script, (from, to)| script.replace(from, to))
}

/// A proxy that connects each client to `address`, for any host that the client names. Returns its URL.
async fn proxy_to(address: String) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let address = address.clone();
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut line = String::new();
                while client.read_line(&mut line).await? > 2 {
                    line.clear();
                }
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                let mut server = TcpStream::connect(address).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    url
}

/// The Markdown files that users read.
fn pages() -> impl Iterator<Item = PathBuf> {
    let mut found = vec![workspace().join("charts/registry-mirror/README.md")];
    let root = fs::read_dir(workspace())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    found.extend(root.filter(|path| is_markdown(path)));
    let mut directories = vec![workspace().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if is_markdown(&path) {
                found.push(path);
            }
        }
    }
    found.into_iter().map(|path| path.canonicalize().unwrap())
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// A block of shell commands.
struct Commands {
    text: String,
    run: bool,
}

/// The parts of a Markdown file that the tests check.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    headings: Vec<String>,
    commands: Vec<Commands>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let mut page = Self::default();
        let (mut heading, mut block, mut run) = (None::<String>, None::<String>, true);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.headings.extend(heading.take().map(|text| slug(&text)));
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "sh" => {
                    block = Some(String::new());
                }
                Event::End(TagEnd::CodeBlock) => {
                    page.commands
                        .extend(block.take().map(|text| Commands { text, run }));
                    run = true;
                }
                Event::Html(html) if html.starts_with(NOT_RUN) => run = false,
                Event::Text(text) | Event::Code(text) => {
                    for open in [&mut heading, &mut block].into_iter().flatten() {
                        open.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }

    /// Returns whether a heading has this anchor, as GitHub makes them: the second heading of one text ends in `-1`.
    fn has_anchor(&self, anchor: &str) -> bool {
        let repeated = |number: usize, heading: &str| {
            let earlier = self.headings[..number]
                .iter()
                .filter(|other| *other == heading)
                .count();
            if earlier == 0 {
                heading.to_owned()
            } else {
                format!("{heading}-{earlier}")
            }
        };
        let mut headings = self.headings.iter().enumerate();
        headings.any(|(number, heading)| repeated(number, heading) == anchor)
    }
}

/// Returns the anchor that GitHub makes for a heading.
fn slug(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading
        .to_lowercase()
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}
