-- Visits by day and page. This example needs no table in ClickHouse.
SELECT {start:Date} + number % 28 AS day, concat('/page/', toString(number % 5)) AS page, count() AS visits
FROM numbers(10000)
WHERE day < {stop:Date}
GROUP BY day, page
