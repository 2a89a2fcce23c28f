-- Runs on each shard: the visits of a partition by page.
SELECT page, count() AS visits, uniqExact(visitor) AS visitors
FROM {shard}.visits_local
WHERE day >= {start:Date} AND day < {stop:Date} AND seconds >= {least:UInt16}
GROUP BY page
