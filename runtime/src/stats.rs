//! What stages tell about themselves, as Prometheus metrics; `describe` reads the same numbers.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use skep_model::env::Clock;
use skep_model::scope::TopicId;
use skep_stage::{BatchReport, Observer, StageState};
use skep_topic::Counters;

use crate::logs::LogKeep;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    tenant: String,
    swarm: String,
    stage: String,
}

impl StageLabels {
    fn of(topic: &TopicId) -> Self {
        Self {
            tenant: topic.swarm().tenant().to_string(),
            swarm: topic.swarm().name().to_string(),
            stage: topic.stage().to_string(),
        }
    }
}

/// One stage's numbers since this node started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageNumbers {
    pub processed: u64,
    pub failed: u64,
    pub batches: u64,
    pub busy_us: u64,
    /// The worst of its partitions and its lane, and how many of them do not run.
    pub state: Option<StageState>,
    pub held_up: usize,
    pub last_error: Option<String>,
}

/// The stage's handles, looked up once: a label look-up a batch would hash three strings each time.
#[derive(Clone)]
struct Handles {
    processed: Counter,
    failed: Counter,
    dead: Counter,
    batches: Counter,
    busy_us: Counter,
    batch_seconds: Histogram,
}

#[derive(Default)]
struct PerStage {
    handles: Option<Handles>,
    /// By partition, `None` for the lane: one that runs must not hide one that does not. Only those that do not are kept.
    held_up: BTreeMap<Option<u16>, StageState>,
    last_error: Option<String>,
}

impl PerStage {
    fn worst(&self) -> Option<&StageState> {
        self.held_up.values().max_by_key(|state| match state {
            StageState::Running => 0,
            StageState::Paused { .. } => 1,
            StageState::Troubled { .. } => 2,
        })
    }
}

pub struct Stats {
    clock: Arc<dyn Clock>,
    pub logs: Arc<LogKeep>,
    registry: Mutex<Registry>,
    processed: Family<StageLabels, Counter>,
    failed: Family<StageLabels, Counter>,
    dead: Family<StageLabels, Counter>,
    batches: Family<StageLabels, Counter>,
    busy_us: Family<StageLabels, Counter>,
    batch_seconds: Family<StageLabels, Histogram, fn() -> Histogram>,
    unread: Family<StageLabels, Gauge>,
    parked: Family<StageLabels, Gauge>,
    dead_now: Family<StageLabels, Gauge>,
    commits: Gauge,
    publishes: Gauge,
    flushes: Gauge,
    late: Gauge,
    stages: Mutex<HashMap<TopicId, PerStage>>,
}

impl Stats {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, logs: Arc<LogKeep>) -> Self {
        fn histogram() -> Histogram {
            Histogram::new(exponential_buckets(0.000_025, 2.0, 20))
        }
        let stats = Self {
            clock,
            logs,
            registry: Mutex::new(Registry::with_prefix("skep")),
            processed: Family::default(),
            failed: Family::default(),
            dead: Family::default(),
            batches: Family::default(),
            busy_us: Family::default(),
            batch_seconds: Family::new_with_constructor(histogram),
            unread: Family::default(),
            parked: Family::default(),
            dead_now: Family::default(),
            commits: Gauge::default(),
            publishes: Gauge::default(),
            flushes: Gauge::default(),
            late: Gauge::default(),
            stages: Mutex::default(),
        };
        {
            let mut r = stats.registry.lock().unwrap_or_else(PoisonError::into_inner);
            r.register("stage_inputs", "Inputs that Bees processed", stats.processed.clone());
            r.register("stage_failed_attempts", "Attempts that failed", stats.failed.clone());
            r.register("stage_dead_letters", "Messages dead-lettered", stats.dead.clone());
            r.register("stage_batches", "Batches", stats.batches.clone());
            r.register("stage_busy_microseconds", "Time in batches", stats.busy_us.clone());
            r.register_with_unit(
                "stage_batch",
                "Time of a batch",
                Unit::Seconds,
                stats.batch_seconds.clone(),
            );
            r.register("topic_unread", "Unread messages", stats.unread.clone());
            r.register("topic_parked", "Messages waiting for a retry", stats.parked.clone());
            r.register("topic_dead_letters", "Dead letters kept", stats.dead_now.clone());
            r.register("backend_commits", "Commits since start", stats.commits.clone());
            r.register(
                "backend_publishes",
                "Publish calls since start",
                stats.publishes.clone(),
            );
            r.register("backend_flushes", "Flushes to disk since start", stats.flushes.clone());
            r.register(
                "responses_late",
                "Responses since start that found no caller: it had one, or was gone",
                stats.late.clone(),
            );
        }
        stats
    }

    /// Adds what is read when somebody asks.
    pub fn collect(&self, collector: Box<dyn Collector>) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(collector);
    }

    fn handles(&self, topic: &TopicId, per: &mut PerStage) -> Handles {
        per.handles
            .get_or_insert_with(|| {
                let labels = StageLabels::of(topic);
                Handles {
                    processed: self.processed.get_or_create_owned(&labels),
                    failed: self.failed.get_or_create_owned(&labels),
                    dead: self.dead.get_or_create_owned(&labels),
                    batches: self.batches.get_or_create_owned(&labels),
                    busy_us: self.busy_us.get_or_create_owned(&labels),
                    batch_seconds: self.batch_seconds.get_or_create_owned(&labels),
                }
            })
            .clone()
    }

    #[must_use]
    pub fn numbers(&self, topic: &TopicId) -> StageNumbers {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(per) = stages.get(topic) else {
            return StageNumbers::default();
        };
        let handles = per.handles.as_ref();
        StageNumbers {
            processed: handles.map_or(0, |h| h.processed.get()),
            failed: handles.map_or(0, |h| h.failed.get()),
            batches: handles.map_or(0, |h| h.batches.get()),
            busy_us: handles.map_or(0, |h| h.busy_us.get()),
            state: per.worst().cloned(),
            held_up: per.held_up.len(),
            last_error: per.last_error.clone(),
        }
    }

    /// A stage is gone: its log and its numbers too, unless another life of its Swarm counts under the same labels.
    pub fn forget(&self, topic: &TopicId) {
        self.logs.forget(topic);
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.remove(topic);
        let labels = StageLabels::of(topic);
        if stages.keys().any(|other| StageLabels::of(other) == labels) {
            return;
        }
        self.processed.remove(&labels);
        self.failed.remove(&labels);
        self.dead.remove(&labels);
        self.batches.remove(&labels);
        self.busy_us.remove(&labels);
        self.batch_seconds.remove(&labels);
        self.unread.remove(&labels);
        self.parked.remove(&labels);
        self.dead_now.remove(&labels);
    }

    /// Prometheus text, with the gauges as of now.
    #[must_use]
    pub fn text(&self, backend: Counters, late: u64, topics: &[skep_topic::TopicStatus]) -> String {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for topic in topics {
            let labels = StageLabels::of(&topic.topic);
            self.unread.get_or_create(&labels).set(gauge(topic.unread));
            self.parked.get_or_create(&labels).set(gauge(topic.parked));
            self.dead_now.get_or_create(&labels).set(gauge(topic.dead));
        }
        self.commits.set(gauge(backend.commits));
        self.publishes.set(gauge(backend.publishes));
        self.flushes.set(gauge(backend.flushes));
        self.late.set(gauge(late));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = prometheus_client::encoding::text::encode(&mut text, &registry) {
            let _ = writeln!(text, "# encoding failed: {e}");
        }
        text
    }
}

impl Observer for Stats {
    fn batch(&self, topic: &TopicId, report: BatchReport<'_>) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let per = match stages.get_mut(topic) {
            Some(per) => per,
            None => stages.entry(topic.clone()).or_default(),
        };
        let handles = self.handles(topic, per);
        if let Some(error) = report.error {
            per.last_error = Some(error.to_owned());
        }
        drop(stages);
        handles.processed.inc_by(report.inputs as u64);
        handles.failed.inc_by(report.failed as u64);
        handles.dead.inc_by(report.dead as u64);
        handles.batches.inc();
        handles
            .busy_us
            .inc_by(u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX));
        handles.batch_seconds.observe(report.took.as_secs_f64());
        self.logs.keep(topic, self.clock.now_ms(), report.log);
    }

    fn state(&self, topic: &TopicId, partition: Option<u16>, state: StageState) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let held_up = &mut stages.entry(topic.clone()).or_default().held_up;
        if state == StageState::Running {
            held_up.remove(&partition);
        } else {
            held_up.insert(partition, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_model::env::SystemClock;
    use skep_model::id::Incarnation;
    use skep_model::name::TenantId;
    use skep_model::scope::Scope;

    use super::*;

    #[test]
    fn a_partition_that_runs_does_not_hide_one_that_does_not() {
        let stats = Stats::new(Arc::new(SystemClock), Arc::default());
        let swarm = Scope::of(TenantId::default_tenant()).swarm(&"s".parse().unwrap(), Incarnation([0; 16]));
        let topic = swarm.topic(&"a".parse().unwrap());
        let paused = StageState::Paused { why: "full".into() };
        let troubled = StageState::Troubled { why: "down".into() };
        stats.state(&topic, Some(1), paused.clone());
        stats.state(&topic, Some(2), StageState::Running);
        assert_eq!(stats.numbers(&topic).state, Some(paused.clone()));
        stats.state(&topic, Some(3), troubled.clone());
        stats.state(&topic, None, paused.clone());
        let now = stats.numbers(&topic);
        assert_eq!((now.state, now.held_up), (Some(troubled), 3));
        stats.state(&topic, Some(3), StageState::Running);
        stats.state(&topic, None, StageState::Running);
        assert_eq!(stats.numbers(&topic).state, Some(paused));
        stats.state(&topic, Some(1), StageState::Running);
        assert_eq!(stats.numbers(&topic).state, None);
    }
}
