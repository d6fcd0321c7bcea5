//! A life as pieces, and back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use skep_model::id::{CommitId, Digest, Incarnation, Uid};
use skep_model::message::{Message, Reply, ReplyResult};
use skep_model::scope::{Scope, SwarmId};

use super::actors::{Reason, World, finished, output, put, stage, text};
use super::{Harness, Stop, Verdict, holds, refused, same};
use crate::record::Piece;
use crate::{Accepted, Backend, Error, Once, Parked, Pieces, Refused, TopicSpec, Work};

/// Pieces, without an order that means nothing.
#[derive(Debug, Default, PartialEq)]
pub struct Image {
    messages: BTreeMap<(String, u16, bool), Vec<Message>>,
    parked: BTreeMap<(String, u16, String), Vec<Parked>>,
    rest: BTreeSet<String>,
}

impl Image {
    #[must_use]
    pub fn of(pieces: &[Piece]) -> Self {
        let mut image = Self::default();
        for piece in pieces {
            match piece.clone() {
                Piece::Messages {
                    stage,
                    index,
                    behind,
                    messages,
                } => {
                    let place = (stage.to_string(), index, behind);
                    image.messages.entry(place).or_default().extend(messages);
                }
                Piece::Parked { stage, index, parked } => {
                    let place = (stage.to_string(), index, parked.lane.clone());
                    image.parked.entry(place).or_default().push(parked);
                }
                rest => {
                    image.rest.insert(format!("{rest:?}"));
                }
            }
        }
        image
    }

    /// The same without ids of dead letters, which are given anew where another life has them.
    fn unnumbered(pieces: &[Piece]) -> Self {
        let pieces = pieces.iter().cloned().map(|piece| match piece {
            Piece::DeadLetter { stage, letter, .. } => Piece::DeadLetter { stage, id: 0, letter },
            Piece::Key {
                subject,
                key,
                fingerprint,
                request,
                expires_ms,
                mut reply,
            } => {
                if let Some(ReplyResult::Failed { dead_letter, .. }) = reply.as_mut().map(|r| &mut r.result) {
                    *dead_letter = dead_letter.map(|_| 0);
                }
                Piece::Key {
                    subject,
                    key,
                    fingerprint,
                    request,
                    expires_ms,
                    reply,
                }
            }
            piece => piece,
        });
        Self::of(&pieces.collect::<Vec<_>>())
    }
}

/// # Errors
/// As [`Backend::export`], in words.
pub async fn pieces(backend: &dyn Backend, swarm: &SwarmId) -> Result<Vec<Piece>, String> {
    let mut pieces = backend.export(swarm).await.why()?;
    let mut out = Vec::new();
    while let Some(piece) = pieces.next().await {
        out.push(piece.why()?);
    }
    Ok(out)
}

#[must_use]
pub fn stream(pieces: Vec<Piece>) -> Pieces {
    futures::stream::iter(pieces.into_iter().map(Ok)).boxed()
}

fn another(number: u8) -> SwarmId {
    let scope = Scope::of(skep_model::name::TenantId::default_tenant());
    scope.swarm(&"suite".parse().expect("a name"), Incarnation([number; 16]))
}

const LATER: u64 = 1_900_000_000_000;

fn keyed(key: &str) -> Once {
    Once::Key {
        subject: "door".parse().expect("a subject"),
        key: key.to_owned(),
        fingerprint: Digest([1; 32]),
        expires_ms: LATER,
    }
}

fn session(first: u64) -> Once {
    Once::Session {
        id: Uid([5; 16]),
        first,
        again_max: u64::MAX,
        expires_ms: LATER,
    }
}

/// Something of each kind that a life may have, in stages `a` and `b`.
///
/// # Errors
/// When the backend does not take it.
pub async fn fill(world: &World) -> Verdict {
    let backend = world.backend();
    let (a, b) = (world.spec("a", 3), world.spec("b", 2));
    for key in ["k", "l", "m", "n", "o", "p"] {
        world.words(&a, Some(key), &["1", "2", "3", "4"]).await?;
    }
    world.words(&b, None, &["loose"]).await?;
    let many: Vec<String> = (0..700).map(|n| n.to_string()).collect();
    for some in many.chunks(300) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        world.words(&b, Some("many"), &some).await?;
    }
    let (_, waiting) = world.request("waits", true);
    world.call(&b, vec![waiting], keyed("waiting")).await?.why()?;
    let (answered, request) = world.request("answered", true);
    world.call(&a, vec![request.clone()], keyed("answered")).await?.why()?;
    let some = (0..3).map(|n| world.message(Some("s"), &n.to_string())).collect();
    world.call(&b, some, session(1)).await?.why()?;
    let mut letters = 0;
    for index in 0..3 {
        let mut owner = world.own(&a, index).await?;
        let fetched = owner.fetch(20).await?;
        // Inside of a frame: two of the last are left.
        let mut commit = world.consuming(&owner, &fetched, fetched.messages.len().saturating_sub(2));
        for (n, unread) in (0u32..).zip(fetched.messages.iter().take(3)) {
            commit
                .park
                .push(world.parked(&unread.message, n % 2, LATER + u64::from(n)));
        }
        for unread in fetched.messages.iter().take(2) {
            commit.dead.push(world.letter(Work::Message(unread.message.clone())));
            letters += 1;
        }
        if index == 1 {
            // The reply names the letter that it ended as.
            commit.dead.push(world.letter(Work::Message(request.clone())));
            letters += 1;
            commit.replies.push(Reply {
                request: answered,
                result: ReplyResult::Failed {
                    stage: stage("a"),
                    reason: "fail".to_owned(),
                    detail: String::new(),
                    dead_letter: None,
                },
                hops: Vec::new(),
            });
        }
        commit.set_timers.push(world.timer("k", &format!("t{index}"), 7));
        commit.set_timers.push(world.timer("later", "t", LATER));
        commit
            .outputs
            .push(output(&b, world.message(Some("x"), &format!("of {index}"))));
        for n in 0..40 {
            commit
                .state
                .push(put(&format!("small{index}-{n}"), "n", &n.to_string()));
        }
        for n in 0..10 {
            commit
                .state
                .push(put(&format!("large{index}"), &format!("n{n}"), &"v".repeat(1_500)));
        }
        owner.must(commit).await?;
        if index == 2 {
            backend.mark(&owner.lease, Uid([8; 16])).await.why()?;
        }
        backend.release(&owner.lease).await.why()?;
    }
    let found = backend.dead_letters(&world.swarm, None, 0, 100).await.why()?;
    same!(found.len(), letters, "letters");
    backend.discard_dead_letters(&world.swarm, &[found[0].id]).await.why()?;
    let old = world.spec("old", 1);
    world.own(&old, 0).await?;
    holds!(backend.remove_topic(&old).await.why()?, "it is empty");
    backend.flushed().await.why()
}

pub(super) async fn every_piece_comes_back(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    fill(&world).await?;
    let backend = world.backend();
    let taken = pieces(&*backend, &world.swarm).await?;
    for kind in [
        "Topic",
        "Partition",
        "Messages",
        "Parked",
        "Timer",
        "State",
        "DeadLetter",
        "Key",
        "Session",
        "Removed",
    ] {
        holds!(
            taken.iter().any(|piece| format!("{piece:?}").starts_with(kind)),
            format!("no {kind}")
        );
    }
    same!(
        Image::of(&pieces(&*backend, &world.swarm).await?),
        Image::of(&taken),
        "an export changes nothing"
    );
    let before = backend.status(&world.swarm).await.why()?;
    let (life, copy) = (world.swarm.clone(), another(8));
    let letter = async |swarm: &SwarmId| -> Result<String, String> {
        let found = backend.dead_letters(swarm, None, 0, 100).await.why()?;
        Ok(format!("{:?}", found.iter().map(|l| &l.letter).collect::<Vec<_>>()))
    };
    let letters = letter(&life).await?;
    holds!(
        backend.import(&copy, stream(taken.clone())).await.why()?,
        "there is none"
    );
    same!(letter(&copy).await?, letters, "letters in their order");
    world.swarm = copy.clone();
    let after = backend.status(&world.swarm).await.why()?;
    for (before, after) in before.iter().zip(&after) {
        let counts = |t: &crate::TopicStatus| (t.unread, t.unread_bytes, t.parked, t.timers, t.dead, t.dead_bytes);
        same!(counts(before), counts(after), before.topic.stage());
    }
    // Leases that were held at the copy's moment are none here.
    let (a, b) = (world.spec("a", 3), world.spec("b", 2));
    for index in 0..3 {
        let mut owner = world.own(&a, index).await?;
        let marked = (index == 2).then_some((Uid([8; 16]), 1));
        same!(owner.claim.marked, marked, "marks");
        let fetched = owner.fetch(50).await?;
        holds!(fetched.messages.len() <= 2, "what was consumed stays consumed");
        // A lane whose first one only waits is due; the others wait for their time. So does a timer behind a parked one.
        for parked in &fetched.retries {
            same!(parked.attempts, 0, "due");
        }
        let mut commit = world.consuming(&owner, &fetched, fetched.messages.len());
        commit.retries.extend(fetched.retries.iter().map(finished));
        commit.timers.clone_from(&fetched.timers);
        owner.must(commit).await?;
        let state = backend.state(&a.id, &format!("large{index}")).await.why()?;
        same!(state.len(), 10, "large");
        backend.release(&owner.lease).await.why()?;
    }
    same!(backend.lives().await.why()?, [life.clone(), copy.clone()], "both");
    let owner = world.own(&b, world_partition(&b, "many")).await?;
    let mut got = Vec::new();
    let mut owner = owner;
    loop {
        let fetched = owner.fetch(100).await?;
        if fetched.messages.is_empty() {
            break;
        }
        let ours = fetched
            .messages
            .iter()
            .filter(|u| u.message.key.as_deref() == Some("many"));
        got.extend(ours.map(|u| text(&u.message)));
        owner
            .must(world.consuming(&owner, &fetched, fetched.messages.len()))
            .await?;
    }
    let all: Vec<String> = (0..700).map(|n| n.to_string()).collect();
    same!(got, all, "in order");
    // Repeats are known.
    let (_, again) = world.request("waits", true);
    match world.call(&b, vec![again], keyed("waiting")).await?.why()? {
        Accepted::Duplicate {
            request: Some(_),
            reply: None,
        } => {}
        other => return Err(format!("a key under way: {other:?}")),
    }
    let (_, again) = world.request("answered", true);
    let answer = world.call(&a, vec![again], keyed("answered")).await?.why()?;
    let Accepted::Duplicate { reply: Some(reply), .. } = answer else {
        return Err(format!("an answered key: {answer:?}"));
    };
    let ReplyResult::Failed {
        dead_letter: Some(id), ..
    } = reply.result
    else {
        return Err(format!("its reply: {reply:?}"));
    };
    let found = backend.dead_letters(&copy, None, 0, 100).await.why()?;
    let named = found.iter().find(|l| l.id == id).ok_or("the named letter is missing")?;
    let Work::Message(message) = &named.letter.work else {
        return Err("a message died".to_owned());
    };
    same!(text(message), "answered", "the letter that the reply names");
    let next = vec![world.message(Some("s"), "3")];
    same!(
        world.call(&b, next.clone(), session(3)).await?,
        Ok(Accepted::Appended { skipped: 1 }),
        "known"
    );
    same!(
        world.call(&b, next, session(9)).await?,
        Err(Refused::SessionGap { high: 3, first: 9 }),
        "a gap: what was acknowledged after the copy is lost"
    );
    let old = world.spec("old", 1);
    holds!(world.own(&old, 0).await.is_err(), "what was removed stays removed");
    // The copy of a copy, once the first is gone.
    backend.remove_swarm(&life, false).await.why()?;
    let third = another(9);
    holds!(
        backend.import(&third, stream(taken.clone())).await.why()?,
        "there is none"
    );
    let copied = pieces(&*backend, &third).await?;
    same!(Image::unnumbered(&copied), Image::unnumbered(&taken), "as it was");
    Ok(())
}

fn world_partition(spec: &Arc<TopicSpec>, key: &str) -> u16 {
    spec.partition_of_key(key)
}

pub(super) async fn a_life_with_rows_is_not_imported(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1"]).await?;
    let backend = world.backend();
    let taken = pieces(&*backend, &world.swarm).await?;
    holds!(
        !backend.import(&world.swarm, stream(taken.clone())).await.why()?,
        "it lives"
    );
    same!(
        world.own(&spec, 0).await?.payloads().await?,
        ["1"],
        "nothing was written"
    );
    same!(
        pieces(&*backend, &another(3)).await?,
        [],
        "nothing of what is not there"
    );
    backend.remove_swarm(&world.swarm, false).await.why()?;
    refused!(
        backend.import(&world.swarm, stream(taken)).await,
        Error::Gone,
        "it was removed here"
    );
    refused!(
        backend.export(&world.swarm).await.map(|_| ()),
        Error::Gone,
        "it was removed"
    );
    same!(backend.imports().await.why()?, [], "nothing is set aside");
    Ok(())
}

pub(super) async fn what_is_imported_is_set_aside_until_it_is_used(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    fill(&world).await?;
    let original = world.swarm.clone();
    let taken = pieces(&*world.backend(), &world.swarm).await?;
    let half: Vec<_> = taken.iter().take(taken.len() / 2).cloned().map(Ok).collect();
    let broken = futures::stream::iter(half.into_iter().chain([Err(Error::Unavailable("cut".to_owned()))]));
    let copy = another(8);
    refused!(
        world.backend().import(&copy, broken.boxed()).await,
        Error::Unavailable(_),
        "the stream's error"
    );
    world.swarm = copy.clone();
    let spec = world.spec("a", 3);
    for stop in [None, Some(Stop::Kill)] {
        if let Some(stop) = stop {
            world.backend().flushed().await.why()?;
            world.harness.reopen(stop).await;
        }
        let backend = world.backend();
        let lease = skep_model::id::Token::random(&world.entropy);
        refused!(
            backend.claim(&spec, 0, lease, 1_000).await.map(|_| ()),
            Error::Unavailable(_),
            "half"
        );
        let called = world.words(&spec, Some("k"), &["1"]).await;
        holds!(called.is_err_and(|e| e.contains("Unavailable")), "half");
        same!(
            backend.lives().await.why()?,
            std::slice::from_ref(&original),
            "not a life yet"
        );
        same!(backend.imports().await.why()?, std::slice::from_ref(&copy), "set aside");
        holds!(
            !backend.import(&copy, stream(taken.clone())).await.why()?,
            "there are rows"
        );
    }
    let backend = world.backend();
    backend.discard_import(&copy).await.why()?;
    backend.discard_import(&copy).await.why()?;
    backend.discard_import(&original).await.why()?;
    same!(backend.imports().await.why()?, [], "discarded");
    same!(pieces(&*backend, &copy).await?, [], "nothing is left");
    holds!(
        backend.import(&copy, stream(taken.clone())).await.why()?,
        "as if it had never been"
    );
    same!(
        backend.lives().await.why()?,
        std::slice::from_ref(&original),
        "nobody used it"
    );
    same!(backend.imports().await.why()?, std::slice::from_ref(&copy), "set aside");
    drop(backend);
    world.backend().flushed().await.why()?;
    world.harness.reopen(Stop::Kill).await;
    let owner = world.own(&spec, 0).await?;
    drop(owner);
    let backend = world.backend();
    same!(backend.lives().await.why()?, [original, copy.clone()], "it is used");
    same!(backend.imports().await.why()?, [], "it is used");
    backend.discard_import(&copy).await.why()?;
    holds!(!pieces(&*backend, &copy).await?.is_empty(), "it is no import any more");
    Ok(())
}

/// Each commit adds one to a key's count and one message to the sink: at any one moment there are as many.
pub(super) async fn an_export_is_one_moment(harness: Box<dyn Harness>) -> Verdict {
    const KEYS: usize = 1_500;
    const COMMITS_MAX: usize = 200_000;
    let world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.bounded("b", 1, 10_000_000, 1));
    let mut owner = world.own(&a, 0).await?;
    let mut commit = world.commit(&owner);
    commit
        .state
        .extend((0..KEYS).map(|k| put(&format!("k{k}"), "n", "00000000")));
    owner.must(commit).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    let commits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&commits);
    let working = tokio::spawn(async move {
        let (mut counts, mut made) = (HashMap::<usize, u64>::new(), 0_usize);
        let entropy = skep_model::env::SeededEntropy::new(77);
        while !ended.load(Ordering::SeqCst) {
            counted.store(made, Ordering::SeqCst);
            // A quick store would fill the inbox while a slow machine exports it.
            if made >= COMMITS_MAX {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let key = made * 7 % KEYS;
            let count = counts.entry(key).or_default();
            *count += 1;
            made += 1;
            let id = CommitId::random(&entropy);
            let mut commit = crate::Commit::empty(Arc::clone(&owner.spec), id, owner.claim.seq, owner.claim.last);
            commit.state.push(put(&format!("k{key}"), "n", &format!("{count:08}")));
            let message = Message {
                uid: Uid::random(&entropy),
                key: Some("x".to_owned()),
                headers: Vec::new(),
                payload: Bytes::new(),
                accepted_ms: 0,
                request: None,
                trace: None,
                lineage: None,
                hops: Vec::new(),
            };
            commit.outputs.push(output(&b, message));
            let mut refusals = 0;
            loop {
                match owner.send(commit.clone()).await {
                    Ok(_) => break,
                    // Certainly not done: the same again.
                    Err(Error::Unavailable(_)) if refusals < 10_000 => refusals += 1,
                    Err(e) => return Err(format!("commit {made}: {e:?}")),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::task::yield_now().await;
        }
        Ok(made)
    });
    let mut told = Ok(());
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let taken = pieces(&*world.backend(), &world.swarm).await;
        let taken = match taken {
            Ok(taken) => taken,
            Err(e) => {
                told = Err(e);
                break;
            }
        };
        let mut counted = BTreeMap::new();
        let mut sunk = 0;
        for piece in &taken {
            match piece {
                Piece::State { key, value, .. } => {
                    let count: u64 = String::from_utf8_lossy(value).parse().why()?;
                    counted.insert(key.clone(), count);
                }
                Piece::Messages { messages, .. } => sunk += messages.len() as u64,
                _ => {}
            }
        }
        if counted.len() != KEYS || counted.values().sum::<u64>() != sunk {
            told = Err(format!(
                "{} keys count {} effects, {sunk} are there",
                counted.len(),
                counted.values().sum::<u64>()
            ));
            break;
        }
    }
    // On a slow one they come late.
    for _ in 0..600 {
        if commits.load(Ordering::SeqCst) > 20 || working.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let made = working.await.why()??;
    told?;
    holds!(made > 20, format!("only {made} commits"));
    let status = world.backend().status(&world.swarm).await.why()?;
    same!(status[1].unread, made as u64, "all commits came");
    Ok(())
}
