    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE swarm (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL, incarnation BLOB NOT NULL,
        UNIQUE (tenant, name, incarnation));
    CREATE TABLE gone (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL, incarnation BLOB NOT NULL,
        UNIQUE (tenant, name, incarnation));
    CREATE TABLE topic (
        id INTEGER PRIMARY KEY AUTOINCREMENT, swarm INTEGER NOT NULL, stage TEXT NOT NULL, UNIQUE (swarm, stage));
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
