-- What is found by its words: titles (seq 0) and what was said. Texts wait in unindexed until the indexer has come by.
CREATE TABLE unindexed (
    session_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (session_id, seq)
) WITHOUT ROWID;
CREATE TABLE texts (
    id INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (session_id, seq)
);
CREATE VIRTUAL TABLE text_words USING fts5 (words, content = '', tokenize = 'unicode61 remove_diacritics 0');
CREATE VIEW all_texts AS
    SELECT session_id, seq, text FROM texts UNION ALL SELECT session_id, seq, text FROM unindexed;

ALTER TABLE sessions ADD COLUMN repository TEXT NOT NULL DEFAULT '';
UPDATE sessions SET repository = coalesce(json_extract(CAST(body AS TEXT), '$.repository.source'), '');
INSERT INTO unindexed SELECT id, 0, coalesce(json_extract(CAST(body AS TEXT), '$.title'), '') FROM sessions;
INSERT INTO unindexed
    SELECT session_id, seq, coalesce(json_extract(CAST(body AS TEXT), '$.text'), '') FROM messages;
