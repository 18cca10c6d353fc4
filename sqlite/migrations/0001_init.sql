-- Times are microseconds since 1970, 0 for none. Numbers called seq are never used twice.

-- +goose Up

CREATE TABLE webhooks (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    repo_id     TEXT    NOT NULL,
    url         TEXT    NOT NULL,
    events      TEXT    NOT NULL, -- JSON array of event types
    active      INTEGER NOT NULL,
    description TEXT    NOT NULL,
    secrets     TEXT    NOT NULL, -- JSON array, newest first
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    deleted     INTEGER NOT NULL DEFAULT 0 -- 1: only here until what it left behind has been pruned
) STRICT;
CREATE INDEX webhooks_by_repo ON webhooks (repo_id, seq) WHERE deleted = 0;
CREATE INDEX webhooks_deleted ON webhooks (seq) WHERE deleted = 1;

-- Rows are never updated, because payloads are big. The payload stands last, so that nothing is read past it.
CREATE TABLE events (
    seq        INTEGER PRIMARY KEY, -- from counters
    id         TEXT    NOT NULL,
    repo_id    TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    payload    BLOB    NOT NULL
) STRICT;
-- The id first: ids are nearly ordered by time, so that the index grows at its end.
CREATE UNIQUE INDEX events_by_id ON events (id, repo_id);
CREATE INDEX events_by_repo ON events (repo_id, seq);

-- The automatic first attempts that a node has in memory and that have no row in the queue: one row for an event, with
-- the webhooks that it has not been settled for yet.
CREATE TABLE promises (
    event    INTEGER PRIMARY KEY,
    node     INTEGER NOT NULL,
    webhooks BLOB    NOT NULL -- their seqs as varints
) STRICT;

-- The key is the order in which a webhook's entries are claimed.
CREATE TABLE queue (
    webhook INTEGER NOT NULL,
    lane    INTEGER NOT NULL, -- 0 free and asked for by hand, 1 free and automatic, 2 leased to the node
    due_at  INTEGER NOT NULL,
    event   INTEGER NOT NULL,
    run     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    trigger TEXT    NOT NULL,
    node    INTEGER, -- NULL while free
    PRIMARY KEY (webhook, lane, due_at, event, run)
) STRICT, WITHOUT ROWID;
CREATE INDEX queue_by_event ON queue (event);

-- The columns that are filtered by stand before the long ones.
CREATE TABLE deliveries (
    seq             INTEGER PRIMARY KEY, -- from counters
    id              BLOB    NOT NULL, -- a UUID of version 7 with the event's time
    webhook         INTEGER NOT NULL,
    event           INTEGER NOT NULL, -- which may have been pruned
    event_id        TEXT    NOT NULL,
    event_type      TEXT    NOT NULL,
    success         INTEGER NOT NULL,
    delivered_at    INTEGER NOT NULL,
    next_attempt_at INTEGER NOT NULL,
    trigger         TEXT    NOT NULL,
    run             INTEGER NOT NULL,
    attempt         INTEGER NOT NULL,
    status          INTEGER NOT NULL,
    body            TEXT    NOT NULL,
    exchange        TEXT    NOT NULL -- JSON
) STRICT;
CREATE UNIQUE INDEX deliveries_by_id ON deliveries (id);
CREATE INDEX deliveries_by_webhook ON deliveries (webhook, seq);

CREATE TABLE nodes (
    node        INTEGER PRIMARY KEY AUTOINCREMENT,
    lease_until INTEGER NOT NULL -- -1: ended, and its entries are being freed
) STRICT;

-- The last numbers that were given out. AUTOINCREMENT would look after that too, but once for every row.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('event', 0), ('delivery', 0), ('run', 0);

-- Counts, so that no total is a scan.
CREATE TABLE repo_counts (
    repo_id  TEXT PRIMARY KEY,
    webhooks INTEGER NOT NULL DEFAULT 0,
    events   INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE delivery_counts (
    webhook   INTEGER PRIMARY KEY,
    succeeded INTEGER NOT NULL,
    failed    INTEGER NOT NULL
) STRICT;

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
