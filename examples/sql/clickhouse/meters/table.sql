CREATE TABLE meters
(
    meter  Int32,
    street String
)
ENGINE = MergeTree
ORDER BY meter
