//! A pull-through OCI registry: one process, many upstreams, one cache.
//!
//! The way of a request, in the order of the modules: `http` → `pull` → `fill` → `origins` → `upstream`, and `store`.
//!
//! A program reads a configuration and runs a server until it is asked to stop:
//!
//! ```no_run
//! use mirror::config::Config;
//! use mirror::config::file::File;
//! use mirror::server;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let file = File::parse("version: 0.1\nproxy:\n  upstreams:\n  - host: quay.io\n")?;
//! server::run(Config::new(&file)?, CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```

pub mod actions;
pub mod admin;
mod block_reader;
pub mod bucket;
pub mod cli;
mod client_address;
mod client_table;
pub mod clock;
pub mod config;
pub mod credential;
pub mod credentials;
pub mod digest;
pub mod expiry;
pub mod file_read;
pub mod file_watch;
mod fill;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod health;
pub mod http;

mod json;
mod ledger;
pub mod logging;
pub mod manifest;
pub mod metrics;
pub mod name;
mod origins;
mod peers;
pub mod pull;
mod pull_error;
mod query;
pub mod range;
mod raw_index;
pub mod request_host;
pub mod secret;
pub mod server;
pub mod store;
pub mod tls;
pub mod traces;
mod transfer_coding;
pub mod upstream;
