-- database: lake
-- Over how many shards the rows of a table are spread: the first `shards` of the connection. The generation counts the
-- changes of this number. `next_shards` is the number of a reshard in progress; while it is `switching`, nothing else
-- may publish into the table. plugins/trilake/clickhouse/publication/reshard.py describes the steps.
CREATE TABLE shard_sets (
    table_name  text    PRIMARY KEY,
    generation  bigint  NOT NULL DEFAULT 1 CHECK (generation > 0),
    shards      integer NOT NULL CHECK (shards > 0),
    next_shards integer CHECK (next_shards > 0),
    switching   boolean NOT NULL DEFAULT false CHECK (NOT switching OR next_shards IS NOT NULL)
);

-- The partitions that a reshard has copied, each with the fence of the publication whose rows it has.
CREATE TABLE reshard_copies (
    table_name text   NOT NULL,
    partition  text   NOT NULL,
    fence      bigint NOT NULL,
    rows       jsonb  NOT NULL,
    checksums  jsonb  NOT NULL,
    columns    jsonb  NOT NULL,
    PRIMARY KEY (table_name, partition)
);
