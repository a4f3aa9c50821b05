//! The server's own binary.

use std::process::ExitCode;

use mirror::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::read())
}
