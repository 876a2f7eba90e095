-- The same tables as in SQLite. Ids sort by their bytes, as they do there.

-- The log. One row is one event; body is the record as it travels to clients.
CREATE TABLE events (
    session_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    type TEXT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (session_id, seq)
);

-- Where each log ends. An append locks its row, so that two nodes cannot both go on from one head.
CREATE TABLE heads (
    session_id TEXT COLLATE "C" PRIMARY KEY,
    seq BIGINT NOT NULL
) WITH (fillfactor = 70);

-- What people say, by seq, so that a page of messages does not read the whole log.
CREATE TABLE messages (
    session_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (session_id, seq)
);

-- A folded state at some seq: a shortcut, never the truth.
CREATE TABLE snapshots (
    session_id TEXT COLLATE "C" PRIMARY KEY,
    seq BIGINT NOT NULL,
    shape INTEGER NOT NULL,
    body BYTEA NOT NULL
);

-- The list of sessions: a projection, written with the events that change it.
CREATE TABLE sessions (
    id TEXT COLLATE "C" PRIMARY KEY,
    status TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    body BYTEA NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX sessions_newest ON sessions (created_at_ms DESC, id DESC);

CREATE TABLE outbox (
    effect_id TEXT COLLATE "C" PRIMARY KEY,
    session_id TEXT COLLATE "C" NOT NULL,
    body BYTEA NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at_ms BIGINT NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX outbox_due ON outbox (due_at_ms);

CREATE TABLE alarms (
    session_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    due_at_ms BIGINT NOT NULL,
    PRIMARY KEY (session_id, name)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX alarms_due ON alarms (due_at_ms);

CREATE TABLE idempotency (
    scope TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT NOT NULL,
    answer BYTEA NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (scope, key)
);
CREATE INDEX idempotency_age ON idempotency (at_ms);

-- Credentials, by the digest of their secret. kind is api, browser or login.
CREATE TABLE tokens (
    digest TEXT COLLATE "C" PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT
);

-- Who writes, and the number of the last batch that each of them committed: read back when a commit's end is not known.
CREATE TABLE writers (
    id TEXT COLLATE "C" PRIMARY KEY,
    batch BIGINT NOT NULL,
    at_ms BIGINT NOT NULL
) WITH (fillfactor = 10);
