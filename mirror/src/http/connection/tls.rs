//! The serving certificate, which the server reads again after a change; open connections keep the previous one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use rustls::server::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;

use super::Stream;
use super::header_meter::HeaderMeter;
use crate::config::http::Tls;
use crate::tls::{self, ClientVerifier, TlsError};

/// The encrypted bytes of a connection that wait for the client, and the plain ones before the handshake ends: two
/// records of TLS.
const SEND_BUFFER: usize = 32 * 1024;

/// The certificate in force.
pub struct Certificates {
    settings: Tls,
    http2: bool,
    current: ArcSwap<LoadedCertificate>,
}

/// A certificate that was read, as connections use it.
struct LoadedCertificate {
    config: Arc<ServerConfig>,
    /// The end of its validity, in seconds since 1970.
    not_after: Option<i64>,
}

impl Certificates {
    /// Loads the files.
    pub fn load(settings: Tls, http2: bool) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(read(&settings, http2)?);
        Ok(Self {
            settings,
            http2,
            current,
        })
    }

    /// Loads the files again. After an error the previous certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(read(&self.settings, self.http2)?));
        Ok(())
    }

    /// Returns an acceptor for a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.load().config))
    }

    /// Returns the end of the validity of the certificate in force, in seconds since 1970.
    pub fn not_after(&self) -> Option<i64> {
        self.current.load().not_after
    }
}

/// Performs the TLS handshake. Returns the stream inside TLS, and `true` if ALPN selected HTTP/2.
pub(super) async fn accept(
    stream: Box<dyn Stream>,
    tls: Arc<Certificates>,
    meter: HeaderMeter,
) -> io::Result<(Box<dyn Stream>, bool)> {
    let handshake = Handshake {
        stream,
        meter: Some(meter),
    };
    let mut stream = tls.acceptor().accept(handshake).await?;
    let (handshake, session) = stream.get_mut();
    handshake.meter = None;
    session.set_buffer_limit(Some(SEND_BUFFER));
    let http2 = session.alpn_protocol() == Some(b"h2");
    Ok((Box::new(stream), http2))
}

/// A client's stream that counts what the client sends until the handshake is complete.
struct Handshake {
    stream: Box<dyn Stream>,
    meter: Option<HeaderMeter>,
}

impl AsyncRead for Handshake {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let is_counted = |meter: &mut HeaderMeter| meter.record(&buffer.filled()[before..], 0, false);
        if self.meter.as_mut().is_none_or(is_counted) {
            return Poll::Ready(Ok(()));
        }
        let error = "the client's address has too many unfinished handshakes";
        Poll::Ready(Err(io::Error::other(error)))
    }
}

impl AsyncWrite for Handshake {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn read(settings: &Tls, http2: bool) -> Result<LoadedCertificate, TlsError> {
    let section = settings.section;
    let certified = tls::key_pair(section, &settings.certificate, &settings.key)?;
    let not_after = certified.cert.first().and_then(tls::not_after);
    let versions: &[_] = if settings.only_tls13 {
        &[&rustls::version::TLS13]
    } else {
        rustls::ALL_VERSIONS
    };
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Unfit {
            section,
            path: settings.certificate.clone(),
            reason: error.to_string(),
        })?;
    let builder = match verifier(settings)? {
        Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = tls::alpn_protocols(http2);
    Ok(LoadedCertificate {
        config: Arc::new(config),
        not_after,
    })
}

fn verifier(settings: &Tls) -> Result<Option<ClientVerifier>, TlsError> {
    let Some(first) = settings.client_cas.first() else {
        return Ok(None);
    };
    let trusted = tls::authorities(settings.section, &settings.client_cas)?;
    ClientVerifier::new(trusted, settings.client_optional)
        .map(Some)
        .map_err(|error| TlsError::File {
            section: settings.section,
            path: first.clone(),
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn files(directory: &std::path::Path) -> Tls {
        let issued = rcgen::generate_simple_self_signed(["mirror.test".into()]).unwrap();
        let tls = Tls {
            section: "http.tls",
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            client_cas: Vec::new(),
            client_optional: false,
            only_tls13: true,
        };
        fs::write(&tls.certificate, issued.cert.pem()).unwrap();
        fs::write(&tls.key, issued.signing_key.serialize_pem()).unwrap();
        tls
    }

    #[test]
    fn broken_renewal_keeps_previous_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let settings = files(directory.path());
        let certificates = Certificates::load(settings.clone(), true).unwrap();
        let before = certificates.current.load_full();
        fs::write(&settings.certificate, "not PEM").unwrap();
        assert!(matches!(certificates.reload(), Err(TlsError::File { .. })));
        assert!(Arc::ptr_eq(&before, &certificates.current.load_full()));
        files(directory.path());
        certificates.reload().unwrap();
        // The year in which certificates of rcgen end by default.
        assert!(certificates.not_after().unwrap() > 64_000_000_000);
        assert!(!Arc::ptr_eq(&before, &certificates.current.load_full()));
    }

    /// A key that does not belong to the certificate is refused.
    #[test]
    fn key_of_other_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let settings = files(directory.path());
        let other = rcgen::KeyPair::generate().unwrap();
        fs::write(&settings.key, other.serialize_pem()).unwrap();
        assert!(matches!(
            Certificates::load(settings, false),
            Err(TlsError::Unfit { .. })
        ));
    }
}
