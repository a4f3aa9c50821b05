//! The kubectl plugin `kubectl rmir`.

use std::process::ExitCode;

fn main() -> ExitCode {
    operator::cli::plugin()
}
