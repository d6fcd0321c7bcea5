//! What stages here publish for a stage of the hub waits in a topic of its own, and is handed over once.
//!
//! ```text
//! stage's commit ─► outbox (durable, bounded) ─fetch─► flushed ─► hub: session, first, frame ─► durable there ─► commit: cursor and count
//! ```
//! Messages of an outbox are numbered by how many were handed over before. The count lies beside the cursor and moves with it in one commit, so after
//! any crash the same messages have the same numbers. The hub keeps the highest number of the *session* it has taken, in the same transaction as the
//! messages: what it has already it skips, and what would leave a gap it refuses (`Once::Session`). Nothing is sent before it is durable here: else a
//! crash could give its number to another message.
//!
//! How far messages were ever *offered* is durable as well, before they are: only those may be at the hub though nobody said so. Each connection
//! begins with the question how far the hub has taken them. What lies between `sent` and `offered` then counts as handed over, exactly as far as it was.
//! A hub that has more than was ever offered says that this folder is a copy, or was put back: its numbers mean other messages, and nothing goes. So no
//! answer that got lost has to be guessed, and the hub refuses whole what it has any number of.
//!
//! A session ends where numbers cannot go on: when messages were dropped for want of room (the first of those that stay may have been sent and
//! may be there), and when the hub's operator goes on knowingly after a loss.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use skep_model::env::Entropy;
use skep_model::id::{CommitId, Token};
use skep_model::limits::LEASE_TTL_MS;
use skep_model::message::{Message, Reply, ReplyResult};
use skep_model::swarm::WhenFull;
use skep_proto::v1;
use skep_proto::v1::delivered::Outcome;
use skep_topic::record::{FrameBuilder, Run};
use skep_topic::{Backend, Claim, Commit, Error, Lease, Span, StatePut, TopicSpec, TopicStatus, Unread, Want};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::limits::{
    DROP_FROM_PERCENT, DROP_TO_PERCENT, HAND_OVER_AGAIN_MS, HAND_OVER_BYTES, HAND_OVER_BYTES_FIRST,
    HAND_OVER_BYTES_LEAST, HAND_OVER_MESSAGES, HAND_OVER_QUICKLY_MS,
};
use crate::link::Session;
use crate::orders::Discard;

/// The key under which the counts lie.
const COUNTS: &str = "outbox";
/// After a trouble of the store.
const TROUBLE: Duration = Duration::from_secs(1);

/// The counts of one outbox. All are kept in the commit that moves its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Handed over in this session.
    pub sent: u64,
    /// Offered to the hub in this session, whatever became of it. Not less than `sent`.
    pub offered: u64,
    /// Handed over in all.
    pub handed_over: u64,
    pub dropped: u64,
    /// How many sessions ended here.
    pub own_epoch: u64,
    /// … and at the hub.
    pub hub_epoch: u64,
    /// The last [`crate::orders::Discard`] that was done here.
    pub discarded: u64,
    /// The hub's epoch while all was well: a later one says that its operator goes on knowingly.
    pub epoch_seen: u64,
}

impl Counts {
    const BYTES: usize = 8 * 8;

    fn read(value: Option<&Bytes>) -> Result<Self, Error> {
        let Some(value) = value else { return Ok(Self::default()) };
        if value.len() != Self::BYTES {
            return Err(Error::Corrupt(format!(
                "the counts of an outbox have {} bytes",
                value.len()
            )));
        }
        let mut words = value
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
        let mut next = || words.next().unwrap_or_default();
        Ok(Self {
            sent: next(),
            offered: next(),
            handed_over: next(),
            dropped: next(),
            own_epoch: next(),
            hub_epoch: next(),
            discarded: next(),
            epoch_seen: next(),
        })
    }

    /// Numbers start at one again, in another session: surely none of what stays was ever sent in it.
    fn begin_anew(&mut self) {
        self.own_epoch += 1;
        (self.sent, self.offered) = (0, 0);
    }

    fn put(self) -> StatePut {
        let words = [
            self.sent,
            self.offered,
            self.handed_over,
            self.dropped,
            self.own_epoch,
            self.hub_epoch,
            self.discarded,
            self.epoch_seen,
        ];
        let value: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        StatePut {
            key: COUNTS.to_owned(),
            name: COUNTS.to_owned(),
            value: Some(value.into()),
        }
    }
}

/// After what only a person can mend.
const STUCK: Duration = Duration::from_secs(30);

/// What is known of an outbox, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    pub counts: Counts,
    pub trouble: Option<String>,
}

/// Of one stage of the hub.
pub struct Outbox {
    pub topic: Arc<TopicSpec>,
    edge: [u8; 16],
    full: watch::Receiver<WhenFull>,
    /// The hub's epoch, of the orders.
    epoch: watch::Receiver<u64>,
    backend: Arc<dyn Backend>,
    entropy: Arc<dyn Entropy>,
    up: watch::Receiver<Option<Arc<Session>>>,
    known: Arc<Mutex<Known>>,
    pace: Mutex<Pace>,
    /// The connection whose hub has said how far it is, and the session that it said it of.
    settled: Mutex<Option<(u64, [u8; 16])>>,
}

/// How much is handed over at once.
#[derive(Debug, Clone, Copy)]
struct Pace {
    messages: u32,
    bytes: u64,
}

impl Pace {
    const FIRST: Self = Self {
        messages: HAND_OVER_MESSAGES,
        bytes: HAND_OVER_BYTES_FIRST,
    };

    /// They arrived, `quickly` or not.
    fn arrived(&mut self, quickly: bool) {
        self.messages = self.messages.saturating_mul(2).min(HAND_OVER_MESSAGES);
        if quickly {
            self.bytes = (self.bytes * 2).min(HAND_OVER_BYTES);
        }
    }

    /// The connection ended meanwhile.
    fn broke(&mut self) {
        self.bytes = (self.bytes / 2).max(HAND_OVER_BYTES_LEAST);
    }
}

/// Why the work on an outbox stopped for now.
enum Pause {
    /// Nothing is left.
    Empty,
    /// The connection is gone.
    Down,
    /// The same again, later.
    Later(Duration),
    /// Until something changes: the connection, the orders.
    Stuck(String),
    Store(Error),
}

impl From<Error> for Pause {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// A partition that is held.
struct Hold {
    lease: Lease,
    claim: Claim,
    counts: Counts,
}

impl Outbox {
    #[must_use]
    pub fn new(
        topic: Arc<TopicSpec>,
        edge: [u8; 16],
        full: watch::Receiver<WhenFull>,
        epoch: watch::Receiver<u64>,
        (backend, entropy): (Arc<dyn Backend>, Arc<dyn Entropy>),
        up: watch::Receiver<Option<Arc<Session>>>,
    ) -> Self {
        Self {
            topic,
            edge,
            full,
            epoch,
            backend,
            entropy,
            up,
            known: Arc::default(),
            pace: Mutex::new(Pace::FIRST),
            settled: Mutex::default(),
        }
    }

    fn settled(&self) -> std::sync::MutexGuard<'_, Option<(u64, [u8; 16])>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of it, now and later.
    #[must_use]
    pub fn known(&self) -> Arc<Mutex<Known>> {
        Arc::clone(&self.known)
    }

    fn note(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Hands over whatever comes, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let bell = self.backend.bell(&self.topic.id.partition(0));
        // What was counted before this start.
        if let Ok(state) = self.backend.state(&self.topic.id, COUNTS).await
            && let Ok(counts) = Counts::read(state.get(COUNTS))
        {
            self.note(|known| known.counts = counts);
        }
        loop {
            let rung = bell.notified();
            tokio::pin!(rung);
            // From now on, and not from when it is waited for.
            rung.as_mut().enable();
            let session = self.up.borrow_and_update().clone();
            self.epoch.borrow_and_update();
            let paused = self.work(session.as_deref(), &stop).await;
            if stop.is_cancelled() {
                return;
            }
            let stuck = match &paused {
                Pause::Stuck(why) => Some(why.clone()),
                Pause::Store(error) => Some(error.to_string()),
                _ => None,
            };
            if let Some(why) = &stuck {
                let before = self
                    .known()
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .trouble
                    .clone();
                if before.as_ref() != Some(why) {
                    tracing::error!(stage = %self.topic.id.stage(), why, "messages for the hub wait");
                }
            }
            self.note(|known| known.trouble = stuck);
            let wait = match paused {
                Pause::Later(wait) => Some(wait),
                Pause::Store(Error::Gone) => return,
                Pause::Store(_) => Some(TROUBLE),
                // The hub may know better by then.
                Pause::Stuck(_) => Some(STUCK),
                Pause::Empty | Pause::Down => None,
            };
            let (mut up, mut epoch) = (self.up.clone(), self.epoch.clone());
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut rung => {}
                _ = up.changed() => {}
                _ = epoch.changed() => {}
                () = async { match wait { Some(wait) => sleep(wait).await, None => std::future::pending().await } } => {}
            }
        }
    }

    /// Works until there is a reason to wait, or until `stop`; lets go of the partition in any case.
    async fn work(&self, session: Option<&Session>, stop: &CancellationToken) -> Pause {
        if session.is_none() {
            match self.needs_room(DROP_FROM_PERCENT).await {
                Ok(true) => {}
                Ok(false) => return Pause::Down,
                Err(e) => return e.into(),
            }
        }
        match self.status().await {
            Err(e) => return e.into(),
            Ok(Some(status)) if status.unread > 0 => {}
            Ok(_) => return Pause::Empty,
        }
        let mut hold = match self.hold().await {
            Err(e) => return e.into(),
            Ok(None) => return Pause::Later(TROUBLE),
            Ok(Some(hold)) => hold,
        };
        let lease = hold.lease.clone();
        let work = async {
            match session {
                Some(session) => self.hand_over(&mut hold, session).await,
                None => match self.make_room(&mut hold).await {
                    Ok(()) => Pause::Down,
                    Err(e) => e.into(),
                },
            }
        };
        let pause = tokio::select! {
            () = stop.cancelled() => Pause::Down,
            pause = work => pause,
        };
        let _ = self.backend.release(&lease).await;
        pause
    }

    /// Lets go of what waits, as an operator said: all of it, or the first message. Done once, whatever dies meanwhile. Nobody else may work on it.
    ///
    /// # Errors
    /// The store's.
    pub async fn discard(&self, discard: &Discard) -> Result<u64, Error> {
        let mut hold = match self.hold().await? {
            Some(hold) => hold,
            None => {
                return Err(Error::Unavailable(
                    "its partition is still held by an earlier run".to_owned(),
                ));
            }
        };
        let done = self.let_go(&mut hold, discard).await;
        let _ = self.backend.release(&hold.lease).await;
        done
    }

    async fn let_go(&self, hold: &mut Hold, discard: &Discard) -> Result<u64, Error> {
        if hold.counts.discarded >= discard.id {
            return Ok(0);
        }
        let mut gone = 0;
        if discard.first {
            // A first message that may be at the hub is not one that it refuses; and those sent with it would come twice under new numbers.
            if hold.counts.offered != hold.counts.sent {
                return Err(Error::Unavailable(
                    "what was offered last may be at the hub: wait until it says so".to_owned(),
                ));
            }
        } else {
            hold.counts.begin_anew();
        }
        loop {
            let most = if discard.first { 1 } else { HAND_OVER_MESSAGES };
            let found = self.fetch(hold, most, HAND_OVER_BYTES).await?;
            // Written with the last of them: half of it is done again.
            let rest = self.status().await?.map_or(0, |status| status.unread);
            if discard.first || rest <= found.len() as u64 {
                hold.counts.discarded = discard.id;
            }
            gone += found.len() as u64;
            hold.counts.dropped += found.len() as u64;
            if found.is_empty() {
                self.keep_counts(hold).await?;
            } else {
                self.consume(hold, &found).await?;
            }
            if hold.counts.discarded == discard.id {
                break;
            }
        }
        self.backend.flushed().await?;
        Ok(gone)
    }

    /// Whether there is anything in it. Costs no write.
    async fn status(&self) -> Result<Option<TopicStatus>, Error> {
        let all = self.backend.status(self.topic.id.swarm()).await?;
        Ok(all.into_iter().find(|status| status.topic == self.topic.id))
    }

    /// Takes hold of it. `None`: somebody else has it, for now.
    async fn hold(&self) -> Result<Option<Hold>, Error> {
        let token = Token::random(self.entropy.as_ref());
        let Ok(claim) = self.backend.claim(&self.topic, 0, token, LEASE_TTL_MS).await? else {
            return Ok(None);
        };
        let lease = Lease {
            partition: self.topic.id.partition(0),
            token,
        };
        let state = self.backend.state(&self.topic.id, COUNTS).await?;
        let mut counts = Counts::read(state.get(COUNTS))?;
        if !state.contains_key(COUNTS) {
            // What was said before it was there is not about it.
            counts.epoch_seen = *self.epoch.borrow();
        }
        Ok(Some(Hold { lease, claim, counts }))
    }

    async fn fetch(&self, hold: &Hold, messages: u32, bytes: u64) -> Result<Vec<Unread>, Error> {
        let want = Want {
            from: hold.claim.cursor,
            base: hold.claim.last,
            messages,
            bytes,
            state: false,
            state_bytes: 0,
            timers_max: u64::MAX,
        };
        Ok(self.backend.fetch(&hold.lease, want).await?.messages)
    }

    async fn hand_over(&self, hold: &mut Hold, session: &Session) -> Pause {
        loop {
            let here = (session.number, self.session(&hold.counts));
            if *self.settled() != Some(here) {
                match self.settle(hold, session).await {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(pause) => return pause,
                }
                *self.settled() = Some(here);
            }
            let pace = *self.pace();
            let found = match self.fetch(hold, pace.messages, pace.bytes).await {
                Ok(found) if found.is_empty() => return Pause::Empty,
                Ok(found) => found,
                Err(e) => return e.into(),
            };
            let n = found.len() as u64;
            let before = hold.counts.offered;
            hold.counts.offered = before.max(hold.counts.sent + n);
            if hold.counts.offered != before
                && let Err(e) = self.keep_counts(hold).await
            {
                return e.into();
            }
            // What is not durable here could be gone after a crash, and its number another message's.
            if let Err(e) = self.backend.flushed().await {
                return e.into();
            }
            let began = Instant::now();
            let first = hold.counts.sent + 1;
            let said = match self.say(hold, session, first, frame(&found)).await {
                Ok(said) => said,
                Err(pause) => return pause,
            };
            match said.outcome() {
                Outcome::Taken => {}
                Outcome::Later => return Pause::Later(Duration::from_millis(HAND_OVER_AGAIN_MS)),
                // Since the question at the beginning somebody else took or lost numbers of this session: asked again.
                Outcome::Ahead | Outcome::Gap => {
                    hold.counts.offered = before;
                    if let Err(e) = self.keep_counts(hold).await {
                        return e.into();
                    }
                    *self.settled() = None;
                    continue;
                }
                Outcome::Gone => {
                    return Pause::Stuck(format!(
                        "the hub takes nothing for this stage any more: {}",
                        said.detail
                    ));
                }
                Outcome::Refused => {
                    // Surely not there.
                    hold.counts.offered = before;
                    if let Err(e) = self.keep_counts(hold).await {
                        return e.into();
                    }
                    // One of them is the matter: those before it go on.
                    if n > 1 {
                        self.pace().messages = 1;
                        continue;
                    }
                    return Pause::Stuck(format!(
                        "the hub refuses the first message, {}: {}; `skep edge discard --first` there lets go of it",
                        found[0].message.uid, said.detail
                    ));
                }
            }
            self.pace()
                .arrived(began.elapsed() < Duration::from_millis(HAND_OVER_QUICKLY_MS));
            hold.counts.sent += n;
            hold.counts.handed_over += n;
            hold.counts.epoch_seen = hold.counts.epoch_seen.max(*self.epoch.borrow());
            if let Err(e) = self.consume(hold, &found).await {
                return e.into();
            }
        }
    }

    /// Asks the hub how far it has taken this session, and counts what it has of what was offered. `true`: the numbers begin anew, as the hub's operator
    /// said.
    async fn settle(&self, hold: &mut Hold, session: &Session) -> Result<bool, Pause> {
        let said = self.say(hold, session, hold.counts.offered + 2, Bytes::new()).await?;
        let (sent, offered) = (hold.counts.sent, hold.counts.offered);
        let anew = |this: &Self, hold: &mut Hold, why: String| match this.begins_anew(hold) {
            true => Ok(true),
            false => Err(Pause::Stuck(why)),
        };
        match said.outcome() {
            Outcome::Gap if said.mark < sent => anew(
                self,
                hold,
                format!(
                    "the hub has lost messages that it had acknowledged ({} of {sent} are there): it was restored from an older backup. After a look \
                     at that, `skep edge resume NAME` at the hub goes on from here",
                    said.mark
                ),
            ),
            Outcome::Gap if said.mark <= offered => {
                let mut left = said.mark - sent;
                while left > 0 {
                    let most = u32::try_from(left).unwrap_or(u32::MAX).min(HAND_OVER_MESSAGES);
                    let found = self.fetch(hold, most, HAND_OVER_BYTES).await?;
                    if found.is_empty() {
                        return Err(Pause::Stuck(format!(
                            "the hub has {left} messages more than lie here: this edge's folder is damaged"
                        )));
                    }
                    left -= found.len() as u64;
                    hold.counts.sent += found.len() as u64;
                    hold.counts.handed_over += found.len() as u64;
                    self.consume(hold, &found).await?;
                }
                if hold.counts.offered != said.mark {
                    hold.counts.offered = said.mark;
                    self.keep_counts(hold).await?;
                }
                Ok(false)
            }
            Outcome::Gap | Outcome::Ahead => anew(
                self,
                hold,
                "the hub has messages under numbers that this edge never gave: its folder is a copy, or was put back to an older state. `skep edge \
                 resume NAME` at the hub hands over what is here, also what the hub has of it already"
                    .to_owned(),
            ),
            Outcome::Gone => Err(Pause::Stuck(format!(
                "the hub takes nothing for this stage any more: {}",
                said.detail
            ))),
            Outcome::Later => Err(Pause::Later(Duration::from_millis(HAND_OVER_AGAIN_MS))),
            Outcome::Taken | Outcome::Refused => Err(Pause::Stuck(format!(
                "the hub does not say how far it is: {}; bring hub and edge to the same version",
                said.detail
            ))),
        }
    }

    async fn say(&self, hold: &Hold, session: &Session, first: u64, frame: Bytes) -> Result<v1::Delivered, Pause> {
        let what = v1::Deliver {
            number: 0,
            swarm: self.topic.id.swarm().name().to_string(),
            incarnation: self.topic.id.swarm().incarnation().0.to_vec().into(),
            stage: self.topic.id.stage().to_string(),
            session: self.session(&hold.counts).to_vec().into(),
            first,
            frame,
        };
        match self.while_held(hold, session.deliver(what)).await {
            Ok(said) => Ok(said),
            Err(_) => {
                self.pace().broke();
                Err(Pause::Down)
            }
        }
    }

    /// Whether the hub's operator went on knowingly since the numbers went wrong: then they begin anew.
    fn begins_anew(&self, hold: &mut Hold) -> bool {
        let epoch = *self.epoch.borrow();
        if epoch <= hold.counts.epoch_seen {
            return false;
        }
        (hold.counts.hub_epoch, hold.counts.epoch_seen) = (epoch, epoch);
        (hold.counts.sent, hold.counts.offered) = (0, 0);
        true
    }

    /// Whether the oldest are to go: more than so much of the bound is used.
    async fn needs_room(&self, percent: u64) -> Result<bool, Error> {
        if *self.full.borrow() == WhenFull::Refuse {
            return Ok(false);
        }
        let bound = self.topic.inbox;
        let over = |status: TopicStatus| {
            status.unread_bytes > bound.bytes / 100 * percent || status.unread > bound.messages / 100 * percent
        };
        Ok(self.status().await?.is_some_and(over))
    }

    /// Lets go of the oldest.
    async fn make_room(&self, hold: &mut Hold) -> Result<(), Error> {
        // What was sent last and not answered may be at the hub. It is among the oldest, and goes here: so those that stay are surely not there,
        // and are counted anew.
        hold.counts.begin_anew();
        loop {
            let found = self.fetch(hold, HAND_OVER_MESSAGES, HAND_OVER_BYTES).await?;
            if found.is_empty() {
                break;
            }
            hold.counts.dropped += found.len() as u64;
            self.consume(hold, &found).await?;
            if !self.needs_room(DROP_TO_PERCENT).await? {
                break;
            }
        }
        tracing::warn!(
            stage = %self.topic.id.stage(), dropped = hold.counts.dropped,
            "the oldest messages for the hub were dropped: there is no room for more"
        );
        // A crash must not bring them back once others were sent in their place.
        self.backend.flushed().await
    }

    /// The partition is kept while the hub thinks.
    async fn while_held<T>(&self, hold: &Hold, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep(Duration::from_millis(LEASE_TTL_MS / 3)) => {
                    let _ = self.backend.renew(&hold.lease, LEASE_TTL_MS).await;
                }
            }
        }
    }

    /// Makes the counts durable with the next flush.
    async fn keep_counts(&self, hold: &mut Hold) -> Result<(), Error> {
        let id = CommitId::random(self.entropy.as_ref());
        let commit = Commit {
            state: vec![hold.counts.put()],
            ..Commit::empty(Arc::clone(&self.topic), id, hold.claim.seq, hold.claim.last)
        };
        self.backend.commit(&hold.lease, Arc::new(commit)).await?;
        hold.claim.seq += 1;
        hold.claim.last = id;
        Ok(())
    }

    /// Takes messages out of it.
    async fn consume(&self, hold: &mut Hold, found: &[Unread]) -> Result<(), Error> {
        let Some(last) = found.last() else { return Ok(()) };
        let id = CommitId::random(self.entropy.as_ref());
        let commit = Commit {
            span: Some(Span {
                from: hold.claim.cursor,
                to: last.after,
                last_entry: last.entry,
                last_entry_uid: last.entry_uid,
            }),
            state: vec![hold.counts.put()],
            returned: found
                .iter()
                .filter_map(|unread| given_back(&unread.message, &self.topic))
                .collect(),
            ..Commit::empty(Arc::clone(&self.topic), id, hold.claim.seq, hold.claim.last)
        };
        self.backend.commit(&hold.lease, Arc::new(commit)).await?;
        hold.claim.seq += 1;
        hold.claim.last = id;
        hold.claim.cursor = last.after;
        self.note(|known| known.counts = hold.counts);
        Ok(())
    }

    /// The sequence in which messages are numbered.
    fn session(&self, counts: &Counts) -> [u8; 16] {
        let mut sha = Sha256::new();
        sha.update(b"skep outbox 1\n");
        sha.update(self.edge);
        sha.update(counts.own_epoch.to_le_bytes());
        sha.update(counts.hub_epoch.to_le_bytes());
        sha.update(self.topic.id.to_string());
        sha.finalize()[..16].try_into().expect("sixteen of 32 bytes")
    }
}

/// No caller waits at the hub: a request's share goes back to the door here.
fn given_back(message: &Message, topic: &TopicSpec) -> Option<Reply> {
    let request = message.request.filter(|request| request.share > 0)?;
    Some(Reply {
        request: request.id,
        result: ReplyResult::Returned {
            stage: topic.id.stage().clone(),
            by: message.uid,
            share: request.share,
        },
        hops: Vec::new(),
    })
}

/// As topics keep them, without what means something here only.
fn frame(found: &[Unread]) -> Bytes {
    let mut run = Run::default();
    for unread in found {
        run.push(&Message {
            request: None,
            ..unread.message.clone()
        });
    }
    let mut frame = FrameBuilder::default();
    for (encoded, size) in run.pieces(0) {
        frame.push(encoded, size);
    }
    frame.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_back() {
        let counts = Counts {
            sent: 1,
            offered: 6,
            handed_over: 2,
            dropped: u64::MAX,
            own_epoch: 4,
            hub_epoch: 5,
            discarded: 7,
            epoch_seen: 8,
        };
        assert_eq!(Counts::read(counts.put().value.as_ref()), Ok(counts));
        assert_eq!(Counts::read(None), Ok(Counts::default()));
        assert!(Counts::read(Some(&Bytes::from_static(b"short"))).is_err());
    }
}
