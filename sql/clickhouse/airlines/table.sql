-- A dimension: whole on every shard.
CREATE TABLE airlines
(
    carrier String,
    name    String
)
ENGINE = MergeTree
ORDER BY carrier
