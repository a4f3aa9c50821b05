//! The bytes of headers that clients have begun and not ended, counted against the memory of their address.

use std::sync::Arc;

use super::client_memory::{ClientMemory, Permit};
use super::protocols::{MAX_HEADER_BYTES, PREFACE};

/// The bytes of a header that are not counted: a connection has a buffer of this size anyway.
const FREE: usize = 8 * 1024;
/// The step in which memory is taken.
const STEP: usize = 8 * 1024;
/// The length of the header of an HTTP/2 frame (RFC 9113, 4.1).
const FRAME_HEADER: usize = 9;
/// The types of the frames that carry headers (RFC 9113, 6.2 and 6.10).
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// The flag of the frame that ends a header.
const END_HEADERS: u8 = 4;

/// A meter of the unfinished header of one connection.
pub(super) struct HeaderMeter {
    client: Arc<ClientMemory>,
    protocol: Protocol,
    held: Vec<Permit>,
}

enum Protocol {
    /// Bytes before the first request of HTTP, as of a TLS handshake.
    Handshake(usize),
    Http1 {
        /// The bytes since the last request, and the number of that request.
        bytes: usize,
        request: u32,
    },
    /// The bytes of the connection preface, and then of frames; a client with another first byte speaks HTTP/1.
    Http2(Frames),
}

impl HeaderMeter {
    /// Returns the meter of a TLS handshake.
    pub(super) fn handshake(client: Arc<ClientMemory>) -> Self {
        Self::new(client, Protocol::Handshake(0))
    }

    /// Returns the meter of a connection on which HTTP starts.
    pub(super) fn http(client: Arc<ClientMemory>, may_be_http2: bool) -> Self {
        let protocol = if may_be_http2 {
            Protocol::Http2(Frames::default())
        } else {
            Protocol::Http1 { bytes: 0, request: 0 }
        };
        Self::new(client, protocol)
    }

    fn new(client: Arc<ClientMemory>, protocol: Protocol) -> Self {
        let held = Vec::new();
        Self {
            client,
            protocol,
            held,
        }
    }

    /// Counts bytes from the client, which has sent `requests` complete headers; `is_active` while the server answers
    /// one. Returns `false` if there is no memory for them.
    #[must_use]
    pub(super) fn record(&mut self, bytes: &[u8], requests: u32, is_active: bool) -> bool {
        if let Protocol::Http2(frames) = &self.protocol
            && !frames.may_continue(bytes)
        {
            let bytes = frames.preface;
            self.protocol = Protocol::Http1 { bytes, request: 0 };
        }
        let unfinished = match &mut self.protocol {
            Protocol::Handshake(count) => {
                *count += bytes.len();
                *count
            }
            Protocol::Http1 {
                bytes: count,
                request,
            } => {
                if *request != requests {
                    (*count, *request) = (0, requests);
                }
                // The header of a request is in memory until the request is over.
                if *count == 0 && !is_active {
                    self.held.clear();
                }
                *count += bytes.len();
                *count
            }
            Protocol::Http2(frames) => {
                frames.record(bytes);
                frames.unfinished()
            }
        };
        self.hold(unfinished)
    }

    /// Takes memory for a header of so many bytes. Buffers grow to twice of what they have.
    fn hold(&mut self, unfinished: usize) -> bool {
        let beyond = unfinished.min(MAX_HEADER_BYTES).saturating_sub(FREE);
        let steps = (2 * beyond).div_ceil(STEP);
        if steps == 0 && matches!(self.protocol, Protocol::Http2(_)) {
            self.held.clear();
        }
        while self.held.len() < steps {
            let Some(permit) = self.client.try_header(STEP) else {
                return false;
            };
            self.held.push(permit);
        }
        true
    }
}

/// The frames of an HTTP/2 client, as far as their bytes came.
#[derive(Default)]
struct Frames {
    /// The bytes of the preface that came.
    preface: usize,
    header: [u8; FRAME_HEADER],
    header_length: usize,
    /// The bytes of the current frame that are yet to come.
    left: usize,
    /// The bytes of the current frame that came.
    frame: usize,
    /// The bytes of the current header in earlier frames.
    block: usize,
}

impl Frames {
    /// Returns `true` if these bytes may follow in an HTTP/2 connection.
    fn may_continue(&self, bytes: &[u8]) -> bool {
        let expected = &PREFACE[self.preface..];
        let common = expected.len().min(bytes.len());
        expected[..common] == bytes[..common]
    }

    fn record(&mut self, mut bytes: &[u8]) {
        let preface = (PREFACE.len() - self.preface).min(bytes.len());
        self.preface += preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.header_length < FRAME_HEADER {
                self.header[self.header_length] = bytes[0];
                self.header_length += 1;
                bytes = &bytes[1..];
                if self.header_length == FRAME_HEADER {
                    let [high, middle, low, ..] = self.header;
                    self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                    self.frame = 0;
                }
            }
            let payload = self.left.min(bytes.len());
            if self.header_length == FRAME_HEADER {
                self.left -= payload;
                self.frame += payload;
                bytes = &bytes[payload..];
                self.end_frame();
            }
        }
    }

    /// Begins the next frame if the current one is complete.
    fn end_frame(&mut self) {
        if self.left > 0 {
            return;
        }
        let (kind, flags) = (self.header[3], self.header[4]);
        let is_header = matches!(kind, HEADERS | CONTINUATION);
        self.block = if is_header && flags & END_HEADERS == 0 {
            self.block.saturating_add(self.frame)
        } else {
            0
        };
        (self.header_length, self.frame) = (0, 0);
    }

    fn unfinished(&self) -> usize {
        self.block.saturating_add(self.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::super::client_memory::Memory;
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [.., high, middle, low] = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER + length, 0);
        frame
    }

    fn meter(may_be_http2: bool) -> HeaderMeter {
        HeaderMeter::http(Arc::new(Memory::default().client()), may_be_http2)
    }

    /// The memory for a header is held until its request is over, and that of a short one is free.
    #[test]
    fn header_is_held_until_its_request_ends() {
        let mut meter = meter(false);
        assert!(meter.record(&[b'x'; FREE], 0, false));
        assert_eq!(meter.held.len(), 0);
        assert!(meter.record(&[b'x'; FREE], 0, false));
        assert_eq!(meter.held.len(), 2);
        assert!(meter.record(&[], 1, true));
        assert_eq!(meter.held.len(), 2);
        assert!(meter.record(b"GET", 1, false));
        assert_eq!(meter.held.len(), 0);
    }

    /// Connections of one address with long headers are refused beyond its share.
    #[test]
    fn headers_beyond_the_share_are_refused() {
        for may_be_http2 in [false, true] {
            let client = Arc::new(Memory::default().client());
            let mut begun = [
                PREFACE,
                &frame(HEADERS, 0, 16 * 1024),
                &frame(CONTINUATION, 0, 8 * 1024),
            ]
            .concat();
            if !may_be_http2 {
                begun = vec![b'x'; begun.len()];
            }
            let mut meters = Vec::new();
            let refused = loop {
                let mut meter = HeaderMeter::http(Arc::clone(&client), may_be_http2);
                if !meter.record(&begun, 0, false) {
                    break meters.len();
                }
                meters.push(meter);
            };
            assert!((40..100).contains(&refused), "{refused}");
            meters.pop();
            assert!(HeaderMeter::http(client, may_be_http2).record(&begun, 0, false));
        }
    }

    #[test]
    fn http1_client_is_recognized_by_its_first_bytes() {
        let mut meter = meter(true);
        assert!(meter.record(b"P", 0, false));
        assert!(meter.record(b"UT /", 0, false));
        assert!(matches!(meter.protocol, Protocol::Http1 { bytes: 5, .. }));
    }

    proptest! {
        /// Frames are counted the same however their bytes are divided.
        #[test]
        fn frames_are_counted_in_any_division(
            frames in prop::collection::vec((0_u8..12, any::<u8>(), 0_usize..300), 0..8),
            cuts in prop::collection::vec(1_usize..200, 1..20),
        ) {
            let mut bytes = PREFACE.to_vec();
            let mut block = 0;
            for (kind, flags, length) in frames {
                bytes.extend(frame(kind, flags, length));
                let is_open = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
                block = if is_open { block + length } else { 0 };
            }
            let (mut parsed, mut rest, mut cuts) = (Frames::default(), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, more) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                prop_assert!(parsed.may_continue(part));
                parsed.record(part);
                rest = more;
            }
            prop_assert_eq!(parsed.unfinished(), block);
        }
    }
}
