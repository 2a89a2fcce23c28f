-- The day is bound on the server, the table's name is a template.
DELETE FROM {{ params.table }} WHERE day = {day:Date};
INSERT INTO {{ params.table }} SELECT {day:Date}, carrier, count() FROM flights WHERE flight_date = {day:Date} GROUP BY carrier;
SELECT count() FROM {{ params.table }} WHERE day = {day:Date}
