//! Fuzzes pages of referrers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::referrers(data));
