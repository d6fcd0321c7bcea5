//! One tenant's process, as the node has it: started, asked whether it is there, fed with sockets, and ended.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skep_model::id::Digest;
use skep_model::limits::{
    APART_BESIDE_BYTES, APART_CALLS_MAX, APART_LISTS_BYTES_MAX, APART_LOOK_MS, APART_NEWS_A_SECOND, APART_NEWS_BURST,
    APART_NEWS_BYTES_MAX, APART_PING_MS, APART_QUEUE_BYTES, APART_SILENCE_MS, APART_SOCKETS_KEPT, APART_START_MS,
    APART_UNREAD_BYTES_MAX, MODULES_BYTES_DEFAULT,
};
use skep_model::name::TenantId;
use tokio::process::Child;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::link::{Bounds, Link, Room};
use super::messages::{Hello, News, Order, Used};
use crate::artifact::Artifact;
use crate::share::{Meter, Share};

/// How much of what it says on its standard error is kept: the last lines.
const STDERR_BYTES: usize = 4 << 10;
/// From so many on, meters of Bees that went are let go.
const METERS_KEPT: usize = 4_096;

/// One that runs, or did: `gone` says which.
pub(super) struct Process {
    pub(super) tenant: TenantId,
    pub(super) pid: u32,
    pub(super) began: Instant,
    orders: mpsc::UnboundedSender<(Order, Option<OwnedFd>)>,
    /// Places for calls.
    pub(super) calls: Semaphore,
    sockets: Mutex<Vec<StdStream>>,
    pub(super) room: Room,
    /// Which tenant of that name it was started for.
    pub(super) born: u64,
    /// Native code that it was handed: the same files again for whoever asks again, so that what it keeps of them is known.
    codes: Mutex<HashMap<Digest, Artifact>>,
    /// It has ended, or is about to be killed.
    pub(super) gone: CancellationToken,
    /// Nothing of it is left.
    pub(super) reaped: CancellationToken,
    /// Why it was killed, and whether that is its own fault.
    why: Mutex<Option<(String, bool)>>,
    under_way: AtomicUsize,
    /// When a call ended last, ms since `began`.
    used_ms: AtomicU64,
    /// Where what its Bees use is counted.
    meters: Mutex<HashMap<u64, Arc<Meter>>>,
    share: Arc<Share>,
}

/// A call under way.
pub(super) struct Busy(Arc<Process>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What it is to be.
pub(super) struct Start {
    pub(super) hello: Hello,
    pub(super) share: Arc<Share>,
    /// What its tenant's Bees may grow to where no limit is set, for all instances together, bytes.
    pub(super) memory_bytes: u64,
    /// Among those that a node may have. Given back when nothing is left of the process.
    pub(super) place: OwnedSemaphorePermit,
}

impl Process {
    /// Takes a started child into care.
    pub(super) async fn new(mut child: Child, control: StdStream, start: Start) -> io::Result<Arc<Self>> {
        let Start {
            hello,
            share,
            memory_bytes,
            place,
        } = start;
        let room = Room::new(APART_UNREAD_BYTES_MAX);
        let said = said(child.stderr.take());
        let mut link = Link::new(control, bounds(&room, APART_NEWS_BYTES_MAX))?;
        let tenant = hello.tenant.clone();
        let limits = hello.limits;
        link.put(&Order::Hello(hello), Vec::new())?;
        let ready = tokio::time::timeout(Duration::from_millis(APART_START_MS), link.next::<News>()).await;
        match ready {
            Ok(Ok(Some(News::Ready))) => {}
            told => {
                let _ = child.start_kill();
                let status = child.wait().await;
                let words = last(&said);
                let how = match (told, status) {
                    (Err(_), _) => format!("it was not ready within {APART_START_MS} ms"),
                    (Ok(Err(e)), _) => e.to_string(),
                    (_, Ok(status)) => status.to_string(),
                    (_, Err(e)) => e.to_string(),
                };
                return Err(io::Error::other(format!("it ended at its start ({how}): {words}")));
            }
        }
        // Who sends an order holds one of the places for calls. Calls that were given up may leave theirs behind, until a process that takes none is
        // found silent and killed.
        let (orders, ordered) = mpsc::unbounded_channel();
        let process = Arc::new(Self {
            tenant,
            pid: child.id().unwrap_or(0),
            began: Instant::now(),
            orders,
            calls: Semaphore::new(APART_CALLS_MAX),
            sockets: Mutex::default(),
            room,
            born: share.born(),
            codes: Mutex::default(),
            gone: CancellationToken::new(),
            reaped: CancellationToken::new(),
            why: Mutex::default(),
            under_way: AtomicUsize::new(0),
            used_ms: AtomicU64::new(0),
            meters: Mutex::default(),
            share,
        });
        let care = Care {
            process: Arc::clone(&process),
            child,
            link,
            said,
            limits,
            memory_bytes,
            _place: place,
        };
        tokio::spawn(care.take(ordered));
        Ok(process)
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<StdStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meters(&self) -> MutexGuard<'_, HashMap<u64, Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// How long nobody has called for, where nobody does.
    pub(super) fn idle(&self) -> Option<Duration> {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let used = Duration::from_millis(self.used_ms.load(Ordering::Relaxed));
        Some(self.began.elapsed().saturating_sub(used))
    }

    /// A socket for a call, on the runtime that it is called on. `frame`: the most of one frame that comes.
    pub(super) fn link(&self, frame: usize) -> io::Result<Link> {
        let kept = self.sockets().pop();
        let own = match kept {
            Some(kept) => kept,
            None => {
                let (own, its) = StdStream::pair()?;
                let gone = |_| io::Error::other("it has ended");
                self.orders.send((Order::Call, Some(its.into()))).map_err(gone)?;
                own
            }
        };
        Link::new(own, bounds(&self.room, frame))
    }

    /// A call ended as it should: its socket serves the next.
    pub(super) fn give_back(&self, link: Link) {
        let Some(socket) = link.into_std() else { return };
        let mut sockets = self.sockets();
        if sockets.len() < APART_SOCKETS_KEPT {
            sockets.push(socket);
        }
    }

    pub(super) fn code(&self, digest: Digest) -> Option<Artifact> {
        self.codes().get(&digest).cloned()
    }

    /// What to hand over for this code. Beyond a bound it has to begin anew, for nobody knows what it keeps of what it was handed.
    pub(super) fn hand(&self, digest: Digest, code: &Artifact) -> Artifact {
        let mut codes = self.codes();
        let code = codes.values().fold(code.clone(), Artifact::with_code_of);
        let code = codes.entry(digest).or_insert(code).clone();
        let shared: HashMap<Digest, u64> = codes.values().filter_map(Artifact::shared).collect();
        let bytes = codes
            .values()
            .map(Artifact::len)
            .chain(shared.into_values())
            .sum::<u64>();
        drop(codes);
        if bytes > 2 * MODULES_BYTES_DEFAULT {
            self.end("it was handed so much code that it begins anew");
        }
        code
    }

    fn codes(&self) -> MutexGuard<'_, HashMap<Digest, Artifact>> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the process knows this Bee by that number.
    pub(super) fn count(&self, bee: u64, meter: &Arc<Meter>) {
        let mut meters = self.meters();
        // Of Bees that went, the last of what they used is counted a while later.
        if meters.len() > METERS_KEPT {
            meters.retain(|_, meter| Arc::strong_count(meter) > 1);
        }
        meters.insert(bee, Arc::clone(meter));
    }

    /// It did what no honest one does.
    pub(super) fn kill(&self, why: impl Into<String>) {
        self.go(why.into(), true);
    }

    /// It is not needed any more.
    pub(super) fn end(&self, why: &str) {
        self.go(why.to_owned(), false);
    }

    fn go(&self, why: String, fault: bool) {
        self.why().get_or_insert((why, fault));
        self.gone.cancel();
    }

    /// It was ended, and that was not its fault.
    pub(super) fn ended_well(&self) -> bool {
        self.why().as_ref().is_some_and(|(_, fault)| !fault)
    }

    fn why(&self) -> MutexGuard<'_, Option<(String, bool)>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bounds(room: &Room, frame: usize) -> Bounds {
    Bounds {
        frame,
        lists: APART_LISTS_BYTES_MAX,
        room: room.clone(),
        queue: APART_QUEUE_BYTES,
        descriptors: false,
    }
}

/// The task that has the child.
struct Care {
    process: Arc<Process>,
    child: Child,
    link: Link,
    said: Arc<Mutex<Vec<u8>>>,
    limits: [u64; 4],
    memory_bytes: u64,
    _place: OwnedSemaphorePermit,
}

/// Pings, and what came of them.
struct Pings {
    sent: u64,
    unanswered: Option<Instant>,
    /// When the next is due.
    due: Instant,
}

/// What a process may say of itself, and how much of it is believed.
struct Believed {
    /// CPU time that it can have used since what it told last: as much as all cores had, ns.
    cpu_ns: u64,
    /// Frames that it may say now.
    frames: f64,
    since: Instant,
}

impl Believed {
    fn new() -> Self {
        Self {
            cpu_ns: 0,
            frames: APART_NEWS_BURST,
            since: Instant::now(),
        }
    }

    /// Something was said. What it could have said and used before, and did not, it may say late: a busy node reads several at once.
    ///
    /// # Errors
    /// It says more than any honest one would.
    fn hear(&mut self) -> Result<(), String> {
        const CORES_TIME_MAX_NS: u64 = 10_000_000_000;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let passed = self.since.elapsed();
        self.since = Instant::now();
        let time = u64::try_from(passed.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_mul(cores);
        self.cpu_ns = self.cpu_ns.saturating_add(time).min(CORES_TIME_MAX_NS * cores);
        self.frames = (self.frames + passed.as_secs_f64() * APART_NEWS_A_SECOND).min(APART_NEWS_BURST) - 1.0;
        match self.frames < 0.0 {
            true => Err("it said too much of itself".to_owned()),
            false => Ok(()),
        }
    }
}

impl Care {
    async fn take(mut self, mut ordered: mpsc::UnboundedReceiver<(Order, Option<OwnedFd>)>) {
        let process = Arc::clone(&self.process);
        // Whatever happens to this task: nobody waits for it in vain. The child goes with it.
        let _gone = process.gone.clone().drop_guard();
        let _reaped = process.reaped.clone().drop_guard();
        let mut tick = tokio::time::interval(Duration::from_millis(APART_LOOK_MS));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pings = Pings {
            sent: 0,
            unanswered: None,
            due: Instant::now(),
        };
        let mut believed = Believed::new();
        let ended = loop {
            tokio::select! {
                () = process.gone.cancelled() => break String::new(),
                status = self.child.wait() => break status.map_or_else(|e| e.to_string(), |status| status.to_string()),
                Some((order, socket)) = ordered.recv() => {
                    if let Err(e) = self.link.put(&order, socket.into_iter().collect()) {
                        break e.to_string();
                    }
                }
                news = self.link.next::<News>() => match news {
                    Ok(Some(News::Pong(number))) if number == pings.sent && pings.unanswered.is_some() => {
                        pings.unanswered = None;
                        if let Err(why) = believed.hear() {
                            break why;
                        }
                    }
                    Ok(Some(News::Used { bees, instances, memory })) => {
                        if let Err(why) = believed.hear() {
                            break why;
                        }
                        self.count(&bees, &mut believed.cpu_ns);
                        process.share.note_apart(instances, memory);
                    }
                    Ok(Some(News::Pong(_) | News::Ready)) => break "it said what it was not asked".to_owned(),
                    // How it ended is told by its status; one that closes its orders and lives on has none, and is killed.
                    Ok(None) => break match tokio::time::timeout(Duration::from_secs(1), self.child.wait()).await {
                        Ok(status) => status.map_or_else(|e| e.to_string(), |status| status.to_string()),
                        Err(_) => "it takes no orders any more".to_owned(),
                    },
                    Err(e) => break e.to_string(),
                },
                _ = tick.tick() => if let Err(why) = self.look(&mut pings) {
                    break why;
                },
            }
        };
        let words = last(&self.said);
        process.gone.cancel();
        let _ = self.child.kill().await;
        process.sockets().clear();
        process.share.note_apart(0, 0);
        process.reaped.cancel();
        let why = process.why().clone();
        match why {
            Some((why, false)) => {
                tracing::info!(tenant = %process.tenant, pid = process.pid, why, "a tenant's process was ended")
            }
            Some((why, true)) => {
                tracing::error!(tenant = %process.tenant, pid = process.pid, why, "a tenant's process was killed");
            }
            None => {
                tracing::warn!(tenant = %process.tenant, pid = process.pid, ended, words, "a tenant's process died")
            }
        }
    }

    /// What it says of itself is believed as far as it can be true: more than all cores had to give it did not use.
    fn count(&self, bees: &[Used], left: &mut u64) {
        let lived_ms = u64::try_from(self.process.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut byte_ms_left = self.memory_bytes.saturating_mul(lived_ms);
        let meters = self.process.meters();
        for used in bees {
            let Some(meter) = meters.get(&used.bee) else { continue };
            let cpu_ns = used.cpu_ns.min(*left);
            *left -= cpu_ns;
            let byte_ms = used.byte_ms.min(byte_ms_left);
            byte_ms_left -= byte_ms;
            meter.add(cpu_ns, byte_ms);
            self.process.share.used().add(cpu_ns, byte_ms);
        }
    }

    /// # Errors
    /// Why it has to go.
    fn look(&mut self, pings: &mut Pings) -> Result<(), String> {
        let process = &self.process;
        let silence = Duration::from_millis(APART_SILENCE_MS);
        if pings.unanswered.is_some_and(|since| since.elapsed() > silence) {
            return Err(format!("it said nothing for {APART_SILENCE_MS} ms"));
        }
        if pings.unanswered.is_none() && process.idle().is_none() && pings.due <= Instant::now() {
            pings.sent += 1;
            pings.due = Instant::now() + Duration::from_millis(APART_PING_MS);
            pings.unanswered = Some(Instant::now());
            let put = self.link.put(&Order::Ping(pings.sent), Vec::new());
            put.map_err(|e| e.to_string())?;
        }
        let limits = process.share.told();
        if limits != self.limits {
            self.limits = limits;
            let put = self.link.put(&Order::Limits(limits), Vec::new());
            put.map_err(|e| e.to_string())?;
        }
        let most = process.share.memory_cap().unwrap_or(self.memory_bytes) + APART_BESIDE_BYTES;
        match occupied(process.pid) {
            Some(bytes) if bytes > most => {
                process.kill(format!("it had {bytes} bytes of memory, of {most}"));
                Err("memory".to_owned())
            }
            Some(_) => Ok(()),
            // It has ended; or its first thread has, and no other can be looked into: an honest one's lives as long as all.
            None => Err("it shows no memory any more".to_owned()),
        }
    }
}

/// Bytes that a process takes of the machine: resident, swapped out, and the tables of its pages, for one page of every 2 MiB costs a table as
/// well. It has no other: it can make no file, and maps none to share. `None`: it is gone.
fn occupied(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let resident = kib("VmRSS:")?;
    Some((resident + kib("VmSwap:").unwrap_or(0) + kib("VmPTE:").unwrap_or(0)) << 10)
}

/// Reads what it says to its end, and keeps the last of it.
fn said(stderr: Option<tokio::process::ChildStderr>) -> Arc<Mutex<Vec<u8>>> {
    use tokio::io::AsyncReadExt as _;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let Some(mut stderr) = stderr else { return kept };
    let keep = Arc::clone(&kept);
    tokio::spawn(async move {
        let mut piece = [0; 1_024];
        while let Ok(read @ 1..) = stderr.read(&mut piece).await {
            {
                let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&piece[..read]);
                let excess = kept.len().saturating_sub(STDERR_BYTES);
                kept.drain(..excess);
            }
            // An honest one says a line, if anything. One that says more waits for us.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    kept
}

fn last(said: &Mutex<Vec<u8>>) -> String {
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let mut words = String::new();
    crate::log::escape(String::from_utf8_lossy(&said).trim(), STDERR_BYTES, &mut words);
    words
}

/// The standard streams of a tenant's process: its orders come by the first.
pub(super) fn streams(command: &mut tokio::process::Command, orders: StdStream) {
    command
        .stdin(Stdio::from(OwnedFd::from(orders)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
}
