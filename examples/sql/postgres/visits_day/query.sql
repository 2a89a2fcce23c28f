-- Visits by day and page; here without a table of ClickHouse below it.
SELECT {start:Date} + number % 28 AS day, concat('/page/', toString(number % 5)) AS page, count() AS visits
FROM numbers(10000)
WHERE day < {stop:Date}
GROUP BY day, page
