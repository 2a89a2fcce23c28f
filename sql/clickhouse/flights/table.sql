-- Every flight that left New York's airports, one row each: the source's columns, what the weather was when it was to
-- leave, and the plane that flew it.
--
-- Partitioned by month: the unit that is recomputed and replaced. Sorted by carrier, then destination and day: reports
-- ask for a carrier or a route over time, and equal neighbours compress. The few values of names are LowCardinality
-- (16 carriers, 3 origins, 105 destinations; tail numbers are some 4,000, still far below its limit of 10,000).
-- Delays and times are small numbers that lie close together in this order: T64 cuts them to the bits they need before
-- ZSTD, which is also why no narrower type than Iceberg's int is worth a conversion. time_hour runs almost evenly within
-- a day: Delta. What can be missing in the source is Nullable here and nothing else is: a missing value is never a 0.
CREATE TABLE flights
(
    year           Int32,
    month          Int32,
    day            Int32,
    dep_time       Nullable(Int32) CODEC(T64, ZSTD(1)) COMMENT 'hhmm, local; NULL: cancelled',
    sched_dep_time Int32           CODEC(T64, ZSTD(1)) COMMENT 'hhmm, local',
    dep_delay      Nullable(Int32) CODEC(T64, ZSTD(1)) COMMENT 'minutes; negative: early',
    arr_time       Nullable(Int32) CODEC(T64, ZSTD(1)) COMMENT 'hhmm, local',
    sched_arr_time Int32           CODEC(T64, ZSTD(1)) COMMENT 'hhmm, local',
    arr_delay      Nullable(Int32) CODEC(T64, ZSTD(1)) COMMENT 'minutes; negative: early',
    carrier        LowCardinality(String),
    flight         Int32           CODEC(T64, ZSTD(1)) COMMENT 'number; its Iceberg bucket is the shard',
    tailnum        LowCardinality(Nullable(String)),
    origin         LowCardinality(String),
    dest           LowCardinality(String),
    air_time       Nullable(Int32) CODEC(T64, ZSTD(1)) COMMENT 'minutes',
    distance       Int32           CODEC(T64, ZSTD(1)) COMMENT 'miles',
    hour           Int32            COMMENT 'of sched_dep_time',
    minute         Int32            COMMENT 'of sched_dep_time',
    time_hour      DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)) COMMENT 'the scheduled hour; joins with weather',
    flight_date    Date            COMMENT 'local',
    cancelled      Bool,
    temp           Nullable(Float64) COMMENT 'degrees Fahrenheit',
    wind_speed     Nullable(Float64) COMMENT 'miles per hour',
    precip         Nullable(Float64) COMMENT 'inches in the hour',
    visib          Nullable(Float64) COMMENT 'miles',
    plane_year     Nullable(Int32) COMMENT 'of manufacture',
    manufacturer   LowCardinality(Nullable(String)),
    model          LowCardinality(Nullable(String)),
    seats          Nullable(Int32)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(flight_date)
ORDER BY (carrier, dest, flight_date, flight)
