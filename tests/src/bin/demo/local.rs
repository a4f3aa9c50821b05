//! The way without a cluster: `registry-mirror local`.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::{Upstream, skopeo, wait};

use crate::example::Example;
use crate::pulls::{Expected, Pulls, report};
use crate::{registry, say};

/// The longest wait until the mirror serves.
const READY: Duration = Duration::from_secs(20);

/// Runs the demo without a cluster, and returns true if each step had the expected result.
pub(crate) async fn run(example: &Example, programs: &Path) -> Result<bool, Box<dyn Error>> {
    let scratch = Scratch::new("demo")?;
    let (mut upstream, image) = registry::start(example, None, &scratch).await?;
    let (mirror, address, admin) = serve(example, &upstream, programs, &scratch).await?;
    let pulls = Pulls {
        mirror: skopeo::Registry::open(address),
        admin: admin.to_string(),
        image: &image,
        scratch: &scratch,
    };
    say("pulling it twice with skopeo");
    let cold = pulls.pull("1, empty cache", &upstream, Expected::Cold).await?;
    let validated = Instant::now();
    let warm = pulls.pull("2, again", &upstream, Expected::Warm).await?;
    let freshness = example.freshness()?;
    say(&format!(
        "stopping the registry, and letting the tag's freshness ({} s) pass",
        freshness.as_secs()
    ));
    upstream.go_down();
    tokio::time::sleep((freshness + Duration::from_secs(1)).saturating_sub(validated.elapsed())).await;
    let stale = pulls
        .pull("3, registry stopped", &upstream, Expected::Stale)
        .await?;
    drop(mirror);
    Ok(report(&[cold, warm, stale]))
}

/// Starts the mirror, and returns it with the addresses of its registry port and its admin port.
async fn serve(
    example: &Example,
    upstream: &Upstream,
    programs: &Path,
    scratch: &Scratch,
) -> Result<(Daemon, SocketAddr, SocketAddr), Box<dyn Error>> {
    let spec = scratch.write("mirror.yaml", example.with_registry(&upstream.url()))?;
    let [port, admin_port] = free_ports()?;
    say(&format!(
        "registry-mirror local -f examples/demo.yaml --port {port} (its registry: {})",
        upstream.url()
    ));
    let mut local = command(programs.join("registry-mirror"));
    local.arg("local").arg("-f").arg(&spec);
    // The demo kills it in the end; it leaves no files outside its directory.
    local.env("TMPDIR", scratch.path());
    local.arg("--cache-dir").arg(scratch.path().join("cache"));
    local.args([
        "--port",
        &port.to_string(),
        "--admin-port",
        &admin_port.to_string(),
    ]);
    let mut mirror = Daemon::spawn("registry-mirror", local, &scratch.path().join("log"))?;
    let [address, admin] = [port, admin_port].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let ready = wait::until("answer from the mirror", READY, || {
        let ended = mirror.exited().is_some();
        async move {
            let answer = reqwest::get(format!("http://{admin}/readyz")).await;
            let ready = answer.is_ok_and(|answer| answer.status().is_success());
            (ready || ended).then_some(ready)
        }
    });
    match ready.await {
        Ok(true) => Ok((mirror, address, admin)),
        Ok(false) => Err(format!("registry-mirror ended: {}", mirror.log_tail()).into()),
        Err(late) => Err(format!("{late}: {}", mirror.log_tail()).into()),
    }
}
