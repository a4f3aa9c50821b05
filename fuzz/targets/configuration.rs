//! Fuzzes configuration file and environment.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::configuration(data));
