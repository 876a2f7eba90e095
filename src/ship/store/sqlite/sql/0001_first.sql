-- The log. One row is one event; body is the record as it travels to clients.
CREATE TABLE events (
    session_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (session_id, seq)
) WITHOUT ROWID;

-- What people say, by seq, so that a page of messages does not read the whole log.
CREATE TABLE messages (
    session_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (session_id, seq)
) WITHOUT ROWID;

-- A folded state at some seq: a shortcut, never the truth.
CREATE TABLE snapshots (
    session_id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    shape INTEGER NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;

-- The list of sessions: a projection, written with the events that change it.
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_newest ON sessions (created_at_ms DESC, id DESC);

CREATE TABLE outbox (
    effect_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    body BLOB NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX outbox_due ON outbox (due_at_ms);

CREATE TABLE alarms (
    session_id TEXT NOT NULL,
    name TEXT NOT NULL,
    due_at_ms INTEGER NOT NULL,
    PRIMARY KEY (session_id, name)
) WITHOUT ROWID;
CREATE INDEX alarms_due ON alarms (due_at_ms);

CREATE TABLE idempotency (
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    answer BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (at_ms);

-- Credentials, by the digest of their secret. kind is api, browser or login.
CREATE TABLE tokens (
    digest TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER
) WITHOUT ROWID;
