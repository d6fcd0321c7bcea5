//! Dead letters: looked at, discarded, put back.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_model::Bytes;
use skep_model::limits::{DEAD_LETTERS_SCAN_MAX, KEEPER_REPLY_BYTES_MAX, REDRIVE_IDS_MAX, REDRIVE_STEP_BYTES};
use skep_model::message::Message;
use skep_model::name::StageName;
use skep_model::scope::SwarmId;
use skep_proto::v1;
use skep_topic::{Call, Gate, Once, Publish, Refused, StoredDeadLetter, TimerDue, TopicSpec, Work};
use tonic::{Response, Status};

use super::failure::{internal, invalid, topic_error};
use super::{Keeper, Reply};
use crate::catalog::SwarmRecord;
use crate::supervisor::topic_spec;

const DEAD_LETTERS_PAGE_DEFAULT: u32 = 100;
const DEAD_LETTERS_PAGE_MAX: u32 = 1_000;
/// Dead letters read in one step of the backend: each may be as large as a message.
const DEAD_LETTERS_STEP: u32 = 16;

/// Which ones a list is about.
struct Filter {
    reason: String,
    key: Option<String>,
    module: String,
    since_ms: u64,
    /// 0: no end.
    until_ms: u64,
}

impl Filter {
    fn takes(&self, stored: &StoredDeadLetter) -> bool {
        let letter = &stored.letter;
        (self.reason.is_empty() || self.reason == letter.reason)
            && self.key.as_deref().is_none_or(|key| letter.work.key() == Some(key))
            && (self.module.is_empty() || letter.module.to_hex().starts_with(&self.module))
            && letter.at_ms >= self.since_ms
            && (self.until_ms == 0 || letter.at_ms < self.until_ms)
    }
}

impl Keeper {
    pub(super) async fn dead_letters(&self, asked: v1::ListDeadLettersRequest) -> Reply<v1::ListDeadLettersReply> {
        let (_, _, id) = self.find(&asked.swarm).await?;
        // A removed stage's dead letters are still listed, so the name need not be in the manifest.
        let stage: Option<StageName> = match asked.stage.as_str() {
            "" => None,
            name => Some(name.parse().map_err(invalid)?),
        };
        let limit = match asked.limit {
            0 => DEAD_LETTERS_PAGE_DEFAULT,
            n => n.min(DEAD_LETTERS_PAGE_MAX),
        };
        let module = asked.module.strip_prefix("sha256:").unwrap_or(&asked.module);
        let filter = Filter {
            reason: asked.reason,
            key: asked.key,
            module: module.to_ascii_lowercase(),
            since_ms: asked.since_ms,
            until_ms: asked.until_ms,
        };
        let (mut letters, mut bytes, mut after, mut seen) = (Vec::new(), 0, asked.after, 0);
        let mut next = 0;
        'page: loop {
            if letters.len() as u64 >= u64::from(limit) || seen >= DEAD_LETTERS_SCAN_MAX {
                next = after;
                break;
            }
            let found = self
                .backend
                .dead_letters(&id, stage.as_ref(), after, DEAD_LETTERS_STEP)
                .await
                .map_err(topic_error)?;
            let more = found.len() as u64 == u64::from(DEAD_LETTERS_STEP);
            for stored in found {
                seen += 1;
                let at = stored.id;
                if filter.takes(&stored) {
                    let letter = if asked.brief { brief(&stored) } else { told(stored) };
                    bytes += reply_len(&letter);
                    // A short page: the client goes on after its last letter.
                    if !letters.is_empty()
                        && (bytes > KEEPER_REPLY_BYTES_MAX || letters.len() as u64 >= u64::from(limit))
                    {
                        next = after;
                        break 'page;
                    }
                    letters.push(letter);
                }
                after = at;
            }
            if !more {
                break;
            }
        }
        Ok(Response::new(v1::ListDeadLettersReply { letters, next }))
    }

    pub(super) async fn discard(&self, asked: v1::DiscardDeadLettersRequest) -> Reply<v1::DiscardDeadLettersReply> {
        let (_, _, id) = self.find(&asked.swarm).await?;
        let discarded = self
            .backend
            .discard_dead_letters(&id, &asked.ids)
            .await
            .map_err(topic_error)?;
        self.supervisor.discarded(&id).await.map_err(internal)?;
        Ok(Response::new(v1::DiscardDeadLettersReply { discarded }))
    }

    /// The letter of an id.
    pub(super) async fn letter(&self, swarm: &SwarmId, id: u64) -> Result<Option<StoredDeadLetter>, Status> {
        let found = self.backend.dead_letters(swarm, None, id.saturating_sub(1), 1).await;
        Ok(found.map_err(topic_error)?.into_iter().find(|found| found.id == id))
    }

    pub(super) async fn redrive(&self, asked: v1::RedriveDeadLettersRequest) -> Reply<v1::RedriveDeadLettersReply> {
        if asked.ids.len() > REDRIVE_IDS_MAX {
            let found = asked.ids.len();
            return Err(invalid(format!(
                "{found} ids in one call, at most {REDRIVE_IDS_MAX} may be: make several"
            )));
        }
        let (name, found, id) = self.find(&asked.swarm).await?;
        let record = found.record;
        if record.deleting {
            return Err(Status::failed_precondition(format!(
                "Swarm `{name}` is being deleted: nothing comes back to it"
            )));
        }
        let mut reply = v1::RedriveDeadLettersReply::default();
        let mut ids: BTreeSet<u64> = asked.ids.into_iter().collect();
        while let Some(first) = ids.first().copied() {
            // Neighbours mostly lie together, so one read finds many of them.
            let read = self
                .backend
                .dead_letters(&id, None, first - u64::from(first > 0), DEAD_LETTERS_STEP);
            let read = read.await.map_err(topic_error)?;
            let passed = match read.last() {
                Some(last) if read.len() as u64 == u64::from(DEAD_LETTERS_STEP) => last.id,
                _ => u64::MAX,
            };
            let later = ids.split_off(&passed.saturating_add(1));
            let wanted = if passed == u64::MAX {
                std::mem::take(&mut ids)
            } else {
                std::mem::replace(&mut ids, later)
            };
            let known: Vec<StoredDeadLetter> = read.into_iter().filter(|l| wanted.contains(&l.id)).collect();
            reply.gone += (wanted.len() - known.len()) as u64;
            self.put_back(&record, &id, known, &mut reply).await?;
        }
        Ok(Response::new(reply))
    }

    async fn put_back(
        &self,
        record: &SwarmRecord,
        id: &SwarmId,
        letters: Vec<StoredDeadLetter>,
        reply: &mut v1::RedriveDeadLettersReply,
    ) -> Result<(), Status> {
        let mut step: Vec<(u64, Call)> = Vec::new();
        let mut bytes = 0;
        for letter in letters {
            let stage = letter.topic.stage();
            let Some(spec) = record.swarm.stage(stage).map(|s| topic_spec(id, s, record.born(stage))) else {
                reply.left.push(v1::LetterLeft {
                    id: letter.id,
                    why: format!("stage `{stage}` was removed: apply a manifest that has it, or discard the letter"),
                    later: false,
                });
                continue;
            };
            let (letter_id, call) = again(Arc::new(spec), letter);
            bytes += call
                .to
                .iter()
                .flat_map(|(_, messages)| messages)
                .map(|m| m.payload.len())
                .sum::<usize>();
            step.push((letter_id, call));
            if bytes >= REDRIVE_STEP_BYTES {
                self.publish_again(id, std::mem::take(&mut step), reply).await?;
                bytes = 0;
            }
        }
        self.publish_again(id, step, reply).await
    }

    async fn publish_again(
        &self,
        id: &SwarmId,
        step: Vec<(u64, Call)>,
        reply: &mut v1::RedriveDeadLettersReply,
    ) -> Result<(), Status> {
        if step.is_empty() {
            return Ok(());
        }
        let (ids, calls): (Vec<u64>, Vec<Call>) = step.into_iter().unzip();
        let publish = Publish {
            swarm: id.clone(),
            calls,
            gate: Gate::Durable,
        };
        let results = self.backend.publish(publish).await.map_err(topic_error)?;
        for (id, result) in ids.into_iter().zip(results) {
            match result {
                Ok(_) => reply.redriven += 1,
                Err(Refused::NoLetter) => reply.gone += 1,
                Err(refused) => reply.left.push(v1::LetterLeft {
                    id,
                    later: matches!(refused, Refused::Full { .. } | Refused::Rescaling { .. }),
                    why: refused.to_string(),
                }),
            }
        }
        Ok(())
    }
}

/// The call that puts a letter back. Its message keeps uid, key and times, so what it does has the same effect ids; whoever asked for
/// it was answered when it died, so nobody waits, and no deadline stops it.
fn again(spec: Arc<TopicSpec>, letter: StoredDeadLetter) -> (u64, Call) {
    let (messages, timer) = match letter.letter.work {
        Work::Message(message) => (
            vec![Message {
                request: None,
                ..message
            }],
            None,
        ),
        Work::Timer { uid, key, name, at_ms } => (Vec::new(), Some(TimerDue { uid, key, name, at_ms })),
    };
    let once = Once::Letter { id: letter.id, timer };
    (
        letter.id,
        Call {
            to: vec![(spec, messages)],
            once,
        },
    )
}

/// About what a letter takes in a reply.
fn reply_len(letter: &v1::DeadLetter) -> usize {
    let headers: usize = letter.headers.iter().map(|h| h.name.len() + h.value.len() + 8).sum();
    let text = letter.reason.len() + letter.detail.len() + letter.stderr.len() + letter.stage.len();
    letter.payload.len() + headers + text + letter.key.as_ref().map_or(0, String::len) + 256
}

pub(super) fn headers(headers: Vec<(String, String)>) -> Vec<v1::Header> {
    let headers = headers.into_iter();
    headers.map(|(name, value)| v1::Header { name, value }).collect()
}

fn brief(stored: &StoredDeadLetter) -> v1::DeadLetter {
    v1::DeadLetter {
        id: stored.id,
        stage: stored.topic.stage().to_string(),
        ..v1::DeadLetter::default()
    }
}

fn told(stored: StoredDeadLetter) -> v1::DeadLetter {
    let letter = stored.letter;
    let mut told = v1::DeadLetter {
        id: stored.id,
        stage: stored.topic.stage().to_string(),
        message: letter.work.uid().to_string(),
        key: letter.work.key().map(str::to_owned),
        reason: letter.reason,
        detail: letter.detail,
        stderr: letter.stderr,
        attempts: letter.attempts,
        at_ms: letter.at_ms,
        module: letter.module.to_string(),
        ..v1::DeadLetter::default()
    };
    match letter.work {
        Work::Message(message) => {
            told.payload = message.payload;
            told.headers = headers(message.headers);
            let trace = message
                .trace
                .map(|t| format!("{:032x}", u128::from_be_bytes(t.trace_id)));
            told.trace_id = trace.unwrap_or_default();
        }
        Work::Timer { name, at_ms, .. } => {
            told.payload = Bytes::from(format!("timer {name} due {at_ms}"));
            told.timer = name;
            told.timer_at_ms = at_ms;
        }
    }
    told
}
