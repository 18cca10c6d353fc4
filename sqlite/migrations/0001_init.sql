-- Times are microseconds since 1970, 0 for none. Numbers called seq are never used twice. The file may be a host's own:
-- what is Posthorn's begins with posthorn_.

-- +goose Up

CREATE TABLE posthorn_webhooks (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    repo_id     TEXT    NOT NULL,
    url         TEXT    NOT NULL,
    events      TEXT    NOT NULL, -- JSON array of event types
    active      INTEGER NOT NULL,
    health      TEXT    NOT NULL, -- JSON object: what the dispatcher has found out about it
    description TEXT    NOT NULL,
    secrets     TEXT    NOT NULL, -- JSON array, newest first
    options     TEXT    NOT NULL, -- JSON object
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    deleted     INTEGER NOT NULL DEFAULT 0 -- 1: only here until what it left behind has been pruned
) STRICT;
CREATE INDEX posthorn_webhooks_by_repo ON posthorn_webhooks (repo_id, seq) WHERE deleted = 0;
CREATE INDEX posthorn_webhooks_deleted ON posthorn_webhooks (seq) WHERE deleted = 1;

-- The newest changes to webhooks, from which nodes learn what to read again.
CREATE TABLE posthorn_changes (
    version INTEGER PRIMARY KEY, -- from counters
    webhook INTEGER NOT NULL,
    repo_id TEXT    NOT NULL
) STRICT;

-- Events and deliveries are listed newest first by following previous, from the newest one that repos and webhooks know. An
-- index would do that too, but inserting into the middle of one, for each row, is the most that writing a row would cost.

-- Rows are never updated, because payloads are big. The payload stands last, so that nothing is read past it.
CREATE TABLE posthorn_events (
    seq        INTEGER PRIMARY KEY, -- from counters
    previous   INTEGER NOT NULL, -- the repo's event before this one, 0 for none; it may have been pruned
    id         TEXT    NOT NULL,
    repo_id    TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    attributes TEXT    NOT NULL, -- JSON, or empty for none
    payload    BLOB    NOT NULL
) STRICT;
-- The id first: ids are nearly ordered by time, so that the index grows at its end.
CREATE UNIQUE INDEX posthorn_events_by_id ON posthorn_events (id, repo_id);

-- The automatic first attempts that a node has in memory and that have no row in the queue: one row for each batch of events.
-- It stays until all of them are settled; which ones are already, the log and the queue tell. See promises.go.
CREATE TABLE posthorn_promises (
    event   INTEGER PRIMARY KEY, -- the first one
    node    INTEGER NOT NULL,
    entries BLOB    NOT NULL -- events and their webhooks, as varints
) STRICT;

-- The key is the order in which a webhook's entries are claimed.
CREATE TABLE posthorn_queue (
    webhook INTEGER NOT NULL,
    lane    INTEGER NOT NULL, -- 0 free and asked for by hand, 1 free and automatic, 2 leased to the node, 3 behind another one, 4 held, 5 of a replay and waiting
    due_at  INTEGER NOT NULL,
    event   INTEGER NOT NULL,
    run     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    trigger TEXT    NOT NULL,
    ordering INTEGER NOT NULL DEFAULT 0, -- not 0: done one after the other, with the webhook's others of this number
    node    INTEGER, -- NULL while free
    PRIMARY KEY (webhook, lane, due_at, event, run)
) STRICT, WITHOUT ROWID;
CREATE INDEX posthorn_queue_by_event ON posthorn_queue (event, webhook);
CREATE INDEX posthorn_queue_ordered ON posthorn_queue (webhook, ordering, event) WHERE ordering <> 0;
CREATE INDEX posthorn_queue_replayed ON posthorn_queue (run, attempt, lane, event) WHERE trigger = 'replay';

-- The columns that are filtered by stand before the long ones.
CREATE TABLE posthorn_deliveries (
    seq             INTEGER PRIMARY KEY, -- from counters
    id              BLOB    NOT NULL, -- a UUID of version 7 with the event's time
    webhook         INTEGER NOT NULL,
    previous        INTEGER NOT NULL, -- the webhook's delivery before this one, 0 for none; it may have been pruned
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
CREATE UNIQUE INDEX posthorn_deliveries_by_id ON posthorn_deliveries (id);
CREATE INDEX posthorn_deliveries_replayed ON posthorn_deliveries (run, success, next_attempt_at) WHERE trigger = 'replay';

CREATE TABLE posthorn_replays (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    webhook    INTEGER NOT NULL,
    run        INTEGER NOT NULL, -- from counters
    version    INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    range      TEXT    NOT NULL, -- JSON object: which events
    before     INTEGER NOT NULL,
    examined   INTEGER NOT NULL,
    matched    INTEGER NOT NULL,
    succeeded  INTEGER NOT NULL, -- this and failed: 0 until it has ended
    failed     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX posthorn_replays_by_webhook ON posthorn_replays (webhook, seq);
CREATE UNIQUE INDEX posthorn_replays_one ON posthorn_replays (webhook) WHERE ended_at = 0; -- a webhook has one at a time
CREATE INDEX posthorn_replays_by_end ON posthorn_replays (ended_at, seq);

CREATE TABLE posthorn_nodes (
    node        INTEGER PRIMARY KEY AUTOINCREMENT,
    lease_until INTEGER NOT NULL -- -1: ended, and its entries are being freed
) STRICT;

-- The last numbers that were given out. AUTOINCREMENT would look after that too, but once for every row.
CREATE TABLE posthorn_counters (
    name TEXT PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO posthorn_counters VALUES ('event', 0), ('delivery', 0), ('run', 0), ('change', 0);

-- What a listing starts with: the newest row, and counts, so that no total is a scan.
CREATE TABLE posthorn_repos (
    repo_id  TEXT PRIMARY KEY,
    webhooks INTEGER NOT NULL DEFAULT 0,
    events   INTEGER NOT NULL DEFAULT 0,
    newest   INTEGER NOT NULL DEFAULT 0 -- event
) STRICT, WITHOUT ROWID;
CREATE TABLE posthorn_logs (
    webhook   INTEGER PRIMARY KEY,
    live      INTEGER NOT NULL DEFAULT 1, -- 0 once the webhook is deleted
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed    INTEGER NOT NULL DEFAULT 0,
    newest    INTEGER NOT NULL DEFAULT 0 -- delivery
) STRICT;

-- API tokens. The text of one is nowhere.
CREATE TABLE posthorn_tokens (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT    NOT NULL UNIQUE,
    hash         TEXT    NOT NULL UNIQUE,
    name         TEXT    NOT NULL,
    scopes       TEXT    NOT NULL, -- JSON array
    repos        TEXT    NOT NULL, -- JSON array
    all_repos    INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL
) STRICT;

CREATE TABLE posthorn_audit (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    repo_id TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL
) STRICT;
CREATE INDEX posthorn_audit_by_repo ON posthorn_audit (repo_id, seq);

CREATE TABLE posthorn_settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
