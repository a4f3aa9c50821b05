//! The environment of tests: a real Kubernetes control plane, a kubelet for machines without root, real registries, and
//! generated images. All servers listen on loopback addresses only, and end with the test.

pub mod audit;
pub mod binaries;
pub mod browser;
pub mod bucket;
pub mod control_plane;
pub mod fake_agent;
pub mod fake_kubelet;
pub mod faults;
pub mod image;
pub mod node;
pub mod pki;
pub mod podman;
pub mod process;
pub mod prometheus;
pub mod registry;
mod reverse_proxy;
pub mod scratch;
pub mod skopeo;
pub mod tls_listener;
pub mod upstream;
pub mod wait;

pub use control_plane::ControlPlane;
pub use fake_kubelet::FakeKubelet;
pub use node::Node;
pub use upstream::Upstream;

/// Makes aws-lc-rs the TLS provider of the process, like the programs under test; later calls change nothing.
pub fn install_crypto_provider() {
    // It fails only where one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
