//! A node of doors and topics only: its stages are echoes.

use std::sync::Arc;
use std::time::Duration;

use skep_gateway::door::{Door, Pass};
use skep_gateway::purse::Purse;
use skep_gateway::{Core, Feed, Route, RouteTable, Settings};
use skep_model::access::{By, Caller, PeerKey, Role, Secret, TokenId};
use skep_model::env::{OsEntropy, SystemClock};
use skep_model::id::{CommitId, Incarnation, Token};
use skep_model::message::{Reply, ReplyResult};
use skep_model::name::{StageName, TenantId};
use skep_model::predict::Models;
use skep_model::scope::{PartitionId, Scope};
use skep_model::span::NoSpans;
use skep_model::swarm::{Bound, KeySource};
use skep_topic::lane::Lane;
use skep_topic::memory::Memory;
use skep_topic::{Backend, Commit, Lease, Span, TopicSpec, Waiters, Want};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Node {
    pub url: String,
    pub address: std::net::SocketAddr,
    pub core: Arc<Core>,
    pub backend: Arc<Memory>,
    pub stop: CancellationToken,
    pub served: tokio::task::JoinHandle<std::io::Result<()>>,
    pub routes: watch::Sender<Arc<RouteTable>>,
    pub door: Arc<Door>,
    _stop: DropGuard,
}

impl Node {
    pub fn waiters(&self) -> &Arc<Waiters> {
        self.backend.waiters()
    }

    /// Messages unread in a Swarm's first inbox.
    pub async fn unread(&self, subject: &str) -> u64 {
        let table = Arc::clone(&self.routes.borrow());
        let route = table.get(&TenantId::default_tenant(), subject).unwrap();
        self.backend
            .status(&route.swarm)
            .await
            .unwrap()
            .iter()
            .map(|t| t.unread)
            .sum()
    }
}

/// Subjects: `echo` (pure, answers), `silent` (pure, never answers), `durable` (answers by commits), `keyed` (by `/user`, nobody
/// reads), `tiny` (an inbox of ten, nobody reads), `leaving` (being deleted), `paused`, `draining`, `judge` (pure; `reject` and `fail`
/// are what they say). To a message with the header `show-headers` the pure ones that answer show its headers. All of the tenant `default`; `acme` and `zeta` have an `echo` each, and `lone` is
/// welcome without a subject.
pub async fn node(settings: Settings) -> Node {
    node_with(settings, None).await
}

/// The same with models.
pub async fn node_with(settings: Settings, models: Option<Arc<dyn Models>>) -> Node {
    let clock = Arc::new(SystemClock);
    let backend = Memory::new(clock.clone(), Arc::new(OsEntropy));
    let (mut table, mut routes) = (RouteTable::default(), Vec::new());
    let tenant = TenantId::default_tenant();
    let scope = Scope::of(tenant.clone());
    let purse: Arc<Purse> = Arc::default();
    let wide = Bound {
        messages: 100_000,
        bytes: 64 << 20,
    };
    for (name, pure, key, inbox) in [
        ("echo", true, None, wide),
        ("silent", true, None, wide),
        ("durable", false, None, wide),
        ("keyed", false, Some(KeySource::Json("/user".into())), wide),
        (
            "tiny",
            false,
            None,
            Bound {
                messages: 10,
                bytes: 1 << 20,
            },
        ),
        ("leaving", true, None, wide),
        ("paused", false, None, wide),
        ("draining", false, None, wide),
        ("judge", true, None, wide),
    ] {
        let swarm = scope.swarm(&name.parse().unwrap(), Incarnation::random(&OsEntropy));
        let stage: skep_model::name::StageName = "first".parse().unwrap();
        let topic = Arc::new(TopicSpec {
            id: swarm.topic(&stage),
            born: 1,
            partitions: 1,
            inbox,
            dead_letters: wide,
        });
        let lane = pure.then(Lane::new);
        if let Some(lane) = lane.as_ref().filter(|_| matches!(name, "echo" | "judge")) {
            let stage = (name == "judge").then(|| stage.clone());
            echo_lane(Arc::clone(lane), Arc::clone(backend.waiters()), stage);
        }
        if name == "durable" {
            tokio::spawn(echo_commits(
                Arc::clone(&backend) as Arc<dyn Backend>,
                Arc::clone(&topic),
                topic.id.partition(0),
            ));
        }
        routes.push(Arc::new(Route {
            swarm,
            subject: name.parse().unwrap(),
            feeds: vec![Feed {
                topic,
                stage,
                key,
                lane,
                when: None,
            }],
            pure,
            open: match name {
                "leaving" => skep_gateway::Open::Deleting,
                "paused" => skep_gateway::Open::Paused,
                "draining" => skep_gateway::Open::Draining,
                _ => skep_gateway::Open::Yes,
            },
            load: Arc::default(),
            purse: Arc::clone(&purse),
        }));
    }
    table.put(&tenant, routes);
    for name in ["acme", "zeta"] {
        let tenant: TenantId = name.parse().unwrap();
        let swarm = Scope::of(tenant.clone()).swarm(&"echo".parse().unwrap(), Incarnation::random(&OsEntropy));
        let stage: StageName = "first".parse().unwrap();
        let lane = Lane::new();
        echo_lane(Arc::clone(&lane), Arc::clone(backend.waiters()), None);
        let topic = Arc::new(TopicSpec {
            id: swarm.topic(&stage),
            born: 1,
            partitions: 1,
            inbox: wide,
            dead_letters: wide,
        });
        let route = Route {
            swarm,
            subject: "echo".parse().unwrap(),
            feeds: vec![Feed {
                topic,
                stage,
                key: None,
                lane: Some(lane),
                when: None,
            }],
            pure: true,
            open: skep_gateway::Open::Yes,
            load: Arc::default(),
            purse: Arc::new(Purse::new(tenant.clone())),
        };
        table.put(&tenant, [Arc::new(route)]);
    }
    let lone: TenantId = "lone".parse().unwrap();
    let purse = Arc::new(Purse::new(lone.clone()));
    table.welcome([(lone, purse)]);
    let (routes, table) = watch::channel(Arc::new(table));
    let core = Core::new(
        Arc::clone(&backend) as Arc<dyn Backend>,
        table,
        clock,
        Arc::new(OsEntropy),
        Arc::new(NoSpans),
        settings,
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let door = Door::open(Arc::new(SystemClock));
    let served = tokio::spawn(skep_gateway::serve(
        skep_gateway::Entrance {
            listener,
            door: Arc::clone(&door),
            witness: None,
            models,
            tls: None,
        },
        Arc::clone(&core),
        tonic::service::Routes::default(),
        stop.clone().cancelled_owned(),
        Duration::from_secs(2),
    ));
    Node {
        url: format!("http://{address}"),
        address,
        core,
        backend,
        _stop: stop.clone().drop_guard(),
        stop,
        served,
        routes,
        door,
    }
}

/// From now on only those with a token come in: one for each of these tenants, in their order.
pub fn close<const N: usize>(node: &Node, tenants: [&str; N]) -> [String; N] {
    let secrets = tenants.map(|tenant| (tenant, Secret::random(TokenId::random(&OsEntropy), &OsEntropy)));
    let passes = secrets.iter().map(|(tenant, secret)| Pass {
        hash: secret.hash(),
        until_ms: None,
        caller: Caller {
            scope: Scope::of(tenant.parse().unwrap()),
            role: Role::Invoke,
            by: By::Token(secret.id),
        },
        name: "somebody".into(),
    });
    node.door
        .close(passes.collect(), Vec::new(), PeerKey::random(&OsEntropy));
    secrets.map(|(_, secret)| secret.text())
}

fn echo_lane(lane: Arc<Lane>, waiters: Arc<Waiters>, judge: Option<StageName>) {
    let bell = Arc::new(Notify::new());
    lane.on_ready({
        let bell = Arc::clone(&bell);
        move || bell.notify_one()
    });
    tokio::spawn(async move {
        loop {
            for taken in lane.take(256, 1 << 20) {
                let Some(request) = taken.message.request else { continue };
                let headers = &taken.message.headers;
                if headers.iter().any(|(name, _)| name == "show-headers") {
                    let shown = serde_json::to_vec(headers).unwrap();
                    waiters.deliver(Reply {
                        request: request.id,
                        result: ReplyResult::Response(shown.into()),
                        hops: Vec::new(),
                    });
                    continue;
                }
                let word = String::from_utf8_lossy(&taken.message.payload).into_owned();
                let failed = judge
                    .clone()
                    .filter(|_| word.starts_with("reject") || word.starts_with("fail"));
                waiters.deliver(Reply {
                    request: request.id,
                    result: match failed {
                        None => ReplyResult::Response(taken.message.payload),
                        Some(stage) => ReplyResult::Failed {
                            stage,
                            reason: word[..4].replace("reje", "reject"),
                            dead_letter: word.starts_with("fail").then_some(7),
                            detail: word,
                        },
                    },
                    hops: Vec::new(),
                });
            }
            if lane.is_empty() {
                bell.notified().await;
            }
        }
    });
}

async fn echo_commits(backend: Arc<dyn Backend>, own: Arc<TopicSpec>, partition: PartitionId) {
    let token = Token::random(&OsEntropy);
    let bell = backend.bell(&partition);
    let claim = backend
        .claim(&own, partition.index(), token, 60_000)
        .await
        .unwrap()
        .unwrap();
    let lease = Lease { partition, token };
    let (mut seq, mut base, mut from) = (claim.seq, claim.last, claim.cursor);
    loop {
        let fetched = backend
            .fetch(
                &lease,
                Want {
                    from,
                    base,
                    messages: 256,
                    bytes: 1 << 20,
                    state: false,
                    state_bytes: 0,
                    timers_max: u64::MAX,
                },
            )
            .await
            .unwrap();
        let Some(last) = fetched.messages.last() else {
            // A bell may have rung before this wait: it keeps one permit.
            let _ = tokio::time::timeout(Duration::from_millis(50), bell.notified()).await;
            continue;
        };
        let id = CommitId::random(&OsEntropy);
        let to = last.after;
        let mut commit = Commit::empty(Arc::clone(&own), id, seq, base);
        commit.span = Some(Span {
            from,
            to,
            last_entry: last.entry,
            last_entry_uid: last.entry_uid,
        });
        commit.replies = fetched
            .messages
            .iter()
            .filter_map(|m| {
                Some(Reply {
                    request: m.message.request?.id,
                    result: ReplyResult::Response(m.message.payload.clone()),
                    hops: Vec::new(),
                })
            })
            .collect();
        backend.commit(&lease, Arc::new(commit)).await.unwrap();
        (seq, base, from) = (seq + 1, id, to);
    }
}

/// Waits until nothing is under way: what a call held is given back a moment after its answer.
pub async fn quiet(node: &Node) {
    for _ in 0..500 {
        if node.waiters().is_empty() && node.core.admit().in_flight() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a place is still taken");
}

/// What a plain HTTP/1.1 client gets.
pub struct Plain {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// The body as it came.
    pub bytes: Vec<u8>,
}

impl Plain {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.head, self.body))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

/// Sends `head` lines and a body on a connection of its own.
pub async fn http(node: &Node, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Plain {
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    let mut head = format!(
        "{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    // A refusal may come before the body is read.
    let _ = socket.write_all(body).await;
    let mut all = Vec::new();
    let _ = socket.read_to_end(&mut all).await;
    let end = all
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a whole answer");
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let bytes = all.split_off(end + 4);
    Plain {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: String::from_utf8_lossy(&bytes).into_owned(),
        bytes,
    }
}
