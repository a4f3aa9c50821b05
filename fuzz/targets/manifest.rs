//! Fuzzes manifests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::manifest(data));
