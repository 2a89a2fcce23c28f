-- A dimension: whole on every shard.
CREATE TABLE airports
(
    faa   String,
    name  String,
    lat   Float64 COMMENT 'degrees',
    lon   Float64 COMMENT 'degrees',
    alt   Int32   COMMENT 'feet',
    tz    Nullable(Float64) COMMENT 'hours from UTC, without summer time',
    dst   Nullable(String),
    tzone Nullable(String)
)
ENGINE = MergeTree
ORDER BY faa
