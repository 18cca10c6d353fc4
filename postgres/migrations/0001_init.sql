-- The search path is the schema, so names are not qualified here. Times are timestamptz. Days are counted from 1970-01-01
-- in UTC. Numbers called seq come from sequences and are never used twice. Ids compare as bytes (COLLATE "C").
--
-- Autovacuum's usual threshold is a share of a table. These tables are busy out of all proportion to their size, and a
-- vacuum of a small table is cheap: most get a fixed number of dead rows instead, and no pauses.

-- +goose Up

-- A commit takes one number for all of its events, and one for all of its deliveries: theirs count on from there.
CREATE SEQUENCE event_seq INCREMENT BY 65536 START WITH 65536;
CREATE SEQUENCE delivery_seq INCREMENT BY 65536 START WITH 65536;
CREATE SEQUENCE run_seq;

CREATE TABLE webhooks (
    seq         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          text        COLLATE "C" NOT NULL UNIQUE,
    repo_id     text        COLLATE "C" NOT NULL,
    url         text        NOT NULL,
    events      text        NOT NULL, -- JSON array of event types
    active      boolean     NOT NULL,
    health      text    NOT NULL, -- JSON object: what the dispatcher has found out about it
    description text        NOT NULL,
    secrets     text        NOT NULL, -- JSON array, newest first
    options     text        NOT NULL, -- JSON object
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    deleted     boolean     NOT NULL DEFAULT false -- only here until what it left behind has been pruned
);
CREATE INDEX webhooks_by_repo ON webhooks (repo_id, seq) WHERE NOT deleted;
CREATE INDEX webhooks_deleted ON webhooks (seq) WHERE deleted;

-- The newest changes to webhooks, from which nodes learn what to read again.
CREATE TABLE changes (
    version bigint PRIMARY KEY, -- from counters, whose row's lock makes their order that of the commits
    webhook bigint NOT NULL,
    repo_id text   NOT NULL
);

CREATE TABLE counters (
    name text   PRIMARY KEY,
    last bigint NOT NULL
) WITH (fillfactor = 50); -- room to update in place
INSERT INTO counters VALUES ('change', 0);

-- Rows are never updated, because payloads are big, and are deleted once, when they are old.
CREATE TABLE events (
    seq        bigint      PRIMARY KEY, -- event_seq
    id         text        COLLATE "C" NOT NULL,
    repo_id    text        COLLATE "C" NOT NULL,
    type       text        NOT NULL,
    created_at timestamptz NOT NULL,
    deliveries integer     NOT NULL,
    attributes text        NOT NULL, -- JSON, or empty for none
    payload    bytea       NOT NULL -- the exact bytes, so neither text nor JSON
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);
-- The id first: ids are nearly ordered by time, so that the index grows at its end.
CREATE UNIQUE INDEX events_by_id ON events (id, repo_id);
CREATE INDEX events_by_repo ON events (repo_id, seq);

-- The automatic first attempts that nodes have in memory and that have no row in the queue: for each block of events those that
-- are not settled yet, side by side. Most rows live for some milliseconds.
CREATE TABLE promises (
    block    bigint   PRIMARY KEY, -- 64 numbers of events
    node     bigint   NOT NULL,
    events   bigint[] NOT NULL,
    webhooks bigint[] NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 5000
);

-- One row for each other entry, leased or free. Only what is free is in queue_free, in the order in which
-- a webhook's entries are claimed. There is no index by node: a dead node's entries are found by reading the table once.
CREATE TABLE queue (
    event     bigint      NOT NULL,
    webhook   bigint      NOT NULL,
    run       bigint      NOT NULL,
    due_at    timestamptz NOT NULL,
    node      bigint, -- NULL while free, 0 behind another one of its ordering, -1 where that is still to be found out, -2 held, -3 of a replay and waiting
    attempt   integer     NOT NULL,
    automatic boolean     NOT NULL GENERATED ALWAYS AS (trigger IN ('automatic', 'replay')) STORED, -- not asked for by hand
    trigger   text        NOT NULL,
    ordering  bigint      NOT NULL DEFAULT 0, -- not 0: done one after the other, with the webhook's others of this number
    turn      bigint,     -- by this; a number of event_seq; NULL while node is -1, and where there is no ordering
    PRIMARY KEY (event, webhook, run)
) WITH (
    -- Claiming updates every row of a page at about the same time: with room left, the new versions stand beside the old.
    fillfactor = 70,
    -- Dead rows are what makes this table slow, so it is vacuumed as often as autovacuum looks at it.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 5000
);
CREATE INDEX queue_free ON queue (webhook, automatic, due_at, event, run) WHERE node IS NULL;
-- Of each ordering, the one whose turn it is, and those behind it. See ordering.go.
CREATE INDEX queue_turn ON queue (webhook, ordering, turn) WHERE ordering <> 0 AND (node IS NULL OR node > 0);
CREATE INDEX queue_behind ON queue (webhook, ordering, turn) WHERE ordering <> 0 AND node = 0;
CREATE INDEX queue_unplaced ON queue (webhook, ordering, event) WHERE node = -1;
CREATE INDEX queue_held ON queue (webhook, due_at, event, run) WHERE node = -2;
-- Of each replay, the entries that wait, and those that were let go.
CREATE INDEX queue_waiting ON queue (run, event) WHERE node = -3;
CREATE INDEX queue_replayed ON queue (run, attempt, event) WHERE trigger = 'replay' AND coalesce(node, 0) <> -3;

-- The log: one partition for each day of the events, which their deliveries' ids begin with. So the id alone can be the key,
-- which makes recording a delivery twice harmless, and a day goes at once. There is no default partition: rows in it would be
-- in the way of the one they belong to.
CREATE TABLE deliveries (
    seq             bigint      NOT NULL, -- delivery_seq
    id              uuid        NOT NULL, -- version 7, with the event's time
    webhook         bigint      NOT NULL,
    event           bigint      NOT NULL, -- which may have been pruned
    success         boolean     NOT NULL,
    delivered_at    timestamptz NOT NULL,
    next_attempt_at timestamptz,
    run             bigint      NOT NULL,
    attempt         integer     NOT NULL,
    status          integer     NOT NULL,
    trigger         text        NOT NULL,
    event_id        text        COLLATE "C" NOT NULL,
    event_type      text        NOT NULL,
    body            bytea       NOT NULL, -- text that may have NUL characters, which PostgreSQL's text may not
    exchange        bytea       NOT NULL, -- JSON
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX deliveries_by_webhook ON deliveries (webhook, seq);
CREATE INDEX deliveries_replayed ON deliveries (run, success, next_attempt_at) WHERE trigger = 'replay';

CREATE TABLE replays (
    seq        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id         text        COLLATE "C" NOT NULL UNIQUE,
    webhook    bigint      NOT NULL,
    run        bigint      NOT NULL DEFAULT nextval('run_seq'),
    version    bigint      NOT NULL,
    state      text        NOT NULL,
    range      text        NOT NULL, -- JSON object: which events
    before     bigint      NOT NULL,
    examined   bigint      NOT NULL,
    matched    bigint      NOT NULL,
    succeeded  bigint      NOT NULL DEFAULT 0, -- this and failed: 0 until it has ended
    failed     bigint      NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    ended_at   timestamptz
);
CREATE INDEX replays_by_webhook ON replays (webhook, seq);
CREATE UNIQUE INDEX replays_one ON replays (webhook) WHERE ended_at IS NULL; -- a webhook has one at a time
CREATE INDEX replays_by_end ON replays (ended_at, seq);

CREATE TABLE nodes (
    node        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lease_until timestamptz NOT NULL,
    ended       boolean     NOT NULL DEFAULT false -- its entries are being freed
) WITH (fillfactor = 50);

-- Counts, so that no total is a scan.

-- Of a repo's webhooks, and of all repos' as repo "". Changes to webhooks wait for each other anyway (see changes).
CREATE TABLE webhook_counts (
    repo_id  text   COLLATE "C" PRIMARY KEY,
    webhooks bigint NOT NULL
);

-- Of what commits write. A row is a difference, and a total is their sum: nobody updates a row that others wait
-- for. Prune folds them together, and finds the new ones at one end of the index.
CREATE TABLE repo_counts (
    repo_id text    COLLATE "C" NOT NULL,
    events  bigint  NOT NULL,
    folded  boolean NOT NULL DEFAULT false
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX repo_counts_by_repo ON repo_counts (folded, repo_id);

CREATE TABLE delivery_counts (
    webhook   bigint  NOT NULL,
    day       integer NOT NULL, -- of the event, and so of the partition
    recorded  integer NOT NULL, -- the day of the delivery itself
    succeeded bigint  NOT NULL,
    failed    bigint  NOT NULL,
    folded    boolean NOT NULL DEFAULT false
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX delivery_counts_by_webhook ON delivery_counts (folded, webhook, day);
CREATE INDEX delivery_counts_by_day ON delivery_counts (day, recorded);

-- API tokens. The text of one is nowhere.
CREATE TABLE tokens (
    seq          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           text        COLLATE "C" NOT NULL UNIQUE,
    hash         text        COLLATE "C" NOT NULL UNIQUE,
    name         text        NOT NULL,
    scopes       text[]      NOT NULL,
    repos        text[]      NOT NULL,
    all_repos    boolean     NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    last_used_at timestamptz
) WITH (fillfactor = 70); -- room to update in place

CREATE TABLE audit (
    seq     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL,
    actor   text        NOT NULL,
    action  text        NOT NULL,
    repo_id text        COLLATE "C" NOT NULL,
    subject text        NOT NULL,
    detail  text        NOT NULL
);
CREATE INDEX audit_by_repo ON audit (repo_id, seq);

CREATE TABLE settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);
