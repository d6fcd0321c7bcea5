//! The body of a tenant's process: limited before it reads a byte, then an engine like the node's, for one tenant.
//!
//! Its standard input is the socket of its orders. It ends with that, with the node, and when it is told to.

use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_model::limits::APART_TOLD_BYTES_MAX;

use super::codec::Reader;
use super::guest::{House, serve};
use super::link::{Bounds, Link, Room};
use super::messages::{Hello, News, Order};
use crate::confined::UNCONFINED_STATUS;
use crate::confined::tenant::{close_others, confine, forbid};
use crate::engine::Engine;
use crate::settings::Settings;

/// How often the node is told what was used, while something is.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// The first order holds names and numbers only.
const HELLO_BYTES_MAX: usize = 4 << 10;

/// Runs the Bees of one tenant. To be called by the binary's hidden subcommand and nothing else: it limits the whole process, which must have
/// no other thread yet. `parent`: the node's process.
#[must_use]
pub fn child_main(parent: u32) -> ExitCode {
    close_others();
    if let Err(error) = confine(parent) {
        eprintln!("cannot limit a tenant's process: {error}");
        return ExitCode::from(UNCONFINED_STATUS);
    }
    // SAFETY: descriptor 0 is open, and nothing else in this process uses it.
    let mut orders = StdStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    let Some(hello) = hello(&mut orders) else {
        eprintln!("this command is the node's own");
        return ExitCode::FAILURE;
    };
    let settings = Settings {
        running: hello.running,
        spare: hello.spare,
        threads: usize::try_from(hello.threads).unwrap_or(1),
        // The filter of system calls lets none be made.
        threads_fixed: true,
        memory_bytes_max: usize::try_from(hello.memory_bytes_max).unwrap_or(usize::MAX),
        ..Settings::new(PathBuf::new())
    };
    let started = Engine::new(settings).map_err(|e| e.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (engine, runtime) = match (started, runtime) {
        (Ok(engine), Ok(runtime)) => (engine, runtime),
        (Err(error), _) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        (_, Err(error)) => {
            eprintln!("cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    // After the threads, for each of them; before anything that a tenant made.
    if let Err(error) = forbid() {
        eprintln!("cannot limit a tenant's process: the kernel takes no filter of system calls: {error}");
        return ExitCode::from(UNCONFINED_STATUS);
    }
    let ended = runtime.block_on(obey(engine, &hello, orders));
    // Guests may be anywhere: nothing is waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn hello(orders: &mut StdStream) -> Option<Hello> {
    let mut head = [0; 4];
    orders.read_exact(&mut head).ok()?;
    let length = usize::try_from(u32::from_le_bytes(head)).ok()?;
    let mut frame = vec![0; Some(length).filter(|length| *length <= HELLO_BYTES_MAX)?];
    orders.read_exact(&mut frame).ok()?;
    match Reader::new(Bytes::from(frame), HELLO_BYTES_MAX).whole::<Order>() {
        Ok(Order::Hello(hello)) => Some(hello),
        _ => None,
    }
}

async fn obey(engine: Arc<Engine>, hello: &Hello, orders: StdStream) -> std::io::Result<()> {
    let seats = engine.seats();
    let idle = Duration::from_millis(hello.idle_ms);
    let house = House::new(engine, hello.tenant.clone(), hello.modules_bytes, idle);
    house.share.tell(hello.limits);
    let bounds = Bounds {
        frame: APART_TOLD_BYTES_MAX,
        lists: APART_TOLD_BYTES_MAX,
        room: Room::endless(),
        queue: usize::MAX,
        descriptors: true,
    };
    let mut link = Link::new(orders, bounds)?;
    link.put(&News::Ready, Vec::new())?;
    let mut next = seats.iter().cycle();
    let mut told = (0, 0);
    let mut sweep = tokio::time::interval((idle / 8).max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            said = link.next::<Order>() => match said? {
                None => return Ok(()),
                Some(Order::Call) => {
                    let socket = StdStream::from(link.descriptor()?);
                    if let Some(seat) = next.next() {
                        seat.spawn(serve(Arc::clone(&house), socket));
                    }
                }
                Some(Order::Limits(limits)) => house.share.tell(limits),
                Some(Order::Ping(number)) => link.put(&News::Pong(number), Vec::new())?,
                Some(Order::Hello(_)) => return Err(std::io::Error::other("a second greeting")),
            },
            () = house.due(TELL_EVERY) => {
                if let Some(news) = house.news(&mut told) {
                    link.put(&news, Vec::new())?;
                }
            },
            _ = sweep.tick() => house.sweep(),
        }
    }
}
