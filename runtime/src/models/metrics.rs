//! What is counted of models, for the metrics page.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use skep_inference::Shelf;
use skep_inference::batch::{Counts, Reading};

/// Reads the shelf when somebody asks. Models are labelled by the first twelve digits of their digest, as `skep model list` shows them.
#[derive(Debug)]
pub struct ModelMetrics(pub Arc<Shelf>);

/// One name, and what it is of each model.
type Counter = (&'static str, &'static str, fn(&Reading) -> u64);
type Histogram = (&'static str, &'static str, Option<Unit>, fn(&Reading) -> &Counts, f64);

const COUNTERS: [Counter; 5] = [
    ("model_calls", "Calls of a model whose inputs fitted", |r| r.calls),
    ("model_runs", "Runs of a model: each answers one call or several", |r| {
        r.runs
    }),
    ("model_failed", "Calls that the model failed", |r| r.failed),
    ("model_expired", "Calls whose deadline passed while they waited", |r| {
        r.expired
    }),
    ("model_busy", "Calls that found too many waiting", |r| r.busy),
];

fn histograms() -> [Histogram; 3] {
    [
        ("model_run_rows", "Rows of each run", None, |r| &r.run_rows, 1.0),
        (
            "model_run",
            "How long a run took",
            Some(Unit::Seconds),
            |r| &r.run_us,
            1e-6,
        ),
        (
            "model_queue",
            "How long a call waited for its run",
            Some(Unit::Seconds),
            |r| &r.queue_us,
            1e-6,
        ),
    ]
}

impl Collector for ModelMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts of microseconds stay far under 2^52")]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shelf = self.0.stats();
        let label = |digest: skep_model::id::Digest| [("model", digest.to_hex()[..12].to_owned())];
        let gauges = [
            ("models_memory", "Memory of the models that are loaded", shelf.bytes),
            (
                "models_memory_limit",
                "Memory that models may have together",
                shelf.budget_bytes,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?)?;
        }
        let totals = [
            ("models_loads", "Models that were loaded", shelf.loads),
            ("models_evictions", "Models that went to make room", shelf.evictions),
            ("models_load_failures", "Loads that failed", shelf.failures),
        ];
        for (name, help, value) in totals {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        if shelf.models.is_empty() {
            return Ok(());
        }
        for (name, help, read) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for model in &shelf.models {
                let labels = label(model.digest);
                ConstCounter::new(read(&model.calls)).encode(metric.encode_family(&labels)?)?;
            }
        }
        for (name, help, unit, read, scale) in histograms() {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Histogram)?;
            for model in &shelf.models {
                let (labels, counts) = (label(model.digest), read(&model.calls));
                let ends = counts.ends.iter().map(|end| *end as f64 * scale).chain([f64::MAX]);
                let buckets: Vec<(f64, u64)> = ends.zip(counts.counts.iter().copied()).collect();
                let (sum, count) = (counts.sum as f64 * scale, counts.counts.iter().sum());
                metric
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
