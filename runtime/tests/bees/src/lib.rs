//! Bees for the whole-system tests and the bench: a ledger that notices a lost, repeated or swapped message, an echo, and
//! Bees that misbehave on request.

use serde::{Deserialize, Serialize};
use skep::{Emit, Joined, Message, Swarm};

/// One entry: the `n`th of `key`, named `id` wherever it takes effect.
#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    n: u64,
    id: String,
}

/// Keyed by `key`. Takes entry `n` only right after `n - 1`; anything else is a lost, repeated or swapped message, and rejected.
#[skep::bee]
fn ledger(swarm: &mut Swarm, message: Message) -> skep::Result {
    let entry: Entry = message.json()?;
    let last: u64 = swarm.state().get_json("last")?.unwrap_or(0);
    if entry.n != last + 1 {
        return Err(skep::Error::reject(format!("{}: {} after {last}", entry.key, entry.n)));
    }
    let sum: u64 = swarm.state().get_json("sum")?.unwrap_or(0);
    swarm.state().put_json("last", &entry.n)?;
    swarm.state().put_json("sum", &(sum + entry.n))?;
    swarm.emit(Emit::new(message.into_payload()).key(entry.id));
    Ok(())
}

/// Keyed by the effect id: counts how often it took effect. A request is answered with the count.
#[skep::bee]
fn effect(swarm: &mut Swarm, _message: Message) -> skep::Result {
    let times: u64 = swarm.state().get_json("times")?.unwrap_or(0);
    swarm.state().put_json("times", &(times + 1))?;
    swarm.respond((times + 1).to_string());
    Ok(())
}

/// Keeps what it got under the header `name`.
#[skep::bee]
fn hoard(swarm: &mut Swarm, message: Message) -> skep::Result {
    let name = message.header("name").unwrap_or("it").to_owned();
    swarm.state().put(&name, message.payload())?;
    Ok(())
}

/// Answers with what it got.
#[skep::bee]
fn echo(swarm: &mut Swarm, message: Message) {
    swarm.respond(message.into_payload());
}

/// Publishes what it got, under its key.
#[skep::bee]
fn pass(swarm: &mut Swarm, message: Message) {
    let key = message.key().map(str::to_owned);
    let mut emit = Emit::new(message.into_payload());
    if let Some(key) = key {
        emit = emit.key(key);
    }
    swarm.emit(emit);
}

/// Of a join: answers with what came from which side. Entries of a ledger that are the same on all sides go on under their id.
#[skep::bee]
fn both(swarm: &mut Swarm, parts: Joined) -> skep::Result {
    let parts: Vec<(String, Message)> = parts.into_iter().collect();
    if let Some(Ok(entry)) = parts.first().map(|(_, m)| m.json::<Entry>()) {
        if parts.len() != 3 || parts.iter().any(|(_, m)| m.payload() != parts[0].1.payload()) {
            return Err(skep::Error::reject(format!("{} met a stranger", entry.id)));
        }
        swarm.emit(Emit::new(parts[0].1.payload().to_vec()).key(entry.id));
        return Ok(());
    }
    let said: Vec<String> = parts
        .iter()
        .map(|(side, message)| Ok(format!("{side}={}", message.text()?)))
        .collect::<Result<_, skep::Error>>()?;
    swarm.respond(said.join(" "));
    Ok(())
}

/// Keyed: counts, and says nothing.
#[skep::bee]
fn tally(swarm: &mut Swarm, _message: Message) -> skep::Result {
    let count: u64 = swarm.state().get_json("count")?.unwrap_or(0);
    swarm.state().put_json("count", &(count + 1))?;
    Ok(())
}

/// Keyed: counts how often it came by, and publishes what it got.
#[skep::bee]
fn round(swarm: &mut Swarm, message: Message) -> skep::Result {
    let times: u64 = swarm.state().get_json("times")?.unwrap_or(0);
    swarm.state().put_json("times", &(times + 1))?;
    swarm.emit(Emit::new(message.into_payload()));
    Ok(())
}

/// Keyed: counts, 10 ms a message. A request is answered with the count.
#[skep::bee]
fn plodder(swarm: &mut Swarm, _message: Message) -> skep::Result {
    std::thread::sleep(std::time::Duration::from_millis(10));
    let count: u64 = swarm.state().get_json("count")?.unwrap_or(0);
    swarm.state().put_json("count", &(count + 1))?;
    swarm.respond((count + 1).to_string());
    Ok(())
}

/// Answers with what it got, after 2 ms in which it does nothing: what it can do at most does not depend on the machine.
#[skep::bee]
fn nap(swarm: &mut Swarm, message: Message) {
    std::thread::sleep(std::time::Duration::from_millis(2));
    swarm.respond(message.into_payload());
}

/// What `parrot` is to do.
#[derive(Deserialize)]
#[serde(default)]
struct Recital {
    parts: u64,
    bytes: usize,
    /// Before each part but the first.
    sleep_ms: u64,
    /// Then.
    then: String,
}

impl Default for Recital {
    fn default() -> Self {
        Self {
            parts: 3,
            bytes: 0,
            sleep_ms: 0,
            then: String::new(),
        }
    }
}

/// Sends numbered parts of its response, padded to `bytes`, and then ends as it is told.
#[skep::bee]
fn parrot(swarm: &mut Swarm, message: Message) -> skep::Result {
    let recital: Recital = message.json()?;
    if recital.then == "retry-first" && swarm.attempt() == 1 {
        return Err(skep::Error::fail("first", "as the payload said"));
    }
    for n in 0..recital.parts {
        if n > 0 && recital.sleep_ms > 0 {
            std::thread::sleep(std::time::Duration::from_millis(recital.sleep_ms));
        }
        let mut part = format!("{n};").into_bytes();
        part.resize(part.len().max(recital.bytes), b'.');
        if let Err(error) = swarm.reply_part(&part) {
            skep::log::info!("part {n}: {error}");
            return Err(skep::Error::fail("part", error.to_string()));
        }
    }
    match recital.then.as_str() {
        "respond" => swarm.respond("that was all"),
        "publish" => swarm.publish("the next one goes on"),
        "fail" => return Err(skep::Error::fail("told-to", "the payload said so")),
        "retry" => return Err(skep::Error::retry_after(std::time::Duration::from_millis(1))),
        "panic" => panic!("the parrot panicked as it was told"),
        _ => {}
    }
    Ok(())
}

/// Knows a secret, `api-key`, and gives it away in every way but the one that is its own affair.
#[skep::bee]
fn gossip(swarm: &mut Swarm, message: Message) -> skep::Result {
    let what = message.text()?.to_owned();
    let name = what.strip_prefix("read ").unwrap_or("api-key");
    let secret = swarm.secret(name)?;
    let text = secret.text().into_owned();
    skep::log::info!("the key is {text}, shown as {secret:?}");
    println!("on stdout: {text}");
    eprintln!("on stderr: {text}");
    match what.as_str() {
        "fail" => Err(skep::Error::fail("upstream", format!("refused {text}"))),
        "reject" => Err(skep::Error::reject(format!("{text} is not welcome"))),
        "panic" => panic!("with {text} in hand"),
        _ => {
            swarm.respond(text);
            Ok(())
        }
    }
}

/// Does what the payload says; anything else is echoed.
#[skep::bee]
fn rascal(swarm: &mut Swarm, message: Message) -> skep::Result {
    let what = message.text()?.to_owned();
    match what.as_str() {
        "panic" => panic!("the rascal panicked as it was told"),
        "loop" => loop {
            std::hint::black_box(0);
        },
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(3_600)),
        "memory" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1u8; 1 << 20]);
                std::hint::black_box(&hoard);
            }
        }
        "stack" => {
            fn deeper(n: u64) -> u64 {
                let frame = [n; 64];
                std::hint::black_box(&frame);
                if n == u64::MAX { 0 } else { deeper(n + 1) + frame[1] }
            }
            swarm.respond(deeper(0).to_string());
        }
        "stderr" => {
            for _ in 0..100_000 {
                eprintln!("{}", "noise ".repeat(100));
            }
        }
        "output" => {
            for _ in 0..4_000 {
                swarm.publish(vec![0u8; 256 << 10]);
            }
        }
        "fail" => return Err(skep::Error::fail("told-to", "the payload said so")),
        "reject" => return Err(skep::Error::reject("the payload said so")),
        _ if what.starts_with("slow") => std::thread::sleep(std::time::Duration::from_millis(200)),
        _ => {}
    }
    swarm.respond(what);
    Ok(())
}

/// Asks a model as often as the first four bytes say (little-endian), with the rest as FP32 rows of 784: what one inference costs inside a Bee.
#[skep::bee]
fn infer(swarm: &mut Swarm, message: Message) -> skep::Result {
    let (count, data) = message.payload().split_first_chunk().unwrap_or((&[0; 4], &[]));
    let values: Vec<f32> = data
        .as_chunks()
        .0
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect();
    let mut labels = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let image = skep::Tensor::f32([values.len() as u64 / 784, 784], &values);
        labels = skep::model("digits")?
            .predict([("image", image)])?
            .get("label")?
            .i64s()?;
    }
    swarm.respond_json(&labels)?;
    Ok(())
}
