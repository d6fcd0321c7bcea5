//! `logs`: what Bees said on all nodes, as one stream in the order of time.
//!
//! Each node keeps its own lines and is asked for them. What was kept comes merged; what follows comes as it arrives. A node that does not
//! answer is named in a line among the others and holds nobody up.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use skep_model::id::NodeId;
use skep_proto::v1;
use skep_proto::v1::said_reply::What;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::views::stage_of;
use super::{Keeper, Out, Reply};
use crate::members::Heard;
use crate::peer::ask::{self, ANSWER};
use crate::peer::{Said, remark};

/// Lines that wait for a slow client.
const LINES_MAX: usize = 16;
/// What a tail that was asked for may hold in memory; the oldest lines give way.
const TAIL_BYTES_MAX: usize = 16 << 20;
/// What a line costs beside its text: stage, node, message.
const LINE_OVERHEAD: usize = 256;
/// How often a follower looks who came.
const LOOK: Duration = Duration::from_millis(1_000);

impl Keeper {
    pub(super) async fn log_lines(&self, asked: v1::LogsRequest) -> Reply<Out<v1::LogEntry>> {
        let (name, found, id) = self.find(&asked.swarm).await?;
        // As nodes name it to each other.
        let asked = v1::LogsRequest {
            swarm: id.path().to_string(),
            ..asked
        };
        let stage = stage_of(&name, &found.record, &asked.stage)?;
        let here = self.here.said(&id, stage, asked.tail as usize, asked.follow);
        if !self.members.shares() {
            let lines = here.filter_map(async |what| match what {
                Ok(What::Line(line)) => Some(Ok(line)),
                Ok(What::Live(_)) => None,
                Err(why) => Some(Err(why)),
            });
            return Ok(Response::new(Box::pin(lines)));
        }
        let (tell, told) = mpsc::channel(LINES_MAX);
        let gathering = Gathering {
            keeper: self.clone(),
            asked,
            tell,
            followed: HashMap::new(),
            shown_ms: HashMap::new(),
        };
        tokio::spawn(async move {
            let stop = gathering.keeper.stop.clone();
            let unheard = gathering.tell.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = unheard.closed() => {}
                _ = gathering.run(here) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

/// The client is gone.
struct Unheard;

/// A node's lines.
struct Source {
    id: NodeId,
    name: String,
    /// None once it fell silent.
    said: Option<Said>,
    /// What was shown of it goes up to here.
    shown_ms: u64,
}

impl Source {
    fn sign(&mut self, mut line: v1::LogEntry) -> v1::LogEntry {
        self.shown_ms = self.shown_ms.max(line.at_ms);
        line.node.clone_from(&self.name);
        line
    }
}

struct Gathering {
    keeper: Keeper,
    asked: v1::LogsRequest,
    tell: mpsc::Sender<Result<v1::LogEntry, Status>>,
    /// Whose lines come, each by a task that ends with the node's stream and gives the source back.
    followed: HashMap<NodeId, JoinHandle<Source>>,
    /// Up to when lines were shown of nodes that are followed no more.
    shown_ms: HashMap<NodeId, u64>,
}

impl Gathering {
    async fn run(mut self, here: Said) -> Result<(), Unheard> {
        let others = self.keeper.members.others();
        let opened = join_all(others.iter().map(|node| self.open(node, self.asked.tail))).await;
        let mut sources = vec![Source {
            id: self.keeper.node,
            name: self.keeper.members.name().to_owned(),
            said: Some(here),
            shown_ms: 0,
        }];
        for opened in opened {
            match opened {
                Ok(source) => sources.push(source),
                Err(missing) => self.send(missing).await?,
            }
        }
        self.past(&mut sources).await?;
        if !self.asked.follow {
            return Ok(());
        }
        for source in sources {
            self.follow(source, true);
        }
        self.comers().await
    }

    async fn send(&self, line: v1::LogEntry) -> Result<(), Unheard> {
        self.tell.send(Ok(line)).await.map_err(|_| Unheard)
    }

    async fn open(&self, node: &Heard, tail: u32) -> Result<Source, v1::LogEntry> {
        let asked = v1::LogsRequest {
            tail,
            ..self.asked.clone()
        };
        let name = node.member.name.clone();
        match ask::said(&self.keeper.asking, node, asked).await {
            Ok(said) => Ok(Source {
                id: node.id,
                name,
                said: Some(said),
                shown_ms: self.shown_ms.get(&node.id).copied().unwrap_or_default(),
            }),
            Err(why) => Err(missing(&name, &why)),
        }
    }

    /// What was kept, merged by time: each source tells its own in order.
    async fn past(&self, sources: &mut [Source]) -> Result<(), Unheard> {
        let mut next = Vec::with_capacity(sources.len());
        for source in sources.iter_mut() {
            next.push(self.kept(source).await?);
        }
        let mut tail = Tail::default();
        loop {
            let waiting = next.iter().enumerate();
            let oldest = waiting.filter_map(|(at, line)| Some((line.as_ref()?.at_ms, at))).min();
            let Some((_, at)) = oldest else { break };
            let follower = self.kept(&mut sources[at]).await?;
            let Some(line) = std::mem::replace(&mut next[at], follower) else {
                break;
            };
            match self.asked.tail {
                0 => self.send(line).await?,
                most => tail.push(line, most as usize),
            }
        }
        for line in tail.lines {
            self.send(line).await?;
        }
        Ok(())
    }

    /// The next line that was kept; none when all are told, or when the node fell silent.
    async fn kept(&self, source: &mut Source) -> Result<Option<v1::LogEntry>, Unheard> {
        let Some(said) = &mut source.said else { return Ok(None) };
        let why = match timeout(ANSWER, said.next()).await {
            Ok(Some(Ok(What::Line(line)))) => return Ok(Some(source.sign(line))),
            Ok(Some(Ok(What::Live(_)))) => return Ok(None),
            Ok(Some(Err(why))) => ask::words(&why),
            Ok(None) => "it stopped in the middle".to_owned(),
            Err(_) => format!("it did not go on within {} s", ANSWER.as_secs()),
        };
        source.said = None;
        self.send(missing(&source.name, &why)).await?;
        Ok(None)
    }

    /// Shows what comes from a source. One that is not `live` yet begins with what it keeps, of which some may have been shown before.
    fn follow(&mut self, mut source: Source, mut live: bool) {
        let tell = self.tell.clone();
        let (id, before) = (source.id, source.shown_ms);
        let task = tokio::spawn(async move {
            let Some(mut said) = source.said.take() else {
                return source;
            };
            loop {
                let next = tokio::select! {
                    () = tell.closed() => break,
                    next = said.next() => next,
                };
                match next {
                    Some(Ok(What::Live(_))) => live = true,
                    Some(Ok(What::Line(line))) if !live && line.at_ms <= before => {}
                    Some(Ok(What::Line(line))) => {
                        if tell.send(Ok(source.sign(line))).await.is_err() {
                            break;
                        }
                    }
                    // It is asked again as long as it is thought alive.
                    Some(Err(_)) | None => break,
                }
            }
            source
        });
        self.followed.insert(id, task);
    }

    /// Follows who comes, and who fell silent and answers again.
    async fn comers(&mut self) -> Result<(), Unheard> {
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            let others = self.keeper.members.others();
            for node in &others {
                if let Some(task) = self.followed.get(&node.id)
                    && !task.is_finished()
                {
                    continue;
                }
                if let Some(ended) = self.followed.remove(&node.id)
                    && let Ok(source) = ended.await
                {
                    self.shown_ms.insert(source.id, source.shown_ms);
                }
                // What it said before it was followed is new to this reader, whatever the tail was.
                if let Ok(source) = self.open(node, 0).await {
                    self.follow(source, false);
                }
            }
            // Nobody comes back under the id of one that is gone.
            self.shown_ms.retain(|id, _| others.iter().any(|node| node.id == *id));
        }
    }
}

/// The last lines, within a bound of memory.
#[derive(Default)]
struct Tail {
    lines: VecDeque<v1::LogEntry>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, line: v1::LogEntry, most: usize) {
        self.bytes += size(&line);
        self.lines.push_back(line);
        while self.lines.len() > most || self.bytes > TAIL_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= size(&oldest);
        }
    }
}

/// What a line costs in memory, about.
fn size(line: &v1::LogEntry) -> usize {
    line.text.len() + line.context.len() + LINE_OVERHEAD
}

fn missing(name: &str, why: &str) -> v1::LogEntry {
    remark(format!("what was said on node `{name}` is missing: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_bounded_in_lines_and_in_bytes() {
        let line = |text: &str| remark(text.to_owned());
        let mut tail = Tail::default();
        for n in 0..10 {
            tail.push(line(&n.to_string()), 3);
        }
        let texts: Vec<&str> = tail.lines.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["7", "8", "9"]);
        let long = "x".repeat(1 << 20);
        for _ in 0..40 {
            tail.push(line(&long), usize::MAX);
        }
        assert!(
            tail.bytes <= TAIL_BYTES_MAX && tail.lines.len() >= 15,
            "{}",
            tail.lines.len()
        );
        assert_eq!(tail.bytes, tail.lines.iter().map(size).sum::<usize>());
    }
}
