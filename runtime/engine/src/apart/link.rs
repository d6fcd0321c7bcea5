//! A socket between the node and a tenant's process: frames both ways, and descriptors from the node.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use super::codec::{Reader, Wire};

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Descriptors that come with one read. A frame brings two at most.
const DESCRIPTORS_AT_ONCE: usize = 4;

/// What large frames may take of this process, all links to one other process together: from their first bytes on, until the next one is read or
/// what they asked is answered. A frame for which there is none is not read yet: waiting is its link's trouble, and nobody else's.
#[derive(Debug, Clone)]
pub(super) struct Room(Option<Arc<Semaphore>>);

/// What a large frame has of it.
#[derive(Debug)]
pub(super) struct Taken(#[expect(dead_code, reason = "given back when dropped")] OwnedSemaphorePermit);

impl Room {
    pub(super) fn new(most: usize) -> Self {
        Self(Some(Arc::new(Semaphore::new(most / READ_BYTES))))
    }

    /// For one whose other side is trusted.
    pub(super) fn endless() -> Self {
        Self(None)
    }

    async fn take(&self, bytes: usize) -> io::Result<Option<Taken>> {
        let Some(room) = &self.0 else { return Ok(None) };
        let pieces = u32::try_from(bytes.div_ceil(READ_BYTES)).unwrap_or(u32::MAX);
        let taken = Arc::clone(room).acquire_many_owned(pieces).await;
        Ok(Some(Taken(taken.map_err(io::Error::other)?)))
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0
            .as_ref()
            .map_or(usize::MAX, |room| room.available_permits() * READ_BYTES)
    }
}

/// What the other side is trusted with.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// Of one frame, bytes.
    pub(super) frame: usize,
    /// What the lists of one frame may take in memory, bytes.
    pub(super) lists: usize,
    pub(super) room: Room,
    /// So much may wait to be sent, bytes: beyond it nothing more is read until the other side has taken it. Only one side may have such a bound,
    /// or both would wait for each other.
    pub(super) queue: usize,
    /// Whether it may hand over descriptors. Those that it may not are closed by the kernel before anybody sees them.
    pub(super) descriptors: bool,
}

struct Segment {
    /// Secrets go this way too.
    bytes: Zeroizing<Vec<u8>>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

/// One end. Everything on it may be dropped at any await: what was begun stays in its queues.
pub(super) struct Link {
    stream: UnixStream,
    bounds: Bounds,
    incoming: BytesMut,
    /// Of the frame that comes, or came last.
    taken: Option<Taken>,
    /// Whether that one has come.
    whole: bool,
    came: VecDeque<OwnedFd>,
    outgoing: VecDeque<Segment>,
}

impl Link {
    /// On the runtime that it is called on.
    pub(super) fn new(stream: StdStream, bounds: Bounds) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            bounds,
            incoming: BytesMut::new(),
            taken: None,
            whole: false,
            came: VecDeque::new(),
            outgoing: VecDeque::new(),
        })
    }

    /// Back, for another runtime. Only between frames: `None` where something is left in either direction.
    pub(super) fn into_std(self) -> Option<StdStream> {
        if !self.incoming.is_empty() || !self.outgoing.is_empty() || !self.came.is_empty() {
            return None;
        }
        let stream = self.stream.as_fd().try_clone_to_owned().ok()?;
        Some(StdStream::from(stream))
    }

    /// Sends as much as there is room for now; the rest goes with [`Self::next`].
    pub(super) fn put(&mut self, value: &impl Wire, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        self.put_sized(value, 256, descriptors)
    }

    /// Of about so many bytes. One that holds secrets must not grow while it is written: what it leaves behind is not wiped.
    pub(super) fn put_sized(&mut self, value: &impl Wire, about: usize, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(about + 4));
        bytes.extend_from_slice(&[0; 4]);
        value.put(&mut bytes);
        let length = u32::try_from(bytes.len() - 4).map_err(|_| io::Error::other("a frame of 4 GiB"))?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.outgoing.push_back(Segment {
            bytes,
            sent: 0,
            descriptors,
        });
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(segment) = self.outgoing.front_mut() {
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                send(
                    self.stream.as_fd(),
                    &segment.bytes[segment.sent..],
                    &segment.descriptors,
                )
            });
            match sent {
                Ok(sent) => {
                    // They went with the first byte.
                    segment.descriptors.clear();
                    segment.sent += sent;
                    if segment.sent == segment.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next frame, while what is to be sent goes out. `None`: the other side is gone.
    ///
    /// # Errors
    /// The socket's, or a frame that is none.
    pub(super) async fn next<T: Wire>(&mut self) -> io::Result<Option<T>> {
        if std::mem::take(&mut self.whole) {
            self.taken = None;
        }
        loop {
            let full = self.queued() > self.bounds.queue;
            if !full && let Some(frame) = self.cut()? {
                let value = Reader::new(frame, self.bounds.lists).whole::<T>();
                return value.map(Some).map_err(io::Error::other);
            }
            if !full
                && self.taken.is_none()
                && let Some(length) = self.announced()?.filter(|length| *length > READ_BYTES)
            {
                self.taken = self.bounds.room.take(length).await?;
                self.incoming.reserve((4 + length).saturating_sub(self.incoming.len()));
            }
            let interest = match self.outgoing.is_empty() {
                true => Interest::READABLE,
                false if full => Interest::WRITABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            let ready = self.stream.ready(interest).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if ready.is_readable() && !full {
                match self.fill() {
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }

    fn queued(&self) -> usize {
        self.outgoing
            .iter()
            .map(|segment| segment.bytes.len() - segment.sent)
            .sum()
    }

    /// Until all that was put is sent. What comes meanwhile is read, and kept for [`Self::next`]: the other side may take nothing before it is rid
    /// of that.
    pub(super) async fn flushed(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let ready = self.stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if ready.is_readable() && !self.outgoing.is_empty() {
                match self.fill() {
                    Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// The next descriptor that came with a frame.
    pub(super) fn descriptor(&mut self) -> io::Result<OwnedFd> {
        let none = || io::Error::other("a frame without its descriptor");
        self.came.pop_front().ok_or_else(none)
    }

    /// The room of the frame that came last, for as long as something of it is kept.
    pub(super) fn room(&mut self) -> Option<Taken> {
        self.taken.take()
    }

    /// Bytes of the frame that comes.
    fn announced(&self) -> io::Result<Option<usize>> {
        let Some(head) = self.incoming.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > self.bounds.frame {
            return Err(io::Error::other(format!(
                "a frame of {length} bytes, where {} are the most",
                self.bounds.frame
            )));
        }
        Ok(Some(length))
    }

    fn cut(&mut self) -> io::Result<Option<Bytes>> {
        let Some(length) = self.announced()? else {
            return Ok(None);
        };
        if self.incoming.len() < 4 + length {
            return Ok(None);
        }
        self.whole = true;
        let _ = self.incoming.split_to(4);
        // A frame takes no more than itself, and this link nothing between frames: whatever is made of a small one must not keep what was read with it.
        let frame = match length > READ_BYTES {
            true => {
                let rest = BytesMut::from(&self.incoming[length..]);
                std::mem::replace(&mut self.incoming, rest).split_to(length).freeze()
            }
            false => Bytes::copy_from_slice(&self.incoming.split_to(length)),
        };
        if self.incoming.is_empty() {
            self.incoming = BytesMut::new();
        }
        Ok(Some(frame))
    }

    fn fill(&mut self) -> io::Result<usize> {
        let before = self.incoming.len();
        self.incoming.resize(before + READ_BYTES, 0);
        let came = self.bounds.descriptors.then_some(&mut self.came);
        let read = self.stream.try_io(Interest::READABLE, || {
            receive(self.stream.as_fd(), &mut self.incoming[before..], came)
        });
        self.incoming.truncate(before + *read.as_ref().unwrap_or(&0));
        read
    }
}

fn send(to: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if descriptors.is_empty() {
        // A tenant's process may make no other call for it: with `sendmsg` it could send descriptors, of which a user has only so many under way.
        return Ok(retry_on_intr(|| rustix::net::send(to, bytes, flags))?);
    }
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !beside.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors for one frame"));
    }
    Ok(retry_on_intr(|| {
        sendmsg(to, &[IoSlice::new(bytes)], &mut beside, flags)
    })?)
}

fn receive(from: BorrowedFd<'_>, into: &mut [u8], came: Option<&mut VecDeque<OwnedFd>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(into)];
    let Some(came) = came else {
        let read = retry_on_intr(|| recvmsg(from, &mut parts, &mut RecvAncillaryBuffer::default(), flags))?;
        return Ok(read.bytes);
    };
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let read = retry_on_intr(|| recvmsg(from, &mut parts, &mut beside, flags))?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            came.extend(descriptors);
        }
    }
    Ok(read.bytes)
}
