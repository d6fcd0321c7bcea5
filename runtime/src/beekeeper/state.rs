//! Lists and imports of keyed state.
//!
//! An import is an owner's work: it takes the partition's lease and commits, as the stage itself would, so nobody else writes meanwhile and
//! what an owner remembers of a key is never wrong. A stage that runs has its lease, so it is to be paused; and what its Bee counts would be
//! overwritten underneath it anyway.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use skep_model::Bytes;
use skep_model::id::{CommitId, Token};
use skep_model::limits::{
    COMMIT_BYTES_MAX, KEY_BYTES_MAX, LEASE_TTL_MS, RESTORE_PAUSE_MS, STATE_IMPORT_WAIT_MS, STATE_KEY_BYTES_MAX,
    STATE_LISTS_MAX, STATE_NAME_BYTES_MAX, STATE_NAMES_MAX, STATE_VALUE_BYTES_MAX,
};
use skep_model::name::StageName;
use skep_model::scope::TopicId;
use skep_model::swarm::{Keep, Stage};
use skep_proto::v1;
use skep_stage::decide::{replaced, visible};
use skep_topic::{Commit, Error, Lease, StatePut, TimerSet, TopicSpec};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::failure::{internal, invalid, topic_error};
use super::views::stage_of;
use super::{Keeper, Out, Reply};

static LISTS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(STATE_LISTS_MAX);
/// One at a time: it holds leases.
static IMPORTS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(1);

/// Pages that wait for a slow client.
const PAGES_READY: usize = 2;
/// Between two attempts to get a lease.
const AGAIN: Duration = Duration::from_millis(50);
/// Of one commit of an import: with keys and names it stays below the bound, and the ages of a key beside.
const COMMIT_BYTES: usize = COMMIT_BYTES_MAX / 4;

/// A key, and all that it is to have.
type Entry = (String, BTreeMap<String, Bytes>);

/// A stage whose state is asked for.
struct Place {
    topic: TopicId,
    stage: Stage,
    born: u64,
    paused: bool,
}

impl Keeper {
    async fn place(&self, swarm: &str, stage: &str) -> Result<Place, Status> {
        let (name, found, id) = self.find(swarm).await?;
        let Some(stage) = stage_of(&name, &found.record, stage)? else {
            return Err(invalid("name a stage"));
        };
        let of = |stage: &StageName| found.record.swarm.stage(stage).cloned();
        let known = of(&stage).ok_or_else(|| internal(anyhow::anyhow!("the stage is there")))?;
        Ok(Place {
            topic: id.topic(&stage),
            born: found.record.born(&stage),
            paused: found.record.is_paused(&stage),
            stage: known,
        })
    }

    pub(super) async fn state_pages(&self, asked: v1::ListStateRequest) -> Reply<Out<v1::ListStateReply>> {
        let place = self.place(&asked.swarm, &asked.stage).await?;
        let turn = LISTS.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STATE_LISTS_MAX} lists of state are read from this node: try again soon"
            ))
        })?;
        let (to, pages) = mpsc::channel(PAGES_READY);
        let this = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let listed = tokio::select! {
                () = this.stop.cancelled() => Err(Status::unavailable("the node stops: the list is not whole")),
                () = to.closed() => return,
                listed = this.list(&place, asked, &to) => listed,
            };
            if let Err(status) = listed {
                let _ = to.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(pages))))
    }

    async fn list(
        &self,
        place: &Place,
        asked: v1::ListStateRequest,
        to: &mpsc::Sender<Result<v1::ListStateReply, Status>>,
    ) -> Result<(), Status> {
        let (mut skip, mut after) = continued(&asked.after)?;
        let mut left = if asked.limit == 0 { u64::MAX } else { asked.limit };
        loop {
            let page = self
                .backend
                .state_page(&place.topic, &after)
                .await
                .map_err(topic_error)?;
            let now_ms = self.clock.now_ms();
            let (mut entries, mut cut) = (Vec::new(), None);
            for (at, (key, mut values)) in page.keys.into_iter().enumerate().skip(skip) {
                if left == 0 {
                    cut = Some(at);
                    break;
                }
                visible(&mut values, place.stage.keep.ttl, now_ms);
                if key.starts_with(&asked.prefix) && !values.is_empty() {
                    left -= 1;
                    entries.push(entry(&key, values));
                }
            }
            // Where the limit cuts a page, it is read again from its beginning: a store may know no other place.
            let next = match (cut, &page.next) {
                (Some(at), _) => format!("{at}+{after}"),
                (None, Some(next)) => format!("0+{next}"),
                (None, None) => String::new(),
            };
            let reply = v1::ListStateReply { entries, next };
            if to.send(Ok(reply)).await.is_err() || left == 0 {
                return Ok(());
            }
            let Some(next) = page.next else { return Ok(()) };
            (skip, after) = (0, next);
        }
    }

    pub(super) async fn take_state(
        &self,
        mut stream: Streaming<v1::ImportStateRequest>,
    ) -> Reply<v1::ImportStateReply> {
        let _turn = IMPORTS.try_acquire().map_err(|_| {
            Status::resource_exhausted("another import of state is under way on this node: try again when it is done")
        })?;
        let mut place: Option<Place> = None;
        let mut keys = 0;
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => return Err(Status::unavailable(cut(keys, "the node stops"))),
                next = tokio::time::timeout(Duration::from_millis(RESTORE_PAUSE_MS), stream.message()) => next,
            };
            let next = next.map_err(|_| Status::deadline_exceeded(cut(keys, "the stream paused for too long")))??;
            let Some(part) = next else { break };
            // Looked up each time: the stage may have been resumed.
            let now = match &place {
                None => self.place(&part.swarm, &part.stage).await?,
                Some(known) => {
                    self.place(known.topic.swarm().name().as_str(), known.stage.name.as_str())
                        .await?
                }
            };
            ready(&now)?;
            let entries = checked(part.entries).map_err(|why| Status::invalid_argument(cut(keys, &why)))?;
            let here = entries.len() as u64;
            self.set(&now, entries)
                .await
                .map_err(|status| Status::new(status.code(), cut(keys, status.message())))?;
            keys += here;
            place = Some(now);
        }
        if place.is_none() {
            return Err(invalid("name a Swarm and a stage in the first message"));
        }
        self.backend.flushed().await.map_err(topic_error)?;
        Ok(Response::new(v1::ImportStateReply { keys }))
    }

    /// Sets keys, partition by partition.
    async fn set(&self, place: &Place, entries: Vec<Entry>) -> Result<(), Status> {
        let layout = self.backend.layout(&place.topic).await.map_err(topic_error)?;
        if layout.is_some_and(|layout| layout.rescaling) {
            return Err(Status::failed_precondition(
                "the stage gets another number of partitions just now: import when that is done",
            ));
        }
        let spec = Arc::new(TopicSpec {
            id: place.topic.clone(),
            born: place.born,
            partitions: layout.map_or(place.stage.partitions, |layout| layout.partitions),
            inbox: place.stage.inbox,
            dead_letters: place.stage.dead_letters,
        });
        let size = self.backend.state_size(&place.topic).await.map_err(topic_error)?;
        room(place.stage.keep, size.keys, size.bytes, &entries)?;
        let mut by_part: BTreeMap<u16, Vec<Entry>> = BTreeMap::new();
        for (key, values) in entries {
            by_part
                .entry(spec.partition_of_key(&key))
                .or_default()
                .push((key, values));
        }
        for (index, entries) in by_part {
            self.set_part(place, &spec, index, entries).await?;
        }
        Ok(())
    }

    async fn set_part(
        &self,
        place: &Place,
        spec: &Arc<TopicSpec>,
        index: u16,
        entries: Vec<Entry>,
    ) -> Result<(), Status> {
        let token = Token::random(self.entropy.as_ref());
        let until = Instant::now() + Duration::from_millis(STATE_IMPORT_WAIT_MS);
        let claim = loop {
            match self
                .backend
                .claim(spec, index, token, LEASE_TTL_MS)
                .await
                .map_err(topic_error)?
            {
                Ok(claim) => break claim,
                Err(_) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                Err(held) => {
                    return Err(Status::failed_precondition(format!(
                        "another owner holds partition {index} of the stage ({held}): is it paused on every node?"
                    )));
                }
            }
        };
        let lease = Lease {
            partition: spec.id.partition(index),
            token,
        };
        let done = self
            .commits(place, spec, &lease, (claim.seq, claim.last), entries)
            .await;
        let released = self.backend.release(&lease).await;
        done?;
        released.map_err(topic_error)
    }

    async fn commits(
        &self,
        place: &Place,
        spec: &Arc<TopicSpec>,
        lease: &Lease,
        (mut seq, mut base): (u64, CommitId),
        entries: Vec<Entry>,
    ) -> Result<(), Status> {
        // Asked for together, so that they share a flush.
        let stored = join_all(entries.iter().map(|(key, _)| self.backend.state(&spec.id, key))).await;
        let now_ms = self.clock.now_ms();
        let (mut puts, mut timers): (Vec<StatePut>, Vec<TimerSet>) = (Vec::new(), Vec::new());
        for ((key, values), stored) in entries.into_iter().zip(stored) {
            let stored = stored.map_err(topic_error)?.into_iter().collect();
            let ttl = place.stage.keep.ttl;
            let (more, set) = replaced(&key, stored, values, ttl, now_ms, self.entropy.as_ref());
            puts.extend(more);
            timers.extend(set);
        }
        let mut puts = puts.into_iter().peekable();
        while puts.peek().is_some() || !timers.is_empty() {
            let mut commit = Commit::empty(Arc::clone(spec), CommitId::random(self.entropy.as_ref()), seq, base);
            let mut bytes = 0;
            while bytes < COMMIT_BYTES
                && let Some(put) = puts.next()
            {
                bytes += put.key.len() + put.name.len() + put.value.as_ref().map_or(0, Bytes::len);
                commit.state.push(put);
            }
            // With the last, when all that they are to look at is there.
            if puts.peek().is_none() {
                commit.set_timers = std::mem::take(&mut timers);
            }
            let commit = Arc::new(commit);
            self.apply_commit(lease, &commit).await?;
            (seq, base) = (seq + 1, commit.id);
        }
        Ok(())
    }

    /// Again with the same id where nobody knows whether it was applied.
    async fn apply_commit(&self, lease: &Lease, commit: &Arc<Commit>) -> Result<(), Status> {
        let until = Instant::now() + Duration::from_millis(STATE_IMPORT_WAIT_MS);
        loop {
            match self.backend.commit(lease, Arc::clone(commit)).await {
                Ok(_) => return Ok(()),
                Err(Error::Unavailable(_) | Error::Unknown(_)) if Instant::now() < until => {
                    tokio::time::sleep(AGAIN).await
                }
                Err(Error::Fenced | Error::Stale | Error::InputGone) => {
                    return Err(Status::aborted("the stage got another owner meanwhile: is it paused?"));
                }
                Err(e) => return Err(topic_error(e)),
            }
        }
    }
}

fn entry(key: &str, values: BTreeMap<String, Bytes>) -> v1::StateEntry {
    v1::StateEntry {
        key: key.to_owned(),
        values: values
            .into_iter()
            .map(|(name, value)| v1::StateValue { name, value })
            .collect(),
    }
}

/// How many keys of which page were told already.
fn continued(after: &str) -> Result<(usize, String), Status> {
    if after.is_empty() {
        return Ok((0, String::new()));
    }
    let told = after
        .split_once('+')
        .and_then(|(skip, page)| Some((skip.parse().ok()?, page.to_owned())));
    told.ok_or_else(|| {
        invalid(format!(
            "{after:?} is no place in a list of state: take what the one before said"
        ))
    })
}

fn cut(keys: u64, why: &str) -> String {
    if keys == 0 {
        return why.to_owned();
    }
    format!("{why}; the {keys} keys before were set, and to import them again is safe")
}

fn ready(place: &Place) -> Result<(), Status> {
    let (swarm, stage) = (place.topic.swarm().name(), &place.stage.name);
    if place.stage.join.is_some() || !place.stage.state {
        return Err(Status::failed_precondition(format!(
            "stage `{stage}` of Swarm `{swarm}` keeps no state: an import needs `state: true`"
        )));
    }
    if !place.paused {
        return Err(Status::failed_precondition(format!(
            "stage `{stage}` of Swarm `{swarm}` runs, and would write what is imported: `skep pause {swarm}/{stage}` first"
        )));
    }
    Ok(())
}

/// The bounds of what a Bee may write, and each key once.
fn checked(entries: Vec<v1::StateEntry>) -> Result<Vec<Entry>, String> {
    let over = |key: &str, what: &str, found: usize, max: usize| {
        if found <= max {
            return Ok(());
        }
        let key: String = key.chars().take(64).collect();
        Err(format!(
            "key `{}` has {found} {what}, at most {max} may be",
            key.escape_debug()
        ))
    };
    let mut out: BTreeMap<String, BTreeMap<String, Bytes>> = BTreeMap::new();
    for v1::StateEntry { key, values } in entries {
        over(&key, "bytes", key.len(), KEY_BYTES_MAX)?;
        over(&key, "values", values.len(), STATE_NAMES_MAX)?;
        let mut bytes = 0;
        let mut taken = BTreeMap::new();
        for v1::StateValue { name, value } in values {
            over(&key, "bytes in a value's name", name.len(), STATE_NAME_BYTES_MAX)?;
            over(&key, "bytes in a value", value.len(), STATE_VALUE_BYTES_MAX)?;
            if name.starts_with('\0') {
                return Err(format!(
                    "key `{}` has a value whose name begins with NUL",
                    key.escape_debug()
                ));
            }
            bytes += name.len() + value.len();
            taken.insert(name, value);
        }
        over(&key, "bytes of values", bytes, STATE_KEY_BYTES_MAX)?;
        out.insert(key, taken);
    }
    Ok(out.into_iter().collect())
}

/// As if all keys were new: what is there already may be counted twice, which refuses at most a part too early.
fn room(keep: Keep, keys: u64, bytes: u64, entries: &[Entry]) -> Result<(), Status> {
    let more: u64 = entries
        .iter()
        .map(|(key, values)| skep_topic::StateSize::of(key, values).bytes)
        .sum();
    if keys < keep.keys && bytes.saturating_add(more) <= keep.bytes {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "the stage's state is full: it has {keys} keys with {bytes} bytes, and may have {} with {}; raise `state: {{ keys, bytes }}` in the \
         manifest, or delete keys",
        keep.keys, keep.bytes
    )))
}
