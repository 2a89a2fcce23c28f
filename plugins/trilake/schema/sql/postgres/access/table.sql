-- database: lake
-- The people and agents who have access, one row for each name. `hashes` has hashes of their passwords, by service, and
-- no secret: a new shard of ClickHouse gets the same users from them. An `adding` or `revoking` row belongs to a command
-- that runs or died; the same command completes it. plugins/trilake/platform/access.py describes the steps.
CREATE TABLE access (
    name       text        PRIMARY KEY,
    role       text        NOT NULL CHECK (role IN ('agent', 'engineer', 'admin')),
    options    jsonb       NOT NULL DEFAULT '{}',
    hashes     jsonb       NOT NULL DEFAULT '{}',
    state      text        NOT NULL CHECK (state IN ('adding', 'active', 'revoking', 'revoked')),
    added_at   timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
