//! What Bees said: kept in memory, bounded, a ring a stage, also of dead instances, and tailed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use skep_model::id::Uid;
use skep_model::limits::LOG_BYTES_KEPT_MAX;
use skep_model::name::StageName;
use skep_model::scope::{SwarmId, TopicId};
use skep_model::step::LogLine;
use tokio::sync::broadcast;

/// Lines that a slow follower may lag behind before it is told that it missed some.
const FOLLOW_LINES_MAX: usize = 4_096;
/// What a kept line costs beside its text.
const LINE_OVERHEAD: usize = 96;

#[derive(Debug, Clone)]
pub struct Kept {
    pub at_ms: u64,
    pub topic: TopicId,
    pub message: Option<Uid>,
    pub line: LogLine,
}

/// All Bees' logs on this node.
pub struct LogKeep {
    rings: Mutex<HashMap<TopicId, Ring>>,
    live: broadcast::Sender<Kept>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Kept>,
    bytes: usize,
}

impl Default for LogKeep {
    fn default() -> Self {
        Self {
            rings: Mutex::default(),
            live: broadcast::channel(FOLLOW_LINES_MAX).0,
        }
    }
}

impl LogKeep {
    pub fn keep(&self, topic: &TopicId, at_ms: u64, lines: &[(Option<Uid>, LogLine)]) {
        if lines.is_empty() {
            return;
        }
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = rings.entry(topic.clone()).or_default();
        for (message, line) in lines {
            let kept = Kept {
                at_ms,
                topic: topic.clone(),
                message: *message,
                line: line.clone(),
            };
            ring.bytes += size(&kept);
            // Followers subscribe under this lock, so none is missed. An error only says that the last one left.
            if self.live.receiver_count() > 0 {
                let _ = self.live.send(kept.clone());
            }
            ring.lines.push_back(kept);
            while ring.bytes > LOG_BYTES_KEPT_MAX {
                let Some(oldest) = ring.lines.pop_front() else { break };
                ring.bytes -= size(&oldest);
            }
        }
    }

    /// The last `tail` lines (0: all that are kept) of a Swarm or one of its stages, by time, and what comes from now on.
    #[must_use]
    pub fn read(
        &self,
        swarm: &SwarmId,
        stage: Option<&StageName>,
        tail: usize,
    ) -> (Vec<Kept>, broadcast::Receiver<Kept>) {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no line falls between what is kept and what follows.
        let live = self.live.subscribe();
        let mut lines: Vec<Kept> = rings
            .iter()
            .filter(|(topic, _)| topic.swarm() == swarm && stage.is_none_or(|s| s == topic.stage()))
            .flat_map(|(_, ring)| ring.lines.iter().cloned())
            .collect();
        lines.sort_by_key(|kept| kept.at_ms);
        if tail > 0 && lines.len() > tail {
            lines.drain(..lines.len() - tail);
        }
        (lines, live)
    }

    pub fn forget(&self, topic: &TopicId) {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }
}

fn size(kept: &Kept) -> usize {
    kept.line.text.len() + kept.line.context.len() + LINE_OVERHEAD
}

#[cfg(test)]
mod tests {
    use skep_model::id::Incarnation;
    use skep_model::name::TenantId;
    use skep_model::scope::Scope;
    use skep_model::step::LogLevel;

    use super::*;

    fn line(text: &str) -> (Option<Uid>, LogLine) {
        let line = LogLine {
            level: LogLevel::Info,
            context: String::new(),
            text: text.to_owned(),
            input: None,
        };
        (None, line)
    }

    #[tokio::test]
    async fn a_ring_is_bounded_and_followed_without_a_gap() {
        let swarm = Scope::of(TenantId::default_tenant()).swarm(&"s".parse().unwrap(), Incarnation([1; 16]));
        let topic = swarm.topic(&"a".parse().unwrap());
        let keep = LogKeep::default();
        let long = "x".repeat(1 << 10);
        for i in 0..2_000 {
            keep.keep(&topic, i, &[line(&long)]);
        }
        let (kept, mut live) = keep.read(&swarm, None, 0);
        assert!(kept.len() < 1_000 && kept.len() > 800, "{}", kept.len());
        assert_eq!(kept.last().unwrap().at_ms, 1_999);
        assert_eq!(keep.read(&swarm, None, 3).0.len(), 3);
        assert!(keep.read(&swarm, Some(&"b".parse().unwrap()), 0).0.is_empty());
        keep.keep(&topic, 2_000, &[line("new")]);
        assert_eq!(live.recv().await.unwrap().line.text, "new");
        keep.forget(&topic);
        assert!(keep.read(&swarm, None, 0).0.is_empty());
    }
}
