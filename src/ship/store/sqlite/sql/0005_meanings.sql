-- The vectors of each text, by the model that made them: '' where none has yet. So texts wait here until a node searches by meaning.
CREATE TABLE meanings (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL DEFAULT '',
    vectors BLOB NOT NULL DEFAULT x''
);
CREATE INDEX meanings_waiting ON meanings (id) WHERE model = '';
INSERT INTO meanings (id) SELECT id FROM texts;
