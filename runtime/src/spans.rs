//! Finished spans, out over OTLP. Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _};
use skep_model::message::TraceContext;
use skep_model::span::{SpanKind, SpanRecord, SpanSink};

/// Hands spans to the SDK's batch processor, whose queue is bounded (2,048) and drops what does not fit.
#[derive(Debug)]
pub struct OtlpSpans {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl OtlpSpans {
    /// # Errors
    /// When the endpoint is not a URL. An endpoint that does not answer is no error: spans are dropped, work goes on.
    pub fn from_env() -> anyhow::Result<Option<Self>> {
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none()
            && std::env::var_os("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_none()
        {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_tonic()
            .build()
            .context("OTEL_EXPORTER_OTLP_ENDPOINT: cannot make an exporter for it")?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let resource = Resource::builder()
            .with_service_name(std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "skep".to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        processor.set_resource(&resource);
        Ok(Some(Self {
            processor,
            scope: InstrumentationScope::builder("skep").build(),
        }))
    }

    /// Sends what is queued and stops.
    pub fn shutdown(&self) {
        if let Err(e) = self.processor.shutdown_with_timeout(Duration::from_secs(2)) {
            tracing::debug!(error = %e, "spans were not all exported");
        }
    }
}

impl SpanSink for OtlpSpans {
    fn record(&self, span: SpanRecord) {
        let mut links = SpanLinks::default();
        links.links = span.links.iter().map(|l| Link::with_context(context(l))).collect();
        self.processor.on_end(SpanData {
            span_context: context(&span.context),
            parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: true,
            span_kind: match span.kind {
                SpanKind::Server => OtelKind::Server,
                SpanKind::Consumer => OtelKind::Consumer,
            },
            name: span.name.into(),
            start_time: time(span.start_us),
            end_time: time(span.end_us),
            attributes: span.attributes.into_iter().map(|(k, v)| KeyValue::new(k, v)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }
}

fn context(c: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(c.trace_id),
        SpanId::from_bytes(c.span_id),
        if c.sampled {
            TraceFlags::SAMPLED
        } else {
            TraceFlags::default()
        },
        true,
        TraceState::default(),
    )
}

fn time(us: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(us)
}
