-- What is read once and then dropped stands in the order in which it came: it is written at the end of its table, whatever session it
-- is of, so that a commit of many sessions changes fewer pages.
DROP VIEW all_texts;
ALTER TABLE unindexed RENAME TO old_unindexed;
CREATE TABLE unindexed (
    id INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    text TEXT NOT NULL
);
INSERT INTO unindexed (session_id, seq, text) SELECT session_id, seq, text FROM old_unindexed;
DROP TABLE old_unindexed;
CREATE VIEW all_texts AS
    SELECT session_id, seq, text FROM texts UNION ALL SELECT session_id, seq, text FROM unindexed;

DROP INDEX idempotency_age;
ALTER TABLE idempotency RENAME TO old_idempotency;
CREATE TABLE idempotency (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    answer BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    UNIQUE (scope, key)
);
INSERT INTO idempotency (scope, key, fingerprint, answer, at_ms)
    SELECT scope, key, fingerprint, answer, at_ms FROM old_idempotency ORDER BY at_ms;
DROP TABLE old_idempotency;
