-- database: lake
-- The ledger of publications: plugins/trilake/clickhouse/ledger.py tells how it is used.
CREATE TABLE publications (
    table_name      text        NOT NULL,
    partition       text        NOT NULL,
    fence           bigint      NOT NULL CHECK (fence > 0),
    state           text        NOT NULL CHECK (state IN ('switching', 'done', 'superseded')),
    attempt         text        NOT NULL,
    snapshot_id     bigint      NOT NULL,
    sequence_number bigint      NOT NULL,
    rows            jsonb       NOT NULL,
    run_id          text        NOT NULL,
    decided_at      timestamptz NOT NULL DEFAULT now(),
    done_at         timestamptz,
    PRIMARY KEY (table_name, partition, fence)
);
-- One switch at a time for a partition, whatever the program believes.
CREATE UNIQUE INDEX publications_switching ON publications (table_name, partition) WHERE state = 'switching';

CREATE TABLE publication_attempts (
    attempt    text        PRIMARY KEY,
    table_name text        NOT NULL,
    run_id     text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);
