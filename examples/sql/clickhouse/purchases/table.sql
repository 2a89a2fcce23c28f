CREATE TABLE purchases
(
    id     Int32,
    shop   LowCardinality(String),
    day    Date,
    amount Nullable(Decimal(9, 2)) COMMENT 'euros; NULL if the till recorded no amount'
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (shop, day, id)
