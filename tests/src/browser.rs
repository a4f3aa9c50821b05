//! Chromium without a window: it loads pages of loopback addresses, checks their accessibility, and takes pictures.

use std::io;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::binaries::workspace;
use crate::process::command;
use crate::scratch::Scratch;

/// The command line that turns the protocol's file descriptors 3 and 4 into stdin and stdout.
const START: &str = r#"exec chromium "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;
/// Chromium runs as root without its sandbox, and connects to loopback addresses alone.
const FLAGS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.*",
    "--remote-debugging-pipe",
];
/// Returns the violations of WCAG 2.2 A and AA, and of axe-core's best practices, each with its elements.
const CHECK: &str = "axe.run(document).then(report => report.violations.map(violation => \
    violation.id + ': ' + violation.nodes.map(node => node.html).join(' ')))";

/// An error of the browser.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The browser did not start, or ended.
    #[error("Chromium ({0}): run tests/cluster/packages pages")]
    Io(#[from] io::Error),
    /// The browser refused a command of its protocol.
    #[error("Chromium refused {method}: {reason}")]
    Refused {
        /// The command.
        method: String,
        /// The answer.
        reason: String,
    },
    /// axe-core could not be fetched.
    #[error("tests/cluster/axe-core failed: {0}")]
    AxeCore(String),
}

/// The appearance of a page.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The name of the view.
    pub name: &'static str,
    /// The width of the window in pixels.
    pub width: u32,
    /// `true` for a phone.
    pub is_phone: bool,
    /// `true` if the user prefers dark colours.
    pub is_dark: bool,
}

impl View {
    /// The views of each page: phone and desktop, light and dark.
    pub const ALL: [Self; 4] = [
        Self::new("desktop-light", 1280, false, false),
        Self::new("desktop-dark", 1280, false, true),
        Self::new("phone-light", 390, true, false),
        Self::new("phone-dark", 390, true, true),
    ];

    const fn new(name: &'static str, width: u32, is_phone: bool, is_dark: bool) -> Self {
        Self {
            name,
            width,
            is_phone,
            is_dark,
        }
    }
}

/// A browser with a page; it ends when it is dropped.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    _profile: Scratch,
}

impl Browser {
    /// Starts Chromium with an empty page.
    ///
    /// # Errors
    /// Those of the start.
    pub async fn start() -> Result<Self, Error> {
        let profile = Scratch::new("chromium")?;
        let mut start = command("bash");
        start.args(["-c", START, "chromium"]).args(FLAGS);
        start.arg(format!("--user-data-dir={}", profile.path().display()));
        start.env("HOME", profile.path());
        let mut process = Command::from(start)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let stdin = process.stdin.take().ok_or_else(closed)?;
        let stdout = BufReader::new(process.stdout.take().ok_or_else(closed)?);
        let mut browser = Self {
            process,
            stdin,
            stdout,
            session: None,
            last_id: 0,
            _profile: profile,
        };
        let target = browser
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        browser.call("Page.enable", json!({})).await?;
        Ok(browser)
    }

    /// Loads a page in a view, and returns once it is loaded.
    ///
    /// # Errors
    /// Those of the browser.
    pub async fn open(&mut self, url: &str, view: View) -> Result<(), Error> {
        let scheme = if view.is_dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await?;
        let size = json!({
            "width": view.width,
            "height": if view.is_phone { 844 } else { 800 },
            "deviceScaleFactor": 1,
            "mobile": view.is_phone,
        });
        self.call("Emulation.setDeviceMetricsOverride", size).await?;
        let opened = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(reason) = opened["errorText"].as_str() {
            return Err(refused("Page.navigate", reason));
        }
        while self.evaluate("document.readyState").await? != "complete" {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Returns the violations of accessibility that axe-core finds in the page, and texts that are wider than it.
    ///
    /// # Errors
    /// Those of the browser.
    pub async fn violations(&mut self) -> Result<Vec<String>, Error> {
        let axe = axe_core().await?;
        self.evaluate(&axe).await?;
        let found = self.evaluate(CHECK).await?;
        let mut violations: Vec<String> = serde_json::from_value(found).unwrap_or_default();
        let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        let overflow = self.evaluate(overflow).await?;
        if overflow != 0 {
            violations.push(format!("the page is {overflow} pixels wider than the window"));
        }
        Ok(violations)
    }

    /// Writes a picture of the whole page, or of the element that `selector` selects, as PNG.
    ///
    /// # Errors
    /// Those of the browser, and of the file.
    pub async fn screenshot(&mut self, selector: &str, file: &Path) -> Result<(), Error> {
        let bounds = format!(
            "(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect(); return \
             {{x: 0, y: box.y + scrollY, width: innerWidth, height: box.height, scale: 1}}; }})()"
        );
        let clip = self.evaluate(&bounds).await?;
        let parameters = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let picture = self.call("Page.captureScreenshot", parameters).await?;
        let data = picture["data"].as_str().unwrap_or_default();
        let bytes = STANDARD.decode(data).map_err(io::Error::other)?;
        Ok(std::fs::write(file, bytes)?)
    }

    /// Returns the value of an expression in the page, awaited.
    ///
    /// # Errors
    /// Those of the browser, and an exception of the expression.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value, Error> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", parameters).await?;
        match answer.get("exceptionDetails") {
            Some(exception) => Err(refused("Runtime.evaluate", &exception.to_string())),
            None => Ok(answer["result"]["value"].take()),
        }
    }

    /// Ends the browser, and waits for it.
    ///
    /// # Errors
    /// Those of the process.
    pub async fn close(mut self) -> Result<(), Error> {
        self.send("Browser.close", json!({})).await?;
        self.process.wait().await?;
        Ok(())
    }

    async fn send(&mut self, method: &str, parameters: Value) -> Result<u64, Error> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.stdin.write_all(format!("{message}\0").as_bytes()).await?;
        Ok(self.last_id)
    }

    /// Sends a command, and returns its result. Events in between are of no interest.
    async fn call(&mut self, method: &str, parameters: Value) -> Result<Value, Error> {
        let id = self.send(method, parameters).await?;
        loop {
            let mut message = Vec::new();
            self.stdout.read_until(0, &mut message).await?;
            if message.pop() != Some(0) {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let mut answer: Value = serde_json::from_slice(&message).map_err(io::Error::from)?;
            if answer["id"] != id {
                continue;
            }
            return match answer.get("error") {
                Some(error) => Err(refused(method, &error.to_string())),
                None => Ok(answer["result"].take()),
            };
        }
    }
}

fn refused(method: &str, reason: &str) -> Error {
    let (method, reason) = (method.to_owned(), reason.to_owned());
    Error::Refused { method, reason }
}

/// Returns the script of axe-core.
async fn axe_core() -> Result<String, Error> {
    let script = workspace().join("tests/cluster/axe-core");
    let output = Command::new(script).output().await?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::AxeCore(reason));
    }
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(tokio::fs::read_to_string(path).await?)
}
