//! What a node does beside its operations: it hears bells, and once a second looks for what a lost one would have said.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use redis::Value;
use redis::aio::PubSub;
use skep_model::id::RequestId;
use skep_model::limits;
use skep_model::scope::SwarmId;

use super::link::Pair;
use super::options::StoreClock;
use super::publish::decode_reply;
use super::reply::{bytes, list, number, text};
use super::scripts::Script;
use super::{Core, names, parts};
use crate::Error;

/// Subscribed on a connection of its own, which is made anew for as long as the store is open.
pub(super) async fn listen(core: Arc<Core>) {
    let mut wait = limits::RECONNECT_FIRST_MS;
    loop {
        let connect = async { core.link.client().ok()?.get_async_pubsub().await.ok() };
        if let Ok(Some(pubsub)) = tokio::time::timeout(core.link.options.connect_timeout, connect).await {
            wait = limits::RECONNECT_FIRST_MS;
            if hear(&core, pubsub).await.is_err() {
                tracing::debug!("the bells' connection ended");
            }
        }
        tokio::time::sleep(Duration::from_millis(wait / 2 + core.chance(wait))).await;
        wait = (wait * 2).min(limits::RECONNECT_MAX_MS);
    }
}

async fn hear(core: &Arc<Core>, pubsub: PubSub) -> redis::RedisResult<()> {
    let (mut sink, mut stream) = pubsub.split();
    let home = names::node(&core.link.options.node);
    let home_of_parts = names::parts(&core.link.options.node);
    sink.subscribe(&[home.as_str(), home_of_parts.as_str(), names::CATALOG_BELL])
        .await?;
    let mut heard: HashSet<String> = HashSet::new();
    let mut first = true;
    loop {
        let tags = core.bells.tags();
        let fresh: Vec<String> = tags.difference(&heard).map(|tag| names::bell(tag)).collect();
        let old: Vec<String> = heard.difference(&tags).map(|tag| names::bell(tag)).collect();
        if !fresh.is_empty() {
            sink.subscribe(fresh).await?;
        }
        if !old.is_empty() {
            sink.unsubscribe(old).await?;
        }
        heard = tags;
        if std::mem::take(&mut first) {
            // What rang while nobody listened.
            core.bells.ring_everything();
        }
        // A connection that is only read would not notice that its other end is gone.
        let quiet = tokio::time::sleep(Duration::from_millis(limits::LISTEN_PING_MS));
        tokio::pin!(quiet);
        loop {
            tokio::select! {
                message = stream.next() => {
                    let Some(message) = message else { return Ok(()) };
                    if message.get_channel_name() == home {
                        core.delivered(message.get_payload_bytes());
                    } else if message.get_channel_name() == home_of_parts {
                        parts::came(core, message.get_payload_bytes());
                    } else {
                        rung(core, message.get_channel_name(), message.get_payload_bytes());
                    }
                }
                () = core.bells.wanted.notified() => break,
                () = &mut quiet => {
                    let ping = tokio::time::timeout(core.link.options.response_timeout, sink.ping::<Value>());
                    if !matches!(ping.await, Ok(Ok(_))) {
                        return Ok(());
                    }
                    break;
                }
            }
        }
    }
}

/// `sk:{tag}:bell` says: who rings (8 bytes), then lines: `b` a partition, `r` room of a stage, `t` a stage that is gone, `g` a life that is.
fn rung(core: &Core, channel: &str, payload: &[u8]) {
    let Some((node, lines)) = payload.split_at_checked(8) else {
        return;
    };
    if node == core.link.options.node {
        // Rung here already, when it happened.
        return;
    }
    if channel == names::CATALOG_BELL {
        core.bells.ring_catalog();
        return;
    }
    let tag = channel.strip_prefix("sk:{").and_then(|c| c.strip_suffix("}:bell"));
    let Some(swarm) = tag.and_then(|tag| core.bells.swarm(tag)) else {
        return;
    };
    let Ok(lines) = std::str::from_utf8(lines) else { return };
    for line in lines.lines() {
        match line.split_at_checked(1) {
            Some(("b", member)) => core.bells.ring_member(&swarm, member),
            Some(("r", stage)) => {
                if let Ok(stage) = stage.parse() {
                    core.bells.ring_room(&swarm.topic(&stage));
                }
            }
            Some(("t", stage)) => {
                if let Ok(stage) = stage.parse() {
                    core.bells.ring_topic(&swarm.topic(&stage));
                }
            }
            Some(("g", _)) => core.bells.forget(&swarm),
            _ => {}
        }
    }
}

/// Looks at the store once in a while: is it still ours, has it memory, is there work that no bell told of, did a reply get lost.
pub(super) async fn tick(core: Arc<Core>) {
    loop {
        let wait = limits::REDIS_SCAN_MS * 3 / 4 + core.chance(limits::REDIS_SCAN_MS / 2);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        if let Err(error) = look(&core).await {
            tracing::debug!(%error, "a look at the store failed");
        }
    }
}

async fn look(core: &Core) -> Result<(), Error> {
    core.link.check().await?;
    let mut most = 0;
    for pair in core.link.pairs()?.all() {
        // Another server of a cluster goes on.
        let looked = async {
            let (percent, now) = memory_and_time(core, pair).await?;
            most = most.max(percent);
            ready(core, pair, now).await
        };
        if let Err(error) = looked.await {
            tracing::debug!(%error, "a look at a server failed");
        }
    }
    remember_memory(core, most);
    replies(core).await
}

/// How much of a server's memory is used, and its time.
async fn memory_and_time(core: &Core, pair: &Pair) -> Result<(u64, u64), Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("memory");
    pipe.cmd("TIME");
    let mut answer = core.link.send_to(pair, &pipe, 2).await?;
    let time = list(answer.pop().unwrap_or(Value::Nil))?;
    let mut time = time.into_iter().map(number);
    let mut next = || time.next().unwrap_or(Ok(0));
    let server = next()? * 1_000 + next()? / 1_000;
    let info = text(answer.pop().unwrap_or(Value::Nil))?;
    let field = |name: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    let (used, max) = (field("used_memory:"), field("maxmemory:"));
    let percent = (used * 100).checked_div(max).unwrap_or(0);
    let now = match &core.link.options.clock {
        StoreClock::Server => server,
        StoreClock::Ahead(ms) => server + ms.load(Ordering::SeqCst),
        StoreClock::Manual(clock) => clock.now_ms(),
    };
    Ok((percent, now))
}

/// Refuses appends from [`limits::REDIS_MEMORY_PERCENT`] on, so that what is queued has room to drain. In a cluster the fullest server
/// counts.
fn remember_memory(core: &Core, percent: u64) {
    let was = core.memory_percent.swap(percent, Ordering::Relaxed);
    if percent >= limits::REDIS_MEMORY_PERCENT && was < limits::REDIS_MEMORY_PERCENT {
        tracing::warn!(
            percent,
            "Redis is short of memory: new work is refused, queued work drains"
        );
    }
}

/// One short command a Swarm, in one pipeline; nothing is asked for a partition by itself.
async fn ready(core: &Core, pair: &Pair, now: u64) -> Result<(), Error> {
    let tags = core.bells.tags().into_iter();
    let tags: Vec<String> = tags.filter(|tag| core.link.serves(pair, &names::ready(tag))).collect();
    for tags in tags.chunks(limits::REDIS_SCAN_SWARMS_MAX) {
        let mut pipe = redis::pipe();
        for tag in tags {
            let most = limits::SWARM_PARTITIONS_MAX;
            let cmd = pipe.cmd("ZRANGEBYSCORE").arg(names::ready(tag)).arg("-inf").arg(now);
            cmd.arg("LIMIT").arg(0).arg(most);
        }
        for (tag, members) in tags.iter().zip(core.link.send_to(pair, &pipe, tags.len()).await?) {
            let Some(swarm) = core.bells.swarm(tag) else { continue };
            for member in list(members)? {
                core.bells.ring_member(&swarm, &text(member)?);
            }
        }
    }
    Ok(())
}

/// Calls that have waited for a while: their reply may lie in the store, its push lost.
async fn replies(core: &Core) -> Result<(), Error> {
    let mut asked: HashMap<SwarmId, Vec<RequestId>> = HashMap::new();
    {
        let mut awaited = core.awaited();
        let now = Instant::now();
        awaited.retain(|request, (_, since)| {
            // Whoever learns of a running call by its idempotency key begins to wait a moment later.
            core.waiters.is_waiting(*request) || now.duration_since(*since) < Duration::from_secs(5)
        });
        for (request, (swarm, since)) in awaited.iter() {
            if now.duration_since(*since) > Duration::from_millis(limits::REDIS_SCAN_MS)
                && core.waiters.is_waiting(*request)
            {
                asked.entry(swarm.clone()).or_default().push(*request);
            }
        }
    }
    for (swarm, requests) in asked {
        for requests in requests.chunks(limits::REPLIES_ASKED_MAX) {
            let mut args = core.args(Script::Replies, &names::meta(&swarm));
            args.num(requests.len());
            for request in requests {
                args.bytes(&request.0);
            }
            let (mut said, history) = core.write(Script::Replies, &args).await?;
            let mut found = Vec::new();
            for stored in said.list()? {
                let stored = bytes(stored)?;
                if !stored.is_empty() {
                    found.push(decode_reply(stored)?);
                }
            }
            if !found.is_empty() {
                core.gate.pass(&core.link, history).await?;
                for reply in found {
                    core.answer(reply);
                }
            }
        }
    }
    Ok(())
}
