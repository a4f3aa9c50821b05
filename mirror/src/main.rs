//! `mirror`.
fn main() {}
