-- What all nodes must know and nobody else, by name: made by whichever node comes first, the same ever after.
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
