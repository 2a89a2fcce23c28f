CREATE TABLE purchases
(
    id     Int32,
    shop   LowCardinality(String),
    day    Date,
    amount Nullable(Decimal(9, 2)) COMMENT 'euros; NULL where the till did not say'
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (shop, day, id)
