//! Every bound of an edge, and of what a hub does for edges.

/// Edges of one tenant.
pub const EDGES_MAX: usize = 1_000;
/// Connections of edges to one node of the hub's.
pub const ATTACHED_MAX: usize = 1_024;
/// … and of those that have not proven yet who they are.
pub const GREETING_MAX: usize = 64;
/// An edge may not call more often, ms.
pub const ATTACH_EVERY_MS: u64 = 1_000;
/// Bytes of messages of edges that have not come whole, of a node: also of those who have proven nothing.
pub const ARRIVING_BYTES_MAX: usize = 128 << 20;
/// How long either side may take to prove it, ms.
pub const GREETING_MS: u64 = 10_000;
/// How long an invitation is good, ms: an hour.
pub const INVITATION_MS: u64 = 3_600_000;
/// Labels of one edge.
pub const LABELS_MAX: usize = 16;
/// Swarms whose messages a hub takes of one edge: all whose parts it was ever to run, until there are more.
pub const SWARMS_KNOWN_MAX: usize = 1_000;
/// What a hub keeps of what was let go of at one edge: the newest.
pub const DISCARDS_MAX: usize = 32;
/// Kinds of processor that one edge may ask code for: each is compiled for anew.
pub const TARGETS_MAX: usize = 8;
/// The highest revision that a hub believes an edge to follow: numbers above it have room.
pub const REVISION_MAX: u64 = 1 << 53;
/// Sequences of one edge that a hub counts at once, one connection: an honest one has one a stage, and another with each loss.
pub const SESSIONS_MAX: usize = 1_024;
/// A name in what an edge says of itself.
pub const SAID_NAME_BYTES_MAX: usize = 300;
/// What it says of a trouble.
pub const SAID_TROUBLE_BYTES_MAX: usize = 1_000;
/// An enrolment line. Some 300 are used.
pub const LINE_BYTES_MAX: usize = 4 << 10;

/// Orders, as JSON. Under what one gRPC message may have.
pub const ORDERS_BYTES_MAX: usize = 3 << 20;
/// Stages that one edge runs.
pub const STAGES_MAX: usize = 200;
/// What a hub says of an artifact, in front of its code.
pub const ARTIFACT_HEAD_BYTES_MAX: u64 = 8 << 10;
/// Native code of one module, bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 256 << 20;
/// One part of an artifact on its way. Small: what is said of messages waits behind those that are under way.
pub const CODE_PART_BYTES: usize = 16 << 10;
/// Parts of an artifact that were read from the connection and are not on disk yet.
pub const CODE_PARTS_AHEAD: usize = 8;
/// How long a part may take, ms: a compiler may stand before the first.
pub const CODE_PART_MS: u64 = 240_000;

/// Messages that are handed over at once, and their bytes: twice as many each time that it goes quickly, and half as many each time that a
/// connection ends meanwhile. On a slow link much at once would never arrive.
pub const HAND_OVER_MESSAGES: u32 = 1_000;
pub const HAND_OVER_BYTES: u64 = 1 << 20;
pub const HAND_OVER_BYTES_FIRST: u64 = 64 << 10;
pub const HAND_OVER_BYTES_LEAST: u64 = 8 << 10;
/// What is quickly, ms.
pub const HAND_OVER_QUICKLY_MS: u64 = 2_000;
/// A frame on its way: one message may be larger than the bytes above.
pub const HAND_OVER_FRAME_BYTES_MAX: usize = 3 << 20;
/// How long a hub may take to say that it has them, ms; and beside that for their way at so many bytes a second. Then the connection is given up.
/// One whose other end is gone ends long before: see below.
pub const HAND_OVER_MS: u64 = 30_000;
pub const LINK_BYTES_A_SECOND_MIN: u64 = 1_000;
/// The wait before the same is offered again that the hub had no room for, ms.
pub const HAND_OVER_AGAIN_MS: u64 = 1_000;
/// Messages between hub and edge that wait for the connection, in each direction.
pub const WORDS_AHEAD: usize = 16;
/// An outbox that drops its oldest messages begins at this share of its bound, and ends at the other.
pub const DROP_FROM_PERCENT: u64 = 90;
pub const DROP_TO_PERCENT: u64 = 80;
/// Messages of an outbox, where the manifest says nothing else: its bytes are its bound.
pub const OUTBOX_MESSAGES_MAX: u64 = 100_000_000;

/// The wait before a hub that cannot be reached is called again, ms: doubling, with a quarter of chance. Not shorter than [`ATTACH_EVERY_MS`].
pub const CALL_AGAIN_FIRST_MS: u64 = 1_000;
pub const CALL_AGAIN_MAX_MS: u64 = 30_000;
/// A connection on which nothing was heard for so long is asked whether it lives, ms; and how long it may think about it.
pub const ALIVE_EVERY_MS: u64 = 20_000;
pub const ALIVE_WITHIN_MS: u64 = 10_000;
/// How often an edge tells its hub how it fares, ms, while something changes.
pub const REPORT_EVERY_MS: u64 = 2_000;
/// … and where nothing does.
pub const REPORT_SELDOM_MS: u64 = 16_000;
/// How long a stopping edge waits for calls under way, ms.
pub const STOP_MS: u64 = 10_000;
