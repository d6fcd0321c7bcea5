//! Finished spans, as values. Stage and Gateway make them; the binary exports them. Neither side knows the other's library.

use crate::message::TraceContext;

/// One finished span. Times are microseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanRecord {
    pub context: TraceContext,
    pub parent: Option<[u8; 8]>,
    /// Other traces that the same work served: a batch is one span.
    pub links: Vec<TraceContext>,
    pub name: String,
    pub kind: SpanKind,
    pub start_us: u64,
    pub end_us: u64,
    pub attributes: Vec<(&'static str, String)>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    Server,
    Consumer,
}

/// Takes finished spans. Must not block: a full queue drops and counts.
pub trait SpanSink: Send + Sync + 'static {
    fn record(&self, span: SpanRecord);
}

/// Spans go nowhere.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoSpans;

impl SpanSink for NoSpans {
    fn record(&self, _: SpanRecord) {}
}
