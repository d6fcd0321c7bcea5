//! A connection, from its first byte: HTTP/1.1 or HTTP/2, the door, paths, headers, bodies, and every service of a Gateway behind them.
//!
//! The node has an open door, the subjects `echo` (pure) and `durable` (by commits), both of which answer with what they were sent, and the model
//! `echo` (FP32 `x` to `y`).

use std::cell::RefCell;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_gateway::door::Door;
use skep_gateway::purse::Purse;
use skep_gateway::{Core, Feed, Open, Port, Route, RouteTable, Settings};
use skep_model::env::{Clock, ManualClock, SeededEntropy};
use skep_model::error::ErrorKind;
use skep_model::id::{CommitId, Digest, Incarnation, Token};
use skep_model::message::{Reply, ReplyResult, Request};
use skep_model::name::{ModelRef, TenantId};
use skep_model::predict::{Later, ModelVersion, Models, PredictError, Tensors};
use skep_model::scope::Scope;
use skep_model::span::NoSpans;
use skep_model::swarm::Bound;
use skep_model::tensor::{Port as Side, Signature, TensorType};
use skep_topic::lane::Lane;
use skep_topic::memory::Memory;
use skep_topic::{Backend, Commit, Lease, Span, TopicSpec, Waiters, Want};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How a connection of HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// So many connections to one node: what it keeps of them (keys, sessions) stays small.
const CONNECTIONS: u32 = 4_096;
/// The longest that what a call held may stay after its connection ended.
const GIVEN_BACK: Duration = Duration::from_secs(2);
/// Turns of the runtime after which a connection has answered all that it will.
const TURNS: usize = 32;
const ANSWER_BYTES_MAX: u64 = 4 << 20;

struct Node {
    runtime: Runtime,
    port: Port,
    core: Arc<Core>,
    backend: Arc<Memory>,
    left: u32,
}

thread_local! {
    static NODE: RefCell<Option<Node>> = const { RefCell::new(None) };
}

pub fn run(bytes: &[u8]) -> bool {
    NODE.with_borrow_mut(|node| {
        if node.as_ref().is_none_or(|node| node.left == 0) {
            *node = None;
            *node = Some(Node::new());
        }
        let node = node.as_mut().expect("it was made above");
        node.left -= 1;
        node.connection(bytes)
    })
}

impl Node {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (port, core, backend) = runtime.block_on(node());
        Self {
            runtime,
            port,
            core,
            backend,
            left: CONNECTIONS,
        }
    }

    fn connection(&self, bytes: &[u8]) -> bool {
        let answer = self.runtime.block_on(async {
            let (client, server) = tokio::io::duplex(bytes.len().max(64 << 10));
            let (read, mut write) = tokio::io::split(client);
            let talk = async {
                // The node may close before all was said.
                let _ = write.write_all(bytes).await;
                // Whoever says no more goes, and their calls with them: so all that is under way is let come as far as it can first. Nothing here
                // waits for time.
                for _ in 0..TURNS {
                    tokio::task::yield_now().await;
                }
                let _ = write.shutdown().await;
                let mut answer = Vec::new();
                let _ = read.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await;
                answer
            };
            let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
            let served = self.port.connection(server, from, CancellationToken::new());
            let (answer, ()) = tokio::join!(talk, served);
            self.quiet().await;
            answer
        });
        if bytes.starts_with(PREFACE) {
            // The second frame of an answer, if there is one, is no GOAWAY: something was taken.
            return answer.len() > 64;
        }
        if answer.is_empty() {
            return false;
        }
        let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
        let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
        let shown = || String::from_utf8_lossy(&answer[..answer.len().min(512)]).into_owned();
        let status = status.unwrap_or_else(|| panic!("no answer of HTTP: {}", shown()));
        assert!((100..600).contains(&status) && status != 500, "a defect: {}", shown());
        status < 400
    }

    /// What a call held is given back.
    async fn quiet(&self) {
        let held = || {
            (
                self.core.admit().in_flight(),
                self.core.admit().bytes(),
                self.backend.waiters().len(),
            )
        };
        let since = Instant::now();
        while held() != (0, 0, 0) {
            assert!(
                since.elapsed() < GIVEN_BACK,
                "calls, bytes and waiters that stay: {:?}",
                held()
            );
            tokio::task::yield_now().await;
        }
    }
}

async fn node() -> (Port, Arc<Core>, Arc<Memory>) {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1_800_000_000_000));
    let entropy = Arc::new(SeededEntropy::new(7));
    let backend = Memory::new(Arc::clone(&clock), entropy.clone());
    let tenant = TenantId::default_tenant();
    let (mut table, mut routes) = (RouteTable::default(), Vec::new());
    let wide = Bound {
        messages: 1_000,
        bytes: 4 << 20,
    };
    for (name, pure) in [("echo", true), ("durable", false)] {
        let swarm = Scope::of(tenant.clone()).swarm(&name.parse().expect("a name"), Incarnation::random(&*entropy));
        let stage: skep_model::name::StageName = "first".parse().expect("a name");
        let topic = Arc::new(TopicSpec {
            id: swarm.topic(&stage),
            born: 1,
            partitions: 1,
            inbox: wide,
            dead_letters: wide,
        });
        let lane = pure.then(Lane::new);
        // A call with an idempotency key takes the durable way, of a pure subject too.
        tokio::spawn(commits(Arc::clone(&backend), Arc::clone(&topic), entropy.clone()));
        if let Some(lane) = &lane {
            tokio::spawn(echo(Arc::clone(lane), Arc::clone(backend.waiters())));
        }
        let route = Route {
            swarm,
            subject: name.parse().expect("a name"),
            feeds: vec![Feed {
                topic,
                stage,
                key: None,
                lane,
                when: None,
            }],
            pure,
            open: Open::Yes,
            load: Arc::default(),
            purse: Arc::<Purse>::default(),
        };
        routes.push(Arc::new(route));
    }
    table.put(&tenant, routes);
    // Its sender may go: the table stays as it is.
    let (_, table) = watch::channel(Arc::new(table));
    let settings = Settings::default();
    let core = Core::new(
        Arc::clone(&backend) as Arc<dyn Backend>,
        table,
        Arc::clone(&clock),
        entropy,
        Arc::new(NoSpans),
        settings,
    );
    core.set_ready(true);
    let models: Arc<dyn Models> = Arc::new(Echo::new());
    let port = Port::new(
        &core,
        Door::open(clock),
        None,
        Some(models),
        tonic::service::Routes::default(),
    )
    .await
    .expect("a port");
    (port, core, backend)
}

fn answer(request: &Request, payload: skep_model::Bytes) -> Reply {
    Reply {
        request: request.id,
        result: ReplyResult::Response(payload),
        hops: Vec::new(),
    }
}

async fn echo(lane: Arc<Lane>, waiters: Arc<Waiters>) {
    let bell = Arc::new(Notify::new());
    let ring = Arc::clone(&bell);
    lane.on_ready(move || ring.notify_one());
    loop {
        for taken in lane.take(256, 1 << 20) {
            if let Some(request) = taken.message.request {
                waiters.deliver(answer(&request, taken.message.payload));
            }
        }
        if lane.is_empty() {
            bell.notified().await;
        }
    }
}

/// The owner of a partition, whose stage answers with what it was sent.
async fn commits(backend: Arc<Memory>, own: Arc<TopicSpec>, entropy: Arc<SeededEntropy>) {
    let (partition, token) = (own.id.partition(0), Token::random(&*entropy));
    let bell = backend.bell(&partition);
    let claimed = backend.claim(&own, partition.index(), token, 60_000).await;
    let claim = claimed.expect("a claim").expect("nobody else claims");
    let lease = Lease { partition, token };
    let (mut seq, mut base, mut from) = (claim.seq, claim.last, claim.cursor);
    loop {
        let want = Want {
            from,
            base,
            messages: 256,
            bytes: 1 << 20,
            state: false,
            state_bytes: 0,
            timers_max: u64::MAX,
        };
        let fetched = backend.fetch(&lease, want).await.expect("its partition");
        let Some(last) = fetched.messages.last() else {
            bell.notified().await;
            continue;
        };
        let (id, to) = (CommitId::random(&*entropy), last.after);
        let mut commit = Commit::empty(Arc::clone(&own), id, seq, base);
        commit.span = Some(Span {
            from,
            to,
            last_entry: last.entry,
            last_entry_uid: last.entry_uid,
        });
        let replies = fetched.messages.iter().map(|unread| &unread.message);
        commit.replies = replies
            .filter_map(|message| Some(answer(message.request.as_ref()?, message.payload.clone())))
            .collect();
        backend.commit(&lease, Arc::new(commit)).await.expect("its partition");
        (seq, base, from) = (seq + 1, id, to);
    }
}

/// One model, which gives what it takes.
#[derive(Debug)]
struct Echo(Arc<ModelVersion>);

impl Echo {
    fn new() -> Self {
        let side = |name: &str| Side {
            name: name.to_owned(),
            kind: TensorType::Fp32,
            shape: vec![None, Some(2)],
        };
        Self(Arc::new(ModelVersion {
            name: "echo".parse().expect("a name"),
            digest: Digest::of(b"echo"),
            tags: vec!["latest".to_owned()],
            signature: Signature {
                inputs: vec![side("x")],
                outputs: vec![side("y")],
            },
        }))
    }
}

impl Models for Echo {
    fn find<'a>(&'a self, _: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        let found = (model.name == self.0.name).then(|| Arc::clone(&self.0));
        Box::pin(ready(
            found.ok_or_else(|| PredictError::new(ErrorKind::NotFound, "no such model")),
        ))
    }

    fn list<'a>(&'a self, _: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        Box::pin(ready(Ok(vec![Arc::clone(&self.0)])))
    }

    fn load<'a>(&'a self, _: &'a TenantId, _: &'a ModelVersion) -> Later<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn predict<'a>(
        &'a self,
        _: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        _: Option<Instant>,
    ) -> Later<'a, Tensors> {
        let checked = model.signature.check(&inputs);
        Box::pin(ready(match checked {
            Ok(_) => Ok(inputs.into_iter().map(|(_, tensor)| ("y".to_owned(), tensor)).collect()),
            Err(why) => Err(PredictError::new(ErrorKind::Invalid, why.to_string())),
        }))
    }
}
