//! Fuzzes path and query of a client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::request(data));
