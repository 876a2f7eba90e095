-- Logs that have left for a blob. pages says where in it each page lies.
CREATE TABLE packed (
    session_id TEXT COLLATE "C" PRIMARY KEY,
    head BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    pages BYTEA NOT NULL
);
