//! Spans that wait for the collector: few, and only for as long as there is room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use tracing::{info, warn};

/// Spans under way to the collector. At about a kilobyte each they stay below a few megabytes.
const ROOM: usize = 2_048;

/// The queue before the batches. What finds no room in it is dropped and counted: the batch processor's own queue
/// is as long, and so never full.
#[derive(Debug)]
pub(super) struct Queue {
    batches: BatchSpanProcessor,
    account: Arc<Account>,
}

/// The numbers of sent and of lost spans.
#[derive(Debug, Default)]
struct Account {
    waiting: AtomicUsize,
    lost: AtomicU64,
    losing: AtomicBool,
}

impl Queue {
    pub(super) fn to(exporter: impl SpanExporter + 'static) -> Self {
        let account = Arc::new(Account::default());
        let exporter = Counted {
            exporter,
            account: Arc::clone(&account),
        };
        let config = BatchConfigBuilder::default().with_max_queue_size(ROOM).build();
        let batches = BatchSpanProcessor::builder(exporter)
            .with_batch_config(config)
            .build();
        Self { batches, account }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.account.waiting.fetch_add(1, Ordering::Relaxed) < ROOM {
            self.batches.on_end(span);
        } else {
            self.account.gone(1);
            self.account.lose(1, "they are more than the collector takes");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let ended = self.batches.shutdown_with_timeout(timeout);
        let unsent = self.account.waiting.load(Ordering::Relaxed);
        let lost = self.account.lost.load(Ordering::Relaxed) + unsent as u64;
        if lost > 0 {
            info!(lost, "spans that no collector took");
        }
        ended
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

impl Account {
    fn gone(&self, spans: usize) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Says so once, until the collector takes spans again.
    fn lose(&self, spans: usize, why: &str) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
        if !self.losing.swap(true, Ordering::Relaxed) {
            warn!(
                why,
                "spans are lost; no more is said until the collector takes some"
            );
        }
    }

    fn took(&self) {
        if self.losing.swap(false, Ordering::Relaxed) {
            let lost = self.lost.load(Ordering::Relaxed);
            info!(lost, "the collector takes spans again");
        }
    }
}

/// The exporter, and what becomes of what it is given.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    account: Arc<Account>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.account.gone(spans);
        match &result {
            Ok(()) => self.account.took(),
            Err(error) => self.account.lose(spans, &error.to_string()),
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
