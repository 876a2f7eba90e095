-- Logs that have left for a blob. pages says where in it each page lies.
CREATE TABLE packed (
    session_id TEXT PRIMARY KEY,
    head INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    pages BLOB NOT NULL
) WITHOUT ROWID;
