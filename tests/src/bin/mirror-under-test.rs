//! The server's own binary once more, as cargo tells tests where binaries of their own package are.

use std::process::ExitCode;

use mirror::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::read())
}
