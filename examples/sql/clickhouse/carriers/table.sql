CREATE TABLE carriers
(
    carrier LowCardinality(String),
    name    String
)
ENGINE = MergeTree
ORDER BY carrier
