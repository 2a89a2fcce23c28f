-- A dimension: whole on every shard.
CREATE TABLE planes
(
    tailnum      String,
    year         Nullable(Int32) COMMENT 'of manufacture',
    type         Nullable(String),
    manufacturer Nullable(String),
    model        Nullable(String),
    engines      Nullable(Int32),
    seats        Nullable(Int32),
    speed        Nullable(Int32) COMMENT 'miles per hour',
    engine       Nullable(String)
)
ENGINE = MergeTree
ORDER BY tailnum
