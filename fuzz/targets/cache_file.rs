//! Fuzzes the small files of a cache directory: links, the name of the default upstream, uploads, rows of the index.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mirror::fuzzing::cache_file(data));
