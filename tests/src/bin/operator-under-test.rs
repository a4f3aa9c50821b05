//! The operator's own binaries once more, as cargo tells tests where binaries of their own package are: a link named
//! `kubectl-rmir` is the plugin.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    match Path::new(&program).file_name() {
        Some(name) if name == "kubectl-rmir" => operator::cli::plugin(),
        _ => operator::cli::main(),
    }
}
