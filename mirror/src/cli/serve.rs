//! `mirror serve`: the server, its signals, and its configuration as it changes.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{CliError, Configuration, Started};
use crate::config::log::Level;
use crate::config::{self, Notice};
use crate::file_watch::FileWatch;
use crate::logging::{self, LevelHandle};
use crate::server::{Reloader, Server};
use crate::traces::Traces;

/// Serves until SIGTERM or SIGINT.
pub(super) async fn serve(configuration: Configuration) -> Result<(), CliError> {
    let (files, started) = read_to_start(configuration.clone()).await?;
    let (config, notices, refused) = started?;
    let traces = Traces::from_environment();
    let (level, _rest) = logging::start(&config.log, traces.as_ref().ok().and_then(Option::as_ref))
        .map_err(io::Error::other)?;
    let traces = traces.unwrap_or_else(|error| {
        // Pulls matter more than traces of them.
        warn!(%error, "there are no traces");
        None
    });
    log_notices(&notices);
    let (mut end, hangup) = (EndSignals::new()?, signal(SignalKind::hangup())?);
    // Caught, so that a write beyond the limit of file sizes (`ulimit -f`) is an error in place of the end of the process.
    let _file_size = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?;
    let server = tokio::select! {
        server = Server::start(config) => server?,
        // Also while a disk does not answer.
        () = end.received() => return Ok(()),
    };
    let reloader = server.reloader();
    if let Some(error) = refused {
        reloader.refused(&error);
    }
    let shutdown = CancellationToken::new();
    let follow = follow(configuration, files, reloader, level, hangup);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = end.received() => {}
            () = follow => {}
        }
        stop.cancel();
    });
    let result = server.run(shutdown).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    Ok(result?)
}

/// Stamps and loads the configuration, on a thread that may block.
async fn read_to_start(
    configuration: Configuration,
) -> io::Result<(FileWatch, Result<Started, config::Error>)> {
    let read = move || {
        // Stamped before it is read, so that no edit falls in between.
        let files = FileWatch::new(configuration.path.iter().cloned().collect());
        (files, configuration.load_to_start())
    };
    Ok(tokio::task::spawn_blocking(read).await?)
}

/// The signals that end the server.
struct EndSignals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl EndSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of the signals, and logs it.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM: no new requests, those in flight may end"),
            _ = self.interrupt.recv() => info!("SIGINT: no new requests, those in flight may end"),
        }
    }
}

fn log_notices(notices: &[Notice]) {
    for Notice { key, message, level } in notices {
        match level {
            Level::Error | Level::Warn => warn!(key, "{message}"),
            Level::Info | Level::Debug => debug!(key, "{message}"),
        }
    }
}

/// Reads the configuration again on SIGHUP and when its file changed, for as long as it is asked.
async fn follow(
    configuration: Configuration,
    mut files: FileWatch,
    reloader: Reloader,
    level: LevelHandle,
    mut hangup: unix::Signal,
) {
    loop {
        tokio::select! {
            _ = hangup.recv() => info!("SIGHUP: reading the configuration again"),
            () = files.changed() => info!("the configuration file changed"),
        }
        let current = configuration.clone();
        match tokio::task::spawn_blocking(move || current.load()).await {
            Ok(Ok((config, notices))) => {
                log_notices(&notices);
                level.set(&config.log);
                reloader.reload(config).await;
            }
            Ok(Err(error)) => reloader.refused(&error),
            Err(error) => reloader.refused(&error),
        }
    }
}
