//! Every table and row of the store, with its lifetime. Nothing else is persisted.
//!
//! | row | made | gone | bound |
//! |---|---|---|---|
//! | `meta` `schema`, `store` | at creation | never | 1 each |
//! | `meta` `boot` | each open | overwritten | 1 |
//! | `meta` `clean` | close | next open | 1 |
//! | `meta` `aside <life>` | begin of an import | the life's first use, or its removal | the Swarms of a backup |
//! | `swarm`, `topic` | first message or commit of a life or stage | `remove_swarm`, `remove_topic` | the catalog's |
//! | `gone` | `remove_swarm` | when `GONE_SWARMS_MAX` newer ones exist | `GONE_SWARMS_MAX` |
//! | `removed` | `remove_topic` | with its life, or when it is the earliest of too many | `REMOVED_STAGES_MAX` a life |
//! | `part` | first message or commit of a partition | with its topic | 256 a topic |
//! | `frame` | publish, output of a commit | the commit that consumes its last message | the inbox |
//! | `parked` | commit | commit that finishes or dead-letters it | the inbox |
//! | `timer` | commit | commit that consumes or cancels it | timers a key |
//! | `state` | a fold of the journal | commit that deletes it (by a fold), removal of the topic | what the Bees keep |
//! | `state_size` | flush after commits that changed it | with its topic | 1 a topic |
//! | `journal` | flush after commits that wrote state | fold of the oldest, at a flush or close | `STATE_JOURNAL_BYTES` and one transaction |
//! | `dead` | commit | discard, removal of the topic | the stage's dead letters |
//! | `dedup` (with the stored reply) | keyed call; the reply by the commit that makes it | expiry, collected by later publishes | `DEDUP_KEYS_MAX`, `REPLY_BYTES_MAX` a subject |
//! | `session` | streaming submit | expiry, collected by later publishes | `SESSIONS_MAX` a Swarm |
//! | `catalog` | catalog write | catalog delete | the catalog's |
//!
//! Leases are not here: the file lock proves that this process owns every partition, so they live in memory.

/// The version of the tables. Blobs inside carry [`crate::record::FORMAT`] besides.
pub(super) const SCHEMA: i64 = 4;

/// A frame's row id is its partition's id and its entry, so that one B-tree holds and orders them.
pub(super) const ENTRY_BITS: u32 = 40;

/// Before the tables: what can be set on an empty file only, or per connection.
pub(super) const PRAGMAS: &str = "
    PRAGMA page_size = 8192;
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = OFF;
    PRAGMA temp_store = MEMORY;
    PRAGMA trusted_schema = OFF;
    PRAGMA cell_size_check = ON;
";

pub(super) const TABLES: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE swarm (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL, incarnation BLOB NOT NULL,
        UNIQUE (tenant, name, incarnation));
    CREATE TABLE gone (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL, incarnation BLOB NOT NULL,
        UNIQUE (tenant, name, incarnation));
    CREATE TABLE topic (
        id INTEGER PRIMARY KEY AUTOINCREMENT, swarm INTEGER NOT NULL, stage TEXT NOT NULL, layout BLOB,
        UNIQUE (swarm, stage));
    CREATE TABLE removed (
        swarm INTEGER NOT NULL, stage TEXT NOT NULL, born INTEGER NOT NULL, PRIMARY KEY (swarm, stage)) WITHOUT ROWID;
    CREATE TABLE part (
        id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, idx INTEGER NOT NULL, body BLOB NOT NULL,
        UNIQUE (topic, idx));
    CREATE TABLE frame (
        id INTEGER PRIMARY KEY, n INTEGER NOT NULL, bytes INTEGER NOT NULL, uid BLOB NOT NULL, body BLOB NOT NULL);
    CREATE TABLE parked (
        ord INTEGER PRIMARY KEY AUTOINCREMENT, part INTEGER NOT NULL, lane TEXT NOT NULL, head INTEGER NOT NULL,
        due INTEGER NOT NULL, bytes INTEGER NOT NULL, uid BLOB NOT NULL, body BLOB NOT NULL);
    CREATE INDEX parked_lane ON parked (part, lane, ord);
    CREATE INDEX parked_due ON parked (part, due, ord) WHERE head = 1;
    CREATE TABLE timer (
        part INTEGER NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (part, key, name)) WITHOUT ROWID;
    CREATE INDEX timer_at ON timer (part, at);
    CREATE TABLE state (
        topic INTEGER NOT NULL, grp INTEGER NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (topic, grp, key, name)) WITHOUT ROWID;
    CREATE TABLE state_size (topic INTEGER PRIMARY KEY, keys INTEGER NOT NULL, bytes INTEGER NOT NULL);
    CREATE TABLE journal (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE dead (
        id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE INDEX dead_topic ON dead (topic, id);
    CREATE TABLE dedup (
        swarm INTEGER NOT NULL, subject TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, request BLOB,
        expires INTEGER NOT NULL, reply BLOB, PRIMARY KEY (swarm, subject, key)) WITHOUT ROWID;
    CREATE INDEX dedup_request ON dedup (swarm, request) WHERE request IS NOT NULL;
    CREATE INDEX dedup_expires ON dedup (expires);
    CREATE TABLE session (
        swarm INTEGER NOT NULL, id BLOB NOT NULL, high INTEGER NOT NULL, expires INTEGER NOT NULL,
        PRIMARY KEY (swarm, id)) WITHOUT ROWID;
    CREATE INDEX session_expires ON session (swarm, expires);
    CREATE TABLE catalog (key TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
";

/// What brings the tables of an earlier schema, by its number, to the next.
pub(super) const UPGRADES: &[(i64, &str)] = &[
    (
        1,
        "
    CREATE TABLE journal (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    ALTER TABLE topic DROP COLUMN dead_messages;
    ALTER TABLE topic DROP COLUMN dead_bytes;
",
    ),
    (
        2,
        "
    ALTER TABLE topic ADD COLUMN layout BLOB;
    CREATE TABLE removed (
        swarm INTEGER NOT NULL, stage TEXT NOT NULL, born INTEGER NOT NULL, PRIMARY KEY (swarm, stage)) WITHOUT ROWID;
",
    ),
    (
        3,
        // Below zero: to be counted at the next open.
        "
    CREATE TABLE state_size (topic INTEGER PRIMARY KEY, keys INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT INTO state_size SELECT id, -1, 0 FROM topic;
",
    ),
];
