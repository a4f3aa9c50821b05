//! Fuzzes lists of tags.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::tag_list(data));
