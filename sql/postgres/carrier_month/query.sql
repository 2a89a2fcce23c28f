-- What marts.carrier_month holds, asked of ClickHouse: months from {start:Date} up to, not including, {stop:Date}.
SELECT
    toStartOfMonth(f.flight_date) AS month,
    f.carrier AS carrier,
    any(a.name) AS name,
    count() AS flights,
    countIf(f.cancelled) AS cancelled,
    count(f.arr_delay) AS arrivals,
    avg(f.dep_delay) AS mean_dep_delay,
    avg(f.arr_delay) AS mean_arr_delay
FROM flights AS f
INNER JOIN airlines AS a ON a.carrier = f.carrier
WHERE f.flight_date >= {start:Date} AND f.flight_date < {stop:Date}
GROUP BY month, carrier
ORDER BY month, carrier
