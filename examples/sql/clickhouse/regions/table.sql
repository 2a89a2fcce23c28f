CREATE TABLE regions
(
    region Int32,
    name   String
)
ENGINE = MergeTree
ORDER BY region
