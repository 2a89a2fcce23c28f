-- The server binds the day; Jinja fills in the table name.
CREATE TABLE IF NOT EXISTS {{ params.table }} (day Date, station UInt8, value Float64) ENGINE = MergeTree ORDER BY (day, station);
DELETE FROM {{ params.table }} WHERE day = {day:Date};
INSERT INTO {{ params.table }} SELECT {day:Date}, number % 16, sin(number) FROM numbers({{ params.rows }});
SELECT station, count() FROM {{ params.table }} WHERE day = {day:Date} GROUP BY station ORDER BY station
