//! A life from pieces. `aside` in its first key says that nobody uses it yet, and which import may write to it.

use std::collections::{BTreeMap, HashMap};

use redis::Value;
use skep_model::id::{CommitId, Token};
use skep_model::limits;
use skep_model::name::StageName;
use skep_model::scope::SwarmId;

use super::args::Args;
use super::commit::{parked_record, timer_member, timer_record};
use super::publish::fresh;
use super::reply::text;
use super::scripts::Script;
use super::{Core, names, removal, state, views};
use crate::record::{self, FrameBuilder, Piece, Run};
use crate::{Error, Pieces, StatePut, next_pieces};

pub(super) async fn import(core: &Core, swarm: &SwarmId, mut pieces: Pieces) -> Result<bool, Error> {
    let token = Token::random(&*core.entropy);
    // Before its first key: what is in the set and has none is forgotten. Behind it, in case that it was just then.
    set(core, "SADD", names::IMPORTS, swarm).await?;
    if begin(core, swarm, token, true).await?.is_none() {
        return Ok(false);
    }
    set(core, "SADD", names::IMPORTS, swarm).await?;
    while let Some(some) = next_pieces(&mut pieces).await? {
        let (behind, rest): (Vec<_>, Vec<_>) = some
            .into_iter()
            .partition(|piece| matches!(piece, Piece::Messages { behind: true, .. }));
        for (some, behind) in [(rest, false), (behind, true)] {
            if some.is_empty() {
                continue;
            }
            let (mut said, _) = core
                .write(Script::Import, &command(core, swarm, token, some, behind))
                .await?;
            if said.word != "OK" {
                return Err(said.refusal());
            }
        }
    }
    set(core, "SADD", names::LIVES, swarm).await?;
    let mut args = core.args(Script::EndImport, &names::meta(swarm));
    args.bytes(&token.0);
    let (mut said, history) = core.write(Script::EndImport, &args).await?;
    if said.word != "OK" {
        return Err(said.refusal());
    }
    core.safe(history).await?;
    Ok(true)
}

/// Begins a life, or takes one from whoever fills it. Returns its stages; `None`: there is one that may not be taken.
async fn begin(core: &Core, swarm: &SwarmId, token: Token, anew: bool) -> Result<Option<Vec<String>>, Error> {
    let mut args = core.args(Script::BeginImport, &names::meta(swarm));
    args.text(&core.link.store_id()).bytes(&token.0).flag(anew);
    let (mut said, _) = core.write(Script::BeginImport, &args).await?;
    match said.word.as_str() {
        "OK" => said
            .list()?
            .into_iter()
            .map(text)
            .collect::<Result<Vec<_>, _>>()
            .map(Some),
        "TAKEN" => Ok(None),
        _ => Err(said.refusal()),
    }
}

async fn set(core: &Core, how: &str, key: &str, swarm: &SwarmId) -> Result<(), Error> {
    let mut command = redis::cmd(how);
    command.arg(key).arg(names::tag(swarm));
    core.link.send(&command).await?;
    Ok(())
}

pub(super) async fn imports(core: &Core) -> Result<Vec<SwarmId>, Error> {
    let mut aside = Vec::new();
    for swarm in views::members(core, names::IMPORTS).await? {
        let mut command = redis::cmd("HGET");
        command.arg(names::meta(&swarm)).arg("aside");
        let mark = core.link.send(&command).await.map_err(super::fault::of_a_look)?;
        if mark == Value::Nil {
            set(core, "SREM", names::IMPORTS, &swarm).await?;
        } else {
            aside.push(swarm);
        }
    }
    Ok(aside)
}

pub(super) async fn discard(core: &Core, swarm: &SwarmId) -> Result<(), Error> {
    let stages = match begin(core, swarm, Token::random(&*core.entropy), false).await {
        Ok(Some(stages)) => stages,
        Ok(None) | Err(Error::Gone) => return set(core, "SREM", names::IMPORTS, swarm).await,
        Err(e) => return Err(e),
    };
    for stage in stages {
        removal::topic(core, swarm, &stage, None).await?;
    }
    // The last of its keys goes with this.
    let args = core.args(Script::EndLife, &names::meta(swarm));
    core.write(Script::EndLife, &args).await?;
    set(core, "SREM", names::LIVES, swarm).await?;
    set(core, "SREM", names::IMPORTS, swarm).await?;
    core.forget_life(swarm);
    core.safe_now().await
}

/// A section of the arguments: how many, and what each says.
struct Section {
    count: usize,
    args: Vec<Vec<u8>>,
}

impl Section {
    fn new() -> Self {
        Self {
            count: 0,
            args: Vec::new(),
        }
    }

    fn add(&mut self, args: impl IntoIterator<Item = Vec<u8>>) {
        self.count += 1;
        self.args.extend(args);
    }

    fn write(self, to: &mut Args) {
        to.num(self.count);
        for arg in self.args {
            to.bytes(&arg);
        }
    }
}

fn words(text: impl ToString) -> Vec<u8> {
    text.to_string().into_bytes()
}

/// As `scripts/import.lua` takes them.
fn command(core: &Core, swarm: &SwarmId, token: Token, pieces: Vec<Piece>, behind: bool) -> Args {
    let mut args = core.args(Script::Import, &names::meta(swarm));
    args.bytes(&core.link.options.node).bytes(&fresh(&*core.entropy));
    args.num(limits::FRAME_MESSAGES_MAX)
        .num(limits::FRAME_BYTES_MAX)
        .num(limits::FRAME_SPLIT_BYTES);
    args.bytes(&token.0);
    let [mut topics, mut parts, mut frames, mut parked, mut timers] = std::array::from_fn(|_| Section::new());
    let [mut letters, mut keys, mut sessions, mut removed] = std::array::from_fn(|_| Section::new());
    let mut puts: BTreeMap<StageName, Vec<StatePut>> = BTreeMap::new();
    for piece in pieces {
        match piece {
            Piece::Topic { stage, layout } => topics.add([
                words(stage),
                words(layout.born),
                words(layout.generation),
                words(layout.partitions),
                words(layout.former),
            ]),
            Piece::Partition {
                stage,
                index,
                unclean,
                marked,
                sealed,
            } => parts.add([
                words(stage),
                words(index),
                CommitId::random(&*core.entropy).0.to_vec(),
                words(unclean),
                marked.map_or_else(Vec::new, |(uid, _)| uid.0.to_vec()),
                words(marked.map_or(0, |(_, times)| times)),
                words(u8::from(sealed)),
            ]),
            Piece::Messages {
                stage, index, messages, ..
            } => {
                let mut run = Run::default();
                messages.iter().for_each(|message| run.push(message));
                let (mut frame, mut sums) = (FrameBuilder::default(), Vec::new());
                for (bytes, size) in run.pieces(0) {
                    frame.push(bytes, size);
                    let sum = u32::try_from(frame.size()).unwrap_or(u32::MAX);
                    sums.extend_from_slice(&sum.to_le_bytes());
                }
                if frame.messages() == 1 {
                    sums.clear();
                }
                let (count, size) = (frame.messages(), frame.size());
                if count > 0 {
                    let body = frame.finish().to_vec();
                    frames.add([words(stage), words(index), words(count), words(size), sums, body]);
                }
            }
            Piece::Parked {
                stage,
                index,
                parked: entry,
            } => {
                let (due, record) = parked_record(&entry);
                let lane = names::ended(&entry.lane);
                parked.add([words(stage), words(index), lane, words(due), record]);
            }
            Piece::Timer { stage, index, timer } => timers.add([
                words(stage),
                words(index),
                timer_member(&timer.key, &timer.name),
                words(timer.at_ms),
                timer_record(&timer),
            ]),
            Piece::State {
                stage,
                key,
                name,
                value,
            } => puts.entry(stage).or_default().push(StatePut {
                key,
                name,
                value: Some(value),
            }),
            Piece::DeadLetter { stage, id, letter } => {
                letters.add([words(stage), words(id), record::encode_dead_letter(&letter)]);
            }
            Piece::Key {
                subject,
                key,
                fingerprint,
                request,
                expires_ms,
                reply,
            } => keys.add([
                words(subject),
                key.into_bytes(),
                fingerprint.0.to_vec(),
                request.unwrap_or_default().0.to_vec(),
                words(expires_ms),
                reply.map_or_else(Vec::new, |reply| record::encode_reply(&reply)),
            ]),
            Piece::Session { id, high, expires_ms } => {
                sessions.add([id.0.to_vec(), words(high), words(expires_ms)]);
            }
            Piece::Removed { stage, born } => removed.add([words(stage), words(born)]),
        }
    }
    topics.write(&mut args);
    parts.write(&mut args);
    args.flag(behind);
    frames.write(&mut args);
    parked.write(&mut args);
    timers.write(&mut args);
    args.num(puts.len());
    for (stage, puts) in puts {
        args.text(stage.as_str());
        state::write_puts(&mut args, &puts, &HashMap::new());
    }
    letters.write(&mut args);
    keys.write(&mut args);
    sessions.write(&mut args);
    removed.write(&mut args);
    args
}
