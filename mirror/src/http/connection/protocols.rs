//! The settings of HTTP/1 and HTTP/2.

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;

use super::timeouts::LIMITS;
use crate::block_reader::BLOCK;

const MAX_HEADERS: usize = 100;
/// The limit of a request header, answered with 431: at 64 KiB at the latest, because hyper checks it between reads, which
/// double in size.
pub(super) const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The connection preface of HTTP/2 (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The streams of a connection at once (RFC 9113, 6.5.2 recommends no less).
const MAX_STREAMS: u32 = 100;
/// The bytes of a request body that an HTTP/2 client may send: the initial window of the protocol. No endpoint reads
/// them.
const REQUEST_WINDOW: u32 = 65_535;

/// Returns the builder of connections: HTTP/1 only, or what the client speaks.
pub(super) fn builder(http2: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if !http2 {
        builder = builder.http1_only();
    }
    builder
        .http1()
        // Its timeout would end idle connections too; see `timeouts`.
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        // Some clients compare header names as text, and know those that Go, and so Distribution, writes.
        .title_case_headers(true)
        // A placeholder of sendfile must reach the stream as it is.
        .writev(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(LIMITS.header)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(REQUEST_WINDOW)
        .initial_connection_window_size(REQUEST_WINDOW)
        .max_send_buf_size(BLOCK)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    builder
}
