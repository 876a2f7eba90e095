-- The vectors of each text, by the model that made them: '' where none has yet. So texts wait here until a node searches by meaning.
CREATE TABLE meanings (
    session_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    model TEXT NOT NULL DEFAULT '',
    vectors BYTEA NOT NULL DEFAULT '',
    PRIMARY KEY (session_id, seq)
);
ALTER TABLE meanings ALTER COLUMN vectors SET STORAGE EXTERNAL;
CREATE INDEX meanings_waiting ON meanings (session_id, seq) WHERE model = '';
INSERT INTO meanings (session_id, seq) SELECT session_id, seq FROM texts;
