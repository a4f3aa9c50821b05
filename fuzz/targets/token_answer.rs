//! Fuzzes answers of token servers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::token_answer(data));
