//! The registry that is mirrored, with an image in it.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use testbed::Upstream;
use testbed::image::{Layout, Random};
use testbed::pki::Leaf;
use testbed::scratch::Scratch;
use testbed::upstream::{Access, Options};
use tokio::net::{TcpListener, TcpStream};

use crate::example::Example;
use crate::pulls::{IMAGE, TAG};
use crate::say;

/// The layers of each platform.
const LAYERS: [usize; 3] = [4 << 20, 1 << 20, 64 << 10];
/// The lifetime of the registry's tokens.
const TOKEN: Duration = Duration::from_mins(5);

/// Starts it on a free port of 127.0.0.1, with TLS where there is a certificate.
pub(crate) async fn start(
    example: &Example,
    tls: Option<Leaf>,
    scratch: &Scratch,
) -> Result<(Upstream, Layout), Box<dyn Error>> {
    say("starting docker-registry; a client needs a token, for a user name and a password");
    let (user, password) = example.user()?;
    let mut options = Options::protected(Access::Bearer(TOKEN), (&user, &password));
    options.tls = tls;
    let upstream = Upstream::start(options).await?;
    let image = Random::new(1, &LAYERS).write(&scratch.path().join("image"), TAG)?;
    upstream.push(&image, TAG, IMAGE).await?;
    let digest = image.digest(TAG).unwrap_or_default();
    say(&format!(
        "pushed {IMAGE}: two platforms of {} layers, {digest}",
        LAYERS.len()
    ));
    Ok((upstream, image))
}

/// Lets it be reached at another address of this machine, as Pods have a loopback of their own.
pub(crate) async fn publish(upstream: &Upstream, at: Ipv4Addr) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = TcpListener::bind((at, 0)).await?;
    let (published, to) = (listener.local_addr()?, upstream.address());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut registry) = TcpStream::connect(to).await {
                    // Both ends see for themselves when the other is gone.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut registry).await;
                }
            });
        }
    });
    Ok(published)
}
