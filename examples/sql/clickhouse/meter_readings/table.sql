CREATE TABLE meter_readings
(
    meter Int32,
    day   Date,
    kwh   Float64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (meter, day)
