//! Fuzzes `scheduler-state.json` of Distribution.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::scheduler_state(data));
