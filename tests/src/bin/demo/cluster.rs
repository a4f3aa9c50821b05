//! The way with a cluster: the chart installed, the same spec applied, and nothing left behind.

use std::error::Error;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use testbed::control_plane::Options;
use testbed::fake_kubelet::{self, Image};
use testbed::pki::Authority;
use testbed::scratch::Scratch;
use testbed::{ControlPlane, FakeKubelet, Node, binaries, node, skopeo, wait};

use crate::commands::Commands;
use crate::example::Example;
use crate::pulls::{Expected, Pulls, report};
use crate::{registry, say};

/// The namespace of the operator.
const OPERATORS: &str = "registry-mirror";
/// The namespace of the mirror.
const MIRRORS: &str = "mirrors";
/// The label selector of all objects of a mirror.
const OURS: &str = "--selector=app.kubernetes.io/managed-by=registry-mirror";
/// The longest wait for the end of deleted objects.
const SOON: Duration = Duration::from_mins(1);

/// A cluster that answers, as the story needs it.
struct Place {
    kubeconfig: PathBuf,
    /// An address at which Pods and clients reach this process.
    address: Ipv4Addr,
    /// True if kube-proxy forwards from Services to Pods.
    has_services: bool,
}

/// Starts a real node, loads the image, and runs the demo inside the node, which has no address outside.
pub(crate) async fn on_a_new_node(example: &Path, image: &Path) -> Result<bool, Box<dyn Error>> {
    say("starting a Kubernetes node: kubelet, containerd and all, in namespaces of its own");
    let node = Node::up("rmir-demo", "").await?;
    node.import(image).await?;
    let myself = std::env::current_exe()?;
    let mut inside = node.command(&myself.display().to_string());
    inside.arg("on-node").arg("--example").arg(example);
    Ok(inside.status().await?.success())
}

/// Runs the demo inside the node.
pub(crate) async fn on_node(example: &Example) -> Result<bool, Box<dyn Error>> {
    let kubeconfig = std::env::var_os("KUBECONFIG").ok_or("KUBECONFIG is not set")?;
    let place = Place {
        kubeconfig: kubeconfig.into(),
        address: node::ADDRESS.parse()?,
        has_services: true,
    };
    story(example, &place).await
}

/// Runs the demo on a control plane whose Pods run as processes.
pub(crate) async fn on_a_fake_node(example: &Example, programs: &Path) -> Result<bool, Box<dyn Error>> {
    say("starting a Kubernetes control plane, and a kubelet that runs Pods as processes");
    let control_plane = ControlPlane::start(Options {
        manifests: Vec::new(),
        ..Options::default()
    })
    .await?;
    let chart: serde_json::Value =
        serde_saphyr::from_str(&std::fs::read_to_string(chart().join("Chart.yaml"))?)?;
    let version = chart["appVersion"]
        .as_str()
        .ok_or("the chart has no appVersion")?;
    let image = Image::new("/registry-mirror", programs.join("registry-mirror"))
        .with("/mirror", programs.join("mirror"));
    let options = fake_kubelet::Options::default().image(&format!("registry-mirror:{version}"), image);
    let _kubelet = FakeKubelet::start(control_plane.kubeconfig(), options).await?;
    let place = Place {
        kubeconfig: control_plane.kubeconfig().to_owned(),
        address: Ipv4Addr::LOCALHOST,
        has_services: false,
    };
    story(example, &place).await
}

fn chart() -> PathBuf {
    binaries::workspace().join("charts/registry-mirror")
}

/// Runs the steps of the demo, and returns true if each had the expected result.
async fn story(example: &Example, place: &Place) -> Result<bool, Box<dyn Error>> {
    let scratch = Scratch::new("demo")?;
    let commands = Commands::new(&place.kubeconfig).await?;
    let authority = Authority::new("demo")?;
    let certificate = authority.serving(&[&place.address.to_string()])?;
    let (upstream, image) = registry::start(example, Some(certificate), &scratch).await?;
    let url = format!("https://{}", registry::publish(&upstream, place.address).await?);
    let spec = scratch.write(
        "mirror.yaml",
        example.with_tls_registry(&url, &authority.certificate()),
    )?;

    install(&commands).await?;
    apply(&commands, &spec).await?;
    let (mirror, admin) = addresses(&commands, place).await?;
    // kube-proxy may be a moment behind, and the address refuses until then.
    let connects = async || tokio::net::TcpStream::connect(&mirror).await.ok();
    wait::until("connection to the mirror's address", SOON, connects).await?;
    let pulls = Pulls {
        mirror: skopeo::Registry::open(mirror.parse()?),
        admin,
        image: &image,
        scratch: &scratch,
    };
    say(&format!("pulling it twice with skopeo, at {mirror}"));
    let cold = pulls.pull("1, empty cache", &upstream, Expected::Cold).await?;
    let warm = pulls.pull("2, again", &upstream, Expected::Warm).await?;
    let well = report(&[cold, warm]);
    clean_up(&commands).await?;
    Ok(well)
}

async fn install(commands: &Commands) -> Result<(), Box<dyn Error>> {
    let (chart, namespace) = (chart().display().to_string(), format!("--namespace={OPERATORS}"));
    commands
        .helm(&[
            "install",
            "registry-mirror",
            &chart,
            &namespace,
            "--create-namespace",
            "--wait",
        ])
        .await
}

async fn apply(commands: &Commands, spec: &Path) -> Result<(), Box<dyn Error>> {
    let (spec, namespace) = (spec.display().to_string(), format!("--namespace={MIRRORS}"));
    commands.kubectl(&["create", "namespace", MIRRORS]).await?;
    commands.kubectl(&["apply", "-f", &spec, &namespace]).await?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "rmir/demo",
        &namespace,
        "--timeout=120s",
    ];
    if let Err(error) = commands.kubectl(&ready).await {
        commands.kubectl(&["describe", "rmir,pods", &namespace]).await?;
        return Err(error);
    }
    commands.kubectl(&["get", "rmir", &namespace]).await?;
    commands
        .kubectl(&["get", "pods,services,configmaps,secrets", &namespace, OURS])
        .await?;
    Ok(())
}

/// Returns the addresses of the mirror's registry port and of its Pod's admin port.
async fn addresses(commands: &Commands, place: &Place) -> Result<(String, String), Box<dyn Error>> {
    let namespace = format!("--namespace={MIRRORS}");
    let pod = [
        "get",
        "pods",
        &namespace,
        OURS,
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ];
    let pod = commands.ask(&pod).await?;
    let service = [
        "get",
        "service",
        "demo",
        &namespace,
        "-o",
        "jsonpath={.spec.clusterIP}",
    ];
    let address = if place.has_services {
        commands.ask(&service).await?
    } else {
        pod.clone()
    };
    Ok((format!("{address}:5000"), format!("{pod}:5001")))
}

/// Deletes the mirror and the operator, and waits until nothing of them is there.
async fn clean_up(commands: &Commands) -> Result<(), Box<dyn Error>> {
    let namespace = format!("--namespace={MIRRORS}");
    commands.kubectl(&["delete", "rmir", "demo", &namespace]).await?;
    let kinds = "statefulsets,deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims";
    let left = ["get", kinds, &namespace, OURS, "-o", "name"];
    nothing(commands, &left).await?;
    say("nothing of the mirror is left");
    let namespace = format!("--namespace={OPERATORS}");
    commands
        .helm(&["uninstall", "registry-mirror", &namespace, "--wait"])
        .await?;
    let left = [
        "get",
        "deployments,pods,services,serviceaccounts",
        &namespace,
        "-o",
        "name",
    ];
    let is_default = |name: &str| name == "serviceaccount/default";
    let gone = async || {
        let names = commands.ask(&left).await.ok()?;
        names.lines().all(is_default).then_some(())
    };
    wait::until("end of what the chart installed", SOON, gone).await?;
    say("nothing of the operator is left, but the definition of RegistryMirror, which the chart keeps");
    Ok(())
}

async fn nothing(commands: &Commands, left: &[&str]) -> Result<(), Box<dyn Error>> {
    let gone = async || {
        commands
            .ask(left)
            .await
            .is_ok_and(|names| names.is_empty())
            .then_some(())
    };
    Ok(wait::until("end of the mirror's objects", SOON, gone).await?)
}
