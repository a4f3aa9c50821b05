//! Bodies with a JSON value on each line.

use bytes::BytesMut;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::server::Body;
use crate::cli::Failure;

/// The maximum length of a line.
const MAX_LINE: usize = 64 << 10;

/// Calls `visit` for each line of a body.
///
/// # Errors
/// The body is cut, or a line is not what is expected.
pub(super) async fn each_line<T: DeserializeOwned>(
    server: &str,
    mut body: Body,
    mut visit: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |reason: String| Failure::Environment(format!("{server}: {reason}"));
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failed(format!("response cut: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        buffer.extend_from_slice(data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let value = serde_json::from_slice(&line);
            visit(value.map_err(|error| failed(format!("unexpected response: {error}")))?)?;
        }
        if buffer.len() > MAX_LINE {
            return Err(failed(format!("a line is longer than {MAX_LINE} bytes")));
        }
    }
    Ok(())
}
