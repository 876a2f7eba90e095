-- What is found by its words: titles (seq 0) and what was said. Texts wait in unindexed until an indexer has come by.
CREATE TABLE unindexed (
    session_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (session_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE TABLE texts (
    session_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    text TEXT NOT NULL,
    words TSVECTOR NOT NULL,
    PRIMARY KEY (session_id, seq)
);
CREATE INDEX texts_words ON texts USING gin (words);
CREATE VIEW all_texts AS
    SELECT session_id, seq, text FROM texts UNION ALL SELECT session_id, seq, text FROM unindexed;

ALTER TABLE sessions ADD COLUMN repository TEXT NOT NULL DEFAULT '';
UPDATE sessions SET repository = coalesce(convert_from(body, 'UTF8')::jsonb #>> '{repository,source}', '');
INSERT INTO unindexed SELECT id, 0, coalesce(convert_from(body, 'UTF8')::jsonb ->> 'title', '') FROM sessions;
INSERT INTO unindexed
    SELECT session_id, seq, coalesce(convert_from(body, 'UTF8')::jsonb ->> 'text', '') FROM messages;
