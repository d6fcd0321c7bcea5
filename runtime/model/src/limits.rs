//! Every bound and default of the system, named, with its reason. "Memory and disk are bounded and every bound has a name."

// --- messages ---------------------------------------------------------------------------------------------------
/// One payload. Larger things belong in object storage until the claim check exists.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// One key: it is part of every state row and index.
pub const KEY_BYTES_MAX: usize = 1 << 10;
/// All headers of one message, names and values.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
pub const HEADERS_MAX: usize = 64;
/// All effects of one message, outputs counted once per destination.
pub const EFFECTS_BYTES_MAX: usize = 1 << 20;
/// All effects of one commit. A batch commits the longest prefix that fits.
pub const COMMIT_BYTES_MAX: usize = 2 << 20;
/// Messages that one input may publish; keeps one outcome list decodable within a step.
pub const EMITS_MAX: usize = 10_000;

/// What an output costs beside its bytes, when effects are added up: so that empty messages are bounded too.
pub const OUTPUT_OVERHEAD_BYTES: usize = 64;

// --- state and timers -------------------------------------------------------------------------------------------
pub const STATE_VALUE_BYTES_MAX: usize = 256 << 10;
/// State that one fetch loads, names and values: a batch ends early there. One key is always loaded whole.
pub const FETCH_STATE_BYTES_MAX: u64 = 16 << 20;
/// The embedded backend's journal of state writes: what an open replays. A key that is written often costs its row once this much.
pub const STATE_JOURNAL_BYTES: usize = 16 << 20;
/// Keys that the embedded backend keeps in memory, with what each costs there: some 200,000 that hold a number. Only what is used is
/// there, so an idle node has none of it.
pub const STATE_CACHE_BYTES_MAX: usize = 64 << 20;
pub const STATE_NAME_BYTES_MAX: usize = 256;
/// Named values of one key.
pub const STATE_NAMES_MAX: usize = 1_000;
/// Keys by which a stage's stream ends (`ends: [...]`): each is looked at once, when it has.
pub const END_KEYS_MAX: usize = 10_000;
/// Keys that one commit of a stage's owner sets to be told of the end: what it lists for that it keeps in memory meanwhile.
pub const END_TOLD_MAX: usize = 1_024;
/// All of one key's state, names and values: it is read whole with each batch that has a message of the key, and lies in memory
/// while the batch runs.
pub const STATE_KEY_BYTES_MAX: usize = 4 << 20;
/// Keys and bytes of one stage's state: a manifest may say less or more. What a commit under way adds may pass it.
pub const STATE_KEYS_DEFAULT: u64 = 100_000_000;
pub const STATE_KEYS_MAX: u64 = 1 << 40;
pub const STATE_BYTES_DEFAULT: u64 = 64 << 30;
/// The least is one key as large as may be.
pub const STATE_BYTES_MIN: u64 = STATE_KEY_BYTES_MAX as u64;
pub const STATE_BYTES_MAX: u64 = 1 << 50;
/// How long a value may stay unused before it goes: less would mean a commit more for nearly each that writes.
pub const STATE_TTL_MS_MIN: u64 = 1_000;
pub const STATE_TTL_MS_MAX: u64 = 10 * 366 * 24 * 60 * 60 * 1_000;
/// Keys, and bytes of keys, names and values, that one look at a stage's state takes, give or take a key: others wait meanwhile.
pub const STATE_PAGE_KEYS: u32 = 256;
pub const STATE_PAGE_BYTES: usize = 1 << 20;
/// Lists of state under way at once on a node.
pub const STATE_LISTS_MAX: usize = 8;
/// One line of a file of state: all of one key, its bytes in base64.
pub const STATE_LINE_BYTES_MAX: usize = 2 * STATE_KEY_BYTES_MAX;
/// How long an import waits for the owners of a stage that was paused a moment ago to let go.
pub const STATE_IMPORT_WAIT_MS: u64 = 10_000;
/// Pending timers of one key.
pub const TIMERS_PER_KEY_MAX: usize = 1_000;
/// Key groups of a stage: fixed for life, the unit of state and of rescaling.
pub const KEY_GROUPS: u16 = 256;

// --- topics -----------------------------------------------------------------------------------------------------
pub const PARTITIONS_DEFAULT_EMBEDDED: u16 = 4;
pub const PARTITIONS_MAX: u16 = 256;
/// What waits at an edge for one stage of its hub: a day and a half at 100 messages of 60 bytes a second.
pub const OUTBOX_BYTES_DEFAULT: u64 = 1 << 30;
pub const OUTBOX_BYTES_MIN: u64 = 1 << 20;
pub const OUTBOX_BYTES_MAX: u64 = 1 << 40;
/// Memory of one Bee at an edge: a hub that grants more does so at the hub.
pub const EDGE_BEE_BYTES_MAX: usize = 256 << 20;
pub const INBOX_MESSAGES_DEFAULT: u64 = 100_000;
pub const INBOX_BYTES_DEFAULT: u64 = 64 << 20;
/// The least inbox: a Gateway may use four fifths of it, and one message's effects must fit.
pub const INBOX_MESSAGES_MIN: u64 = 10;
pub const INBOX_MESSAGES_MAX: u64 = 100_000_000;
pub const INBOX_BYTES_MIN: u64 = EFFECTS_BYTES_MAX as u64;
pub const INBOX_BYTES_MAX: u64 = 1 << 40;
/// Publishes from a Gateway stop here, in percent of the bound; outputs of stages may use the rest, so draining never deadlocks.
pub const INBOX_GATEWAY_PERCENT: u64 = 80;
pub const DEAD_LETTERS_DEFAULT: u64 = 10_000;
pub const DEAD_LETTER_BYTES_DEFAULT: u64 = 64 << 20;
/// Dead letters looked at for one page of a filtered list; the next page goes on.
pub const DEAD_LETTERS_SCAN_MAX: u64 = 10_000;
/// Dead letters that one call puts back.
pub const REDRIVE_IDS_MAX: usize = 1_000;
/// Payload bytes of dead letters that one step of the backend puts back: others wait meanwhile.
pub const REDRIVE_STEP_BYTES: usize = 1 << 20;
/// Trial runs of dead letters at once on a node: each takes an instance from those that work.
pub const TRIALS_MAX: usize = 2;
pub const DEAD_LETTERS_MAX: u64 = 10_000_000;
pub const DEAD_LETTER_BYTES_MAX: u64 = 1 << 40;
pub const BATCH_MESSAGES_DEFAULT: u32 = 256;
pub const BATCH_MESSAGES_MAX: u32 = 4_096;
pub const BATCH_BYTES_DEFAULT: u64 = 1 << 20;
/// The least is one message as large as may be, with its key and headers.
pub const BATCH_BYTES_MIN: u64 = 512 << 10;
/// A batch is copied into the guest's memory whole.
pub const BATCH_BYTES_MAX: u64 = 16 << 20;
/// Batches of one stage under way at once on the in-memory lane.
pub const CONCURRENCY_DEFAULT: u16 = 8;
pub const CONCURRENCY_MAX: u16 = 256;
pub const LEASE_TTL_MS: u64 = 2_000;
/// Operations that wait for the embedded backend's writer.
pub const WRITER_QUEUE_MAX: usize = 1_024;
/// One frame, i.e. one row: as much as a default batch takes, so that most fetches end where a frame ends.
pub const FRAME_MESSAGES_MAX: usize = 256;
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Frames that the embedded backend keeps in memory between append and fetch; a frame beyond it is read from disk.
pub const FRAME_CACHE_BYTES_MAX: usize = 8 << 20;
/// Operations, and milliseconds, that may join a transaction which somebody waits for.
pub const FLUSH_JOIN_MAX: usize = 512;
pub const FLUSH_JOIN_MS: u64 = 2;
/// How long, and up to how many bytes, writes that nobody waits for may share a transaction.
pub const FLUSH_SHARE_MS: u64 = 5;
pub const FLUSH_SHARE_BYTES: usize = 4 << 20;
/// The write-ahead log is folded into the database at about this size, which bounds it on disk.
pub const WAL_BYTES: usize = 16 << 20;
/// The embedded backend's page cache.
pub const PAGE_CACHE_BYTES: usize = 8 << 20;
/// Disk space held back so that queued work can drain when the disk is full; at most an eighth of the file system.
pub const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// Lives of deleted Swarms that a store remembers, newest first, to answer late calls on them with `Gone`.
pub const GONE_SWARMS_MAX: u64 = 10_000;
/// Removed stages that a Swarm's life remembers, to refuse what late writers send them; the earliest one makes room.
pub const REMOVED_STAGES_MAX: u64 = 1_000;
/// Parked entries, and timers, that one step of a rescale looks at: others wait meanwhile.
pub const HAND_OVER_MAX: usize = 256;
/// Times that a writer is told of a topic's true partitions in one call: each is a rescale that came between.
pub const LAYOUT_TRIES_MAX: usize = 8;
/// Streaming submit sessions remembered per Swarm. The one that expires first makes room; its client is told of a gap.
pub const SESSIONS_MAX: u64 = 100_000;
/// State on Redis: buckets of a stage, each a run of key groups in one hash. Few, since each costs a batch three calls; with a million
/// keys a hash has 60,000 of them, some megabytes.
pub const STATE_BUCKETS: u16 = 16;
/// State that a node remembers of the keys it works on, all partitions together: it need not be read again while only this owner commits.
pub const STATE_KNOWN_BYTES_MAX: usize = 64 << 20;
/// A frame on Redis that is larger lies in two entries, so that commits need not look at its messages.
pub const FRAME_SPLIT_BYTES: usize = 2 << 10;
/// Entries of an inbox in one answer of Redis.
pub const REDIS_READ_ENTRIES_MAX: u32 = 512;
/// All values of one key that share its field of a bucket. A write rewrites the field, so a larger key has a hash of its own.
pub const STATE_INLINE_BYTES_MAX: usize = 8 << 10;
/// How long a reply is kept for a caller on another node, which fetches it within seconds if its push was lost: the default deadline and
/// five seconds.
pub const REPLY_KEPT_MS: u64 = REQUEST_DEADLINE_MS_DEFAULT + 5_000;
/// Replies that one script is asked for.
pub const REPLIES_ASKED_MAX: usize = 256;
/// Connections to Redis are made anew after this time, doubling, spread by half.
pub const RECONNECT_FIRST_MS: u64 = 50;
pub const RECONNECT_MAX_MS: u64 = 2_000;
/// A command waits so long for a slot of a cluster that moves, asking again after this time, doubling up to `RECONNECT_FIRST_MS`; then
/// its caller hears that nothing was done. Below what a command may take anyway.
pub const REDIS_MOVING_MS: u64 = 5_000;
pub const REDIS_MOVING_FIRST_MS: u64 = 5;
/// A quiet connection that only listens asks this often whether its other end is there.
pub const LISTEN_PING_MS: u64 = 10_000;
/// How often a node looks for what a lost bell would have told: bells of Redis are not kept for those who do not listen.
pub const REDIS_SCAN_MS: u64 = 1_000;
/// Swarms that are asked for in one pipeline.
pub const REDIS_SCAN_SWARMS_MAX: usize = 256;
/// Appends are refused from here, in percent of Redis' maxmemory, so that commits have room to drain what is queued.
pub const REDIS_MEMORY_PERCENT: u64 = 80;
/// Dead letters in one answer of Redis.
pub const LETTERS_PAGE_MAX: u64 = 64;
/// Keys unlinked, and dead letters discarded, in one script: others wait meanwhile.
pub const REDIS_SWEEP_MAX: usize = 256;
/// Nodes that share a store.
pub const NODES_MAX: usize = 1_000;
/// What a node says of itself at each beat; every node reads that of all others.
pub const NODE_RECORD_BYTES_MAX: usize = 64 << 10;
/// Pieces of a life that an export holds ready: each is a frame at most.
pub const EXPORT_PIECES_MAX: usize = 16;
/// Messages that a backup reads from Redis at once, and entries of their stream in one answer, each of which holds a frame at most: an
/// answer is some megabytes, and Redis does nothing else meanwhile.
pub const EXPORT_MESSAGES_MAX: u32 = 1_024;
pub const EXPORT_ENTRIES_MAX: u32 = 16;
/// Pieces and bytes that one step of an import takes, give or take a piece: others wait meanwhile.
pub const IMPORT_PIECES_MAX: usize = 512;
pub const IMPORT_BYTES: usize = 1 << 20;
/// One frame of a backup: a catalog record with its manifest twice, or what one message or key may have.
pub const BACKUP_FRAME_BYTES_MAX: usize = 16 << 20;
/// A backup that is restored lies on the node's disk until it was looked at as a whole.
pub const BACKUP_BYTES_MAX: u64 = 1 << 40;
/// Times that a Swarm is copied anew because it was changed, or moved on, underneath.
pub const BACKUP_TRIES_MAX: u32 = 5;
/// How long a restore's stream may pause.
pub const RESTORE_PAUSE_MS: u64 = 60_000;
/// How long a Swarm's life on Redis stays still for a backup that says nothing any more. A slice is read and handed on in much less.
pub const BACKUP_HOLD_MS: u64 = 10_000;
/// Entries of a hash or a sorted set, and messages of an inbox, that a backup asks Redis for at once.
pub const BACKUP_SLICE_MAX: u32 = 256;
/// Rows deleted in one operation when a Swarm or topic goes, so that others are not held up.
pub const REMOVE_ROWS_MAX: usize = 2_000;
/// Expired idempotency keys and sessions collected by one publish.
pub const EXPIRED_ROWS_MAX: usize = 64;
/// Idempotency keys remembered per subject.
pub const DEDUP_KEYS_MAX: u64 = 100_000;
/// Stored replies per subject.
pub const REPLY_BYTES_MAX: u64 = 64 << 20;
pub const DEDUP_WINDOW_MS_DEFAULT: u64 = 15 * 60 * 1_000;
pub const DEDUP_WINDOW_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
/// Idempotency key sent by a client.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Requests on the in-memory lane of one stage.
pub const LANE_MESSAGES_MAX: usize = 4_096;
/// … and their payloads.
pub const LANE_BYTES_MAX: usize = 64 << 20;

// --- requests ---------------------------------------------------------------------------------------------------
/// Branches of one request that may end without an answer and be counted: with more it fails at its deadline.
pub const RETURNS_MAX: usize = 4_096;

/// One part of a streamed response: as much as a message may have.
pub const PART_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;
/// Parts of one stream that its caller has not taken: the Bee waits beyond it. A part is taken while there is less, so that one as large as
/// may be fits; and so many, since an empty part costs memory too.
pub const PART_WINDOW_BYTES: usize = 64 << 10;
pub const PART_WINDOW_PARTS: usize = 1_024;
/// Parts that are gathered for a caller who does not stream: joined they are a response, whose bytes count among one message's effects.
pub const GATHERED_BYTES_MAX: usize = EFFECTS_BYTES_MAX / 2;
/// … of all inputs of a batch: they wait in memory for its end.
pub const GATHERED_BATCH_BYTES_MAX: usize = 4 << 20;
/// Stages whose parts one caller takes at once. Each has a window of its own.
pub const PART_SOURCES_MAX: usize = 16;
/// How long a stage waits for word from a caller's node before it asks, and sends again what may have been lost on the way; and after how
/// long without any it takes the node for gone.
pub const PART_ASK_MS: u64 = 500;
pub const PART_SILENCE_MS: u64 = 10_000;
/// Answers about parts that wait for their way to other nodes. One that finds no room is lost, and asked for again.
pub const PART_WORDS_MAX: usize = 4_096;
/// A stream of server-sent events that is quiet so long sends a comment, since proxies close what is silent for half a minute.
pub const EVENTS_QUIET_MS: u64 = 15_000;

/// Requests whose callers went away, remembered by their node so that its stages leave them undone: the last so many.
pub const CANCELLED_MAX: usize = 16_384;

// --- joins ------------------------------------------------------------------------------------------------------
/// Sides of one join: all that waits of one is read with each message of it.
pub const JOIN_SIDES_MAX: usize = 16;
/// The parts of one join, keys, headers and payloads: what one message's effects may have, for they are taken in one step.
pub const JOIN_BYTES_MAX: usize = EFFECTS_BYTES_MAX;
/// Joins of one stage that wait at once. A part is at most a message, so this bounds what they take of the store.
pub const JOIN_PENDING_DEFAULT: u64 = 10_000;
pub const JOIN_PENDING_MAX: u64 = 10_000_000;
/// How long a join waits: as long as a caller does by default.
pub const JOIN_WITHIN_MS_DEFAULT: u64 = REQUEST_DEADLINE_MS_DEFAULT;
pub const JOIN_WITHIN_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

// --- loops ------------------------------------------------------------------------------------------------------
/// How often a message may go round, for the most patient Swarm: with a second a round, a quarter of an hour.
pub const LOOP_LAPS_MAX: u32 = 1_000;
/// Loops of one Swarm. A message carries a count for each that it came by.
pub const LOOPS_MAX: usize = 16;
/// Stages passed that a traced message remembers: as many as a Swarm may have. In a loop it passes more, and keeps the first.
pub const HOPS_MAX: usize = STAGES_MAX;

// --- retries ----------------------------------------------------------------------------------------------------
pub const ATTEMPTS_DEFAULT: u32 = 5;
pub const ATTEMPTS_MAX: u32 = 1_000;
pub const BACKOFF_FIRST_MS_DEFAULT: u64 = 100;
pub const BACKOFF_MAX_MS_DEFAULT: u64 = 30_000;
/// Crashes of its node with which an input is set aside, not run again: the one that made its partition suspect, and those that it was
/// alone in. An input that was alone in one waits before it runs again, so that a node which others kill again and again, within
/// moments of its start, blames nobody.
pub const CRASHES_DEFAULT: u32 = 3;
pub const CRASHES_MAX: u32 = 1_000;
pub const CRASH_WAIT_MS: u64 = 500;
pub const CRASH_WAIT_MS_MAX: u64 = 10_000;
/// A retry budget is a share of what came in so many seconds: long enough that a batch does not use it up, short enough that it follows
/// the traffic.
pub const RETRY_BUDGET_SECONDS: u64 = 10;
/// Ten retries for each input: more is no budget.
pub const RETRY_BUDGET_PERCENT_MAX: u32 = 1_000;
pub const RETRY_BUDGET_PER_SECOND_DEFAULT: u32 = 10;
pub const RETRY_BUDGET_PER_SECOND_MAX: u32 = 1_000_000;
pub const RETRY_AFTER_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
pub const STAGE_TIMEOUT_MS_DEFAULT: u64 = 30_000;
pub const STAGE_TIMEOUT_MS_MAX: u64 = 3_600_000;
pub const REQUEST_DEADLINE_MS_DEFAULT: u64 = 30_000;
pub const REQUEST_DEADLINE_MS_MAX: u64 = 3_600_000;

// --- modules ----------------------------------------------------------------------------------------------------
pub const UPLOAD_BYTES_MAX: usize = 64 << 20;
/// One chunk of an upload; below gRPC's 4 MiB message limit.
pub const UPLOAD_CHUNK_BYTES: usize = 256 << 10;
pub const BEES_PER_MODULE_MAX: usize = 256;
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;
pub const STAGES_MAX: usize = 256;
/// Sources of one stage.
pub const STAGE_INPUTS_MAX: usize = 256;
/// Nodes of a manifest's YAML, aliases expanded: an alias bomb stops here.
pub const MANIFEST_NODES_MAX: usize = 100_000;
/// Lists and mappings inside each other.
pub const MANIFEST_DEPTH_MAX: usize = 32;
/// Mistakes reported at once.
pub const MISTAKES_MAX: usize = 100;
/// `config` of one stage.
pub const CONFIG_ENTRIES_MAX: usize = 256;
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
/// Secrets that one stage may read.
pub const SECRETS_PER_STAGE_MAX: usize = 32;
/// Secrets of one tenant: every node holds them all in memory.
pub const SECRETS_PER_TENANT_MAX: usize = 1_000;
/// One secret: a key file or a certificate chain fits.
pub const SECRET_BYTES_MAX: usize = 16 << 10;
/// What a Bee says is searched for its secrets from this length on: a shorter one is part of too many words.
pub const SECRET_REDACTED_BYTES_MIN: usize = 6;
pub const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// The name in `key: header:NAME`.
pub const HEADER_NAME_BYTES_MAX: usize = 256;
/// The pointer in `key: json:/pointer`.
pub const JSON_POINTER_BYTES_MAX: usize = 1 << 10;
/// Tests in one condition of a manifest, and how deep `all`, `any` and `not` may lie: each message is held against all of them.
pub const CONDITION_TESTS_MAX: usize = 64;
pub const CONDITION_DEPTH_MAX: usize = 8;

/// Swarms of a tenant.
pub const SWARMS_MAX: usize = 1_000;
/// Module names of a tenant.
pub const MODULES_MAX: usize = 1_000;
/// Tags of one module.
pub const MODULE_TAGS_MAX: usize = 1_000;
/// Versions of a module without a tag that no Swarm uses; older ones go with their bytes at the next push.
pub const MODULE_LOOSE_VERSIONS_MAX: usize = 10;
/// Labels of a node.
pub const NODE_LABELS_MAX: usize = 32;
/// Partitions of all stages of a Swarm, those that drain after their removal included: each has an owner's task.
pub const SWARM_PARTITIONS_MAX: u64 = 4_096;
/// A module that a node cannot load is tried again after this time, doubling.
pub const LOAD_BACKOFF_FIRST_MS: u64 = 5_000;
pub const LOAD_BACKOFF_MAX_MS: u64 = 300_000;
/// Modules whose failure to load is remembered; the one that is tried again first makes room.
pub const LOAD_FAILURES_MAX: usize = 1_024;
/// What modules in memory may take together, by default.
pub const MODULES_BYTES_DEFAULT: u64 = 512 << 20;
/// What a module takes beside its native code: types, tables of functions, names.
pub const MODULE_BESIDE_BYTES: u64 = 128 << 10;
/// A module that nobody called for so long is let go.
pub const MODULE_IDLE_MS: u64 = 300_000;
/// Modules that are read from disk and mapped at once.
pub const MODULE_LOADS_AT_ONCE: usize = 8;
/// How long an upload may take: this, and its size at the least rate.
pub const UPLOAD_MS: u64 = 60_000;
pub const UPLOAD_BYTES_PER_S_MIN: u64 = 64 << 10;
/// One reply of the Beekeeper; below gRPC's 4 MiB message limit by more than its largest item.
pub const KEEPER_REPLY_BYTES_MAX: usize = 3 << 20;

// --- engine -----------------------------------------------------------------------------------------------------
/// epoch_tick: the granularity of CPU limits and preemption.
pub const EPOCH_TICK_MS: u64 = 10;
/// The same while a guest computes on a thread that other tenants' calls come to as well: about how long these wait for its turn to end.
pub const EPOCH_TICK_CROWDED_US: u64 = 250;
/// Guest time that a tenant which was quiet may use at once beyond its cap, as time at that cap.
pub const GUEST_CPU_BURST_MS: u64 = 50;
/// Calls of Bees that wait for a place: beyond any node's partitions and lanes, so that it bounds memory and nothing else.
pub const GUEST_CALLS_WAITING_MAX: usize = 100_000;
pub const MEMORY_BYTES_DEFAULT: usize = 256 << 20;
pub const MEMORY_BYTES_MAX: usize = 1 << 30;
/// Below it not even an empty Rust component starts.
pub const MEMORY_BYTES_MIN: usize = 1 << 20;
/// Calls and age (seconds) of one instance with `instances: pooled`.
pub const POOLED_CALLS_DEFAULT: u32 = 10_000;
pub const POOLED_CALLS_MAX: u32 = 1_000_000;
pub const POOLED_AGE_S_DEFAULT: u32 = 300;
pub const POOLED_AGE_S_MAX: u32 = 86_400;
pub const STDERR_BYTES_MAX: usize = 4 << 10;
pub const LOG_LINE_BYTES_MAX: usize = 16 << 10;
/// Log lines and bytes that one call of a Bee may produce; the rest is counted and dropped with a line that says so.
pub const LOG_LINES_PER_CALL_MAX: usize = 1_000;
pub const LOG_BYTES_PER_CALL_MAX: usize = 64 << 10;
/// Log bytes kept per Bee, in memory, also of dead instances.
pub const LOG_BYTES_KEPT_MAX: usize = 1 << 20;

// --- models -----------------------------------------------------------------------------------------------------
/// Names of models of a tenant, tags of one of them, and versions of it without a tag: what a push leaves for a way back.
pub const MODELS_MAX: usize = 1_000;
pub const MODEL_TAGS_MAX: usize = 100;
pub const MODEL_LOOSE_VERSIONS_MAX: usize = 3;
/// Uploads of models that a node receives at once: each may hold the largest model in memory.
pub const MODEL_UPLOADS_MAX: usize = 4;
/// What a client sends of a model in a second, at least.
pub const MODEL_UPLOAD_BYTES_PER_S_MIN: u64 = 512 << 10;
/// What names of models mean, as a node remembers it between two changes of the catalog.
pub const MODEL_NAMES_KEPT_MAX: usize = 10_000;
/// Messages that a built-in `batch` puts together, and how long the first waits.
pub const GATHER_SIZE_MAX: u32 = 10_000;
pub const GATHER_WAIT_MS_DEFAULT: u64 = 1_000;
pub const GATHER_WAIT_MS_MAX: u64 = 24 * 3_600_000;
/// Models that one stage may call.
pub const MODELS_PER_STAGE_MAX: usize = 32;
/// Dimensions of a tensor: video in batches has five.
pub const TENSOR_RANK_MAX: usize = 8;
/// One tensor: 64 coloured images of 512 × 512 as FP32 are 192 MiB, and are to be sent in parts.
pub const TENSOR_BYTES_MAX: usize = 64 << 20;
/// An input's or output's name: it stands in errors and metadata.
pub const TENSOR_NAME_BYTES_MAX: usize = 256;
/// Inputs or outputs of one call by the Open Inference Protocol: the widest exports of tables have a column each.
pub const CALL_TENSORS_MAX: usize = 1_024;
/// Parameters of such a call, or of one tensor of it.
pub const CALL_PARAMETERS_MAX: usize = 64;
/// The JSON of such a call or answer. Text takes some five times its tensor and is read on the node's CPU: what is larger goes in binary.
pub const CALL_JSON_BYTES_MAX: usize = 16 << 20;
/// JSON of a call or answer that is read or written beside other calls; more of it has a thread for itself, since it takes milliseconds.
pub const CALL_JSON_BESIDE_BYTES: usize = 256 << 10;
/// All of such a call or answer: the largest tensor, and its JSON.
pub const CALL_BYTES_MAX: usize = TENSOR_BYTES_MAX + (1 << 20);
/// Objects of `wasi:nn` (tensors, graphs, contexts, errors) that one instance holds. Their bytes count as the instance's memory.
pub const NN_OBJECTS_MAX: usize = 1_024;

// --- doors ------------------------------------------------------------------------------------------------------
/// Calls under way at once on a node.
pub const IN_FLIGHT_MAX: usize = 4_096;
pub const IN_FLIGHT_BYTES_MAX: usize = 256 << 20;
/// How many times what is free of both one tenant may have, what its clients have not sent whole or not read included: so none, whatever
/// its clients do, shuts out another.
pub const TENANT_SHARE: usize = 4;
/// How many times what is free of its tenant's share one subject may have: so none, flooded, shuts out another of its tenant.
pub const SUBJECT_SHARE: usize = 4;
/// Bytes of bodies on their way to a node from callers whose tenant has no subject there, together: there is nothing that they could call.
pub const UNROUTED_BYTES_MAX: usize = 4 << 20;
/// Streams on one HTTP/2 connection.
pub const HTTP2_STREAMS_MAX: u32 = 1_024;
pub const CONNECTIONS_MAX: usize = 4_096;
/// Calls in flight on one `requests` or `submit` stream.
pub const STREAM_WINDOW_MAX: usize = 4_096;
/// How long a client may take to send its headers.
pub const HEADER_TIMEOUT_MS: u64 = 10_000;
/// All headers of one HTTP request, names and values: a message's own and room for the protocol's.
pub const HTTP_HEADERS_BYTES_MAX: u32 = 32 << 10;
/// How long a quiet HTTP/2 connection lives without an answer to a ping.
pub const KEEP_ALIVE_EVERY_MS: u64 = 30_000;
pub const KEEP_ALIVE_TIMEOUT_MS: u64 = 20_000;
/// How long a client may take to send the body of a unary call, or one message of a stream that it began, whatever its deadline.
pub const BODY_TIMEOUT_MS: u64 = 30_000;
/// Streams that a client reset before they were accepted, and streams that it drove into an error: more end the connection.
pub const HTTP2_RESETS_MAX: usize = 64;
/// Messages and bytes of one submit or one frame of a streamed one: it is appended whole, as one entry an inbox.
pub const SUBMIT_MESSAGES_MAX: usize = 10_000;
pub const SUBMIT_BYTES_MAX: usize = 2 << 20;
/// Frames of one streamed submit that wait for durability.
pub const SUBMIT_FRAMES_MAX: usize = 256;
/// One gRPC message of the Gateway: a full submit and its framing.
pub const GATEWAY_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Calls and bytes that a Gateway appends in one step of a backend.
pub const APPEND_GROUP_CALLS_MAX: usize = 1_024;
pub const APPEND_GROUP_BYTES_MAX: usize = 4 << 20;
/// What a caller is told of a Bee's failure; the dead letter has all of it.
pub const FAILURE_REASON_BYTES_MAX: usize = 64;
pub const FAILURE_DETAIL_BYTES_MAX: usize = 1 << 10;
/// When a refused caller should try again: about the time in which a stage frees half of a small inbox.
pub const RETRY_HINT_MS: u64 = 100;

/// How long a node whose door is closed lets people in after it heard of its store last: what was revoked meanwhile is good so long there.
pub const ACCESS_UNHEARD_MS: u64 = 30_000;
/// Tokens of one tenant, and of operators: a person or program each, and every node has them all in memory.
pub const TOKENS_MAX: usize = 1_000;
/// Tenants beside the default one: each has records that every node reads at a change of the catalog.
pub const TENANTS_MAX: usize = 10_000;
/// What a tenant may be limited to. The upper ends only keep sums from overflowing and catch slips: a pebibyte, a thousand cores.
pub const QUOTA_BYTES_MAX: u64 = 1 << 50;
pub const QUOTA_COUNT_MAX: u64 = 1_000_000;
pub const QUOTA_RATE_MAX: u64 = 1_000_000_000;
pub const QUOTA_WEIGHT_MAX: u64 = 1_000;
/// Thousandths of a core. Under a hundredth, a batch that uses its whole timeout would keep its tenant waiting for an hour.
pub const QUOTA_CPU_MIN: u64 = 10;
pub const QUOTA_CPU_MAX: u64 = 1_000_000;
/// What a tenant that was quiet may send at once, as time at its rate: short, so that over any second it sends a tenth more at most.
pub const RATE_BURST_MS: u64 = 100;
/// Tenants of which a node says with its heartbeat how much they offered to it; of more, the first by name: each is some thirty bytes a second.
pub const QUOTA_DEMANDS_MAX: usize = 1_000;
/// How often a node writes down what tenants used there: what was used since is lost with a node that is killed. Each write is one record of
/// the catalog, which every node hears of.
pub const USAGE_WRITE_MS: u64 = 60_000;
/// Bees of which a node counts apart in a day, each some hundred bytes of that record; what more Bees use counts as their tenant's alone.
pub const USAGE_ENTRIES_MAX: usize = 10_000;
/// Days that are kept: a year and the month in which it is billed.
pub const USAGE_DAYS_KEPT: u64 = 400;
/// Of tokens of an OpenID provider. One that is longer is none: providers stay far below, and servers take no longer header.
pub const OIDC_TOKEN_BYTES_MAX: usize = 8 << 10;
/// Keys of the provider; of more, the first. Real ones have two or three.
pub const OIDC_KEYS_MAX: usize = 64;
/// By how much the clocks of provider and node may differ.
pub const OIDC_LEEWAY_MS: u64 = 30_000;
/// Its name for somebody (OpenID Connect Core 1.0 §2: at most 255 ASCII characters), and roles of them that are looked at.
pub const OIDC_SUBJECT_BYTES_MAX: usize = 255;
pub const OIDC_ROLES_MAX: usize = 256;
/// Tokens whose check is remembered, each some 300 bytes.
pub const OIDC_KNOWN_MAX: usize = 4_096;
pub const OIDC_URL_BYTES_MAX: usize = 1 << 10;
/// One answer of the provider: its description, or its keys; and how long each may take.
pub const OIDC_ANSWER_BYTES_MAX: usize = 256 << 10;
pub const OIDC_FETCH_MS: u64 = 5_000;
/// How often its keys are read: of themselves, and at most, whoever asks.
pub const OIDC_REFRESH_MS: u64 = 300_000;
pub const OIDC_REFRESH_LEAST_MS: u64 = 5_000;
/// Keys that could not be read anew for so long are not taken any more: a provider that withdrew one would not be heard.
pub const OIDC_KEYS_KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// How long a call with a token of an unknown key waits for them, and how many do.
pub const OIDC_WAIT_MS: u64 = 10_000;
pub const OIDC_WAITERS_MAX: usize = 256;
/// What a token is called, for people.
pub const TOKEN_NAME_BYTES_MAX: usize = 100;
/// How long a token may be good: beyond that it is one that does not run out.
pub const TOKEN_TTL_MS_MAX: u64 = 10 * 366 * 24 * 60 * 60 * 1_000;
/// How long the former secret of a rotated token may stay good.
pub const TOKEN_GRACE_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1_000;
/// A file with a token, a certificate or a key.
pub const CREDENTIAL_FILE_BYTES_MAX: u64 = 1 << 20;

// --- requests of Bees -----------------------------------------------------------------------------------------
/// Lines of `http:` of one stage: each request is held against all of them.
pub const HTTP_GRANTS_MAX: usize = 32;
/// Connections at once: of one call of a Bee, of one stage, of the node. A call that has its own used up is refused another; for the others
/// it waits, as long as for a connection.
pub const HTTP_PER_CALL_MAX: usize = 16;
pub const HTTP_PER_STAGE_MAX: usize = 64;
pub const HTTP_PER_NODE_MAX: usize = 256;
/// Names looked up at once, of one stage and of the node: each lookup holds a thread until the system answers, of some hundreds that a runtime
/// has for all that blocks.
pub const HTTP_LOOKUPS_PER_STAGE_MAX: usize = 8;
pub const HTTP_LOOKUPS_PER_NODE_MAX: usize = 64;
/// Requests of one call: some for each message of a large batch.
pub const HTTP_REQUESTS_PER_CALL_MAX: usize = 1_024;
/// Addresses of one name that are tried.
pub const HTTP_ADDRESSES_MAX: usize = 4;
pub const HTTP_URL_BYTES_MAX: usize = 8 << 10;
/// All headers that a Bee sends in one request, as wasmtime counts them in memory; and of an answer, as they come.
pub const HTTP_HEADERS_BYTES_MAX_OUT: usize = 32 << 10;
pub const HTTP_ANSWER_HEADERS_BYTES_MAX: usize = 64 << 10;
pub const HTTP_ANSWER_HEADERS_MAX: usize = 128;
/// What a Bee sends in one request, and takes of one answer: what it makes of it must fit in its effects.
pub const HTTP_SENT_BYTES_MAX: usize = 4 << 20;
pub const HTTP_ANSWER_BYTES_MAX: usize = 16 << 20;
/// How long a name, a connection and its TLS may take together; and how long the other side may be silent. The call's own end comes first.
pub const HTTP_CONNECT_MS: u64 = 10_000;
pub const HTTP_QUIET_MS: u64 = 30_000;

// --- audit ------------------------------------------------------------------------------------------------------
/// One record of the audit: what it names is short, and cut.
pub const AUDIT_RECORD_BYTES_MAX: usize = 4 << 10;
/// A file of one book, and files of it that stay: some 50,000 records of each tenant, of the platform, and of refusals.
pub const AUDIT_FILE_BYTES: u64 = 1 << 20;
pub const AUDIT_FILES_MAX: usize = 16;
/// Refusals are told apart by token, method and address, up to so many in a window; each is one record at its first, and one for all that
/// followed. So a flood writes 200 KiB a minute at most.
pub const AUDIT_DENIED_KINDS_MAX: usize = 256;
pub const AUDIT_DENIED_WINDOW_MS: u64 = 60_000;
/// Records in one answer of a node, which are sorted in memory.
pub const AUDIT_PAGE_MAX: usize = 500;
/// Pages and verifications of the audit that a node reads at once: each reads files of many books. More wait.
pub const AUDIT_READS_MAX: usize = 4;
/// Lists that tenants have open on a node, followers among them: each holds some pages of records.
pub const AUDIT_LISTS_MAX: usize = 64;

// --- a node's settings ------------------------------------------------------------------------------------------
/// A file of settings: eleven keys.
pub const CONFIG_FILE_BYTES_MAX: usize = 64 << 10;
/// A node's name stands in lists and log lines.
pub const NODE_NAME_BYTES_MAX: usize = 63;
/// Replicas that an acknowledgement may wait for.
pub const REPLICAS_MAX: u32 = 16;
/// How long one question for the replicas' acknowledgement may take, after which the outcome of what waits is unknown. A replica
/// that stalls for a background save answers within it.
pub const GATE_TIMEOUT_MS: u64 = 5_000;

// --- object storage ---------------------------------------------------------------------------------------------
/// Copies of the catalog that stay: the newest counts, the others are for people who look what was before.
pub const MIRROR_COPIES_KEPT: usize = 8;
/// A copy of the catalog: each Swarm's record holds a manifest twice, and few come near their bounds.
pub const MIRROR_COPY_BYTES_MAX: u64 = 256 << 20;
/// The mark that says whose a prefix is.
pub const OWNER_MARK_BYTES_MAX: u64 = 4 << 10;
/// A component that is larger goes in parts: S3 takes none under 5 MiB but the last, and a lost part is sent again alone.
pub const STORE_PART_BYTES: usize = 8 << 20;
/// Parts under way at once: they lie in memory, which the whole component does anyway.
pub const STORE_PARTS_AT_ONCE_MAX: usize = 4;
/// Copies of components that lie in a remote store, on the node's disk: some fifty of Python, thousands of Rust.
pub const MODULE_COPIES_BYTES_MAX: u64 = 1 << 30;
/// … and of models.
pub const MODEL_COPIES_BYTES_MAX: u64 = 4 << 30;
pub const STORE_CONNECT_MS: u64 = 5_000;
/// How long an answer may stand still.
pub const STORE_QUIET_MS: u64 = 20_000;
/// One request with its answer: the largest component at half a megabyte a second.
pub const STORE_REQUEST_MS: u64 = 120_000;
/// Repeats of a request that failed, and how long they may begin: an upload's caller waits meanwhile.
pub const STORE_RETRIES_MAX: usize = 3;
pub const STORE_RETRY_MS: u64 = 30_000;
/// How long a store is tried out before a node starts on it.
pub const STORE_PROBE_MS: u64 = 20_000;

// Processes of tenants that have their own.

/// On one node.
pub const APART_PROCESSES_MAX: usize = 64;
/// Calls under way in one of them; more wait in the node.
pub const APART_CALLS_MAX: usize = 64;
/// Sockets to one of them that wait for the next call.
pub const APART_SOCKETS_KEPT: usize = 16;
/// One that nobody called for so long ends.
pub const APART_IDLE_MS: u64 = 300_000;
/// How often one that works is asked whether it is there, and after which silence it is killed.
pub const APART_PING_MS: u64 = 2_000;
/// How often its memory is looked at.
pub const APART_LOOK_MS: u64 = 250;
/// What it may say of itself: frames a second, so many of them at once, and bytes of each. Honest ones say something every 500 ms.
pub const APART_NEWS_A_SECOND: f64 = 8.0;
pub const APART_NEWS_BURST: f64 = 256.0;
pub const APART_NEWS_BYTES_MAX: usize = 1 << 20;
pub const APART_SILENCE_MS: u64 = 20_000;
/// How long one may take to start, and to read a module's names.
pub const APART_START_MS: u64 = 30_000;
/// What a call may wait in it for its turns, beside its own time: for places and for the tenant's CPU limit.
pub const APART_WAIT_MS: u64 = 15 * 60 * 1_000;
/// The same once the node stops.
pub const APART_WAIT_STOPPING_MS: u64 = 10_000;
/// The wait before the next start of one that died soon after its start, doubling, and its bound.
pub const APART_BACKOFF_FIRST_MS: u64 = 100;
pub const APART_BACKOFF_MAX_MS: u64 = 30_000;
/// One frame of what it says, bytes: an answer with its effects and log lines, or tensors for a model.
pub const APART_ANSWER_BYTES_MAX: usize = 16 << 20;
pub const APART_TENSORS_BYTES_MAX: usize = CALL_BYTES_MAX;
/// Large frames of one process, bytes: those that come, and those whose questions are not answered yet.
pub const APART_UNREAD_BYTES_MAX: usize = 256 << 20;
/// What lists of one frame may take in memory, bytes: as much as what a guest may return at once takes in the node.
pub const APART_LISTS_BYTES_MAX: usize = 64 << 20;
/// What may wait to be sent to one call, bytes: until it has taken that, nothing more that it asks is read.
pub const APART_QUEUE_BYTES: usize = 1 << 20;
/// One frame of what the node says: a batch with its state, secrets and configuration, or a model's answer.
pub const APART_TOLD_BYTES_MAX: usize = 512 << 20;
/// What one call asks the node for at once: connections, and a part or a model, for which a guest waits.
pub const APART_ASKS_MAX: usize = HTTP_PER_CALL_MAX + APART_WAITS_MAX;
/// … of which so many are no connections. A guest that is stopped leaves one behind; then there may be another.
pub const APART_WAITS_MAX: usize = 2;
/// Versions of models that one Bee found and may call by what it was told of them.
pub const APART_FOUND_MAX: usize = 64;
/// Resident memory of one beside what its tenant's instances may have, bytes: the program, native code, frames.
pub const APART_BESIDE_BYTES: u64 = 1 << 30;
