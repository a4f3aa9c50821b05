//! Fuzzes `Link` of an upstream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::link(data));
