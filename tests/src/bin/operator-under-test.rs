//! The operator's own binary once more, as cargo tells tests where binaries of their own package are.

use std::process::ExitCode;

fn main() -> ExitCode {
    operator::cli::main()
}
