//! What a stage tells about itself. The binary turns it into logs, metrics and traces.

use std::time::Duration;

use skep_model::id::Uid;
use skep_model::scope::TopicId;
use skep_model::step::LogLine;

/// Takes reports. Must not block: it is called between a fetch and its commit.
pub trait Observer: Send + Sync + 'static {
    fn batch(&self, topic: &TopicId, report: BatchReport<'_>);
    /// How one partition of a stage fares; `None`: its in-memory lane.
    fn state(&self, topic: &TopicId, partition: Option<u16>, state: StageState);
}

/// One batch, after its commit (or, on the lane, after its answers).
#[derive(Debug)]
pub struct BatchReport<'a> {
    pub inputs: usize,
    pub done: usize,
    /// Failed attempts, whether they will be tried again or not.
    pub failed: usize,
    pub dead: usize,
    pub took: Duration,
    pub log: &'a [(Option<Uid>, LogLine)],
    /// Of the first failure.
    pub error: Option<&'a str>,
}

/// How a stage fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageState {
    Running,
    /// A destination is full; the batch is kept.
    Paused {
        why: String,
    },
    /// The backend or the engine cannot serve; it tries again.
    Troubled {
        why: String,
    },
}

impl std::fmt::Display for StageState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running => f.write_str("ok"),
            Self::Paused { why } => write!(f, "paused: {why}"),
            Self::Troubled { why } => write!(f, "troubled: {why}"),
        }
    }
}
