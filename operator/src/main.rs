//! `registry-mirror`.
fn main() {}
