CREATE TABLE visits
(
    visitor UInt32,
    day     Date,
    page    Nullable(String),
    seconds UInt16 COMMENT 'spent on the page'
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, visitor)
