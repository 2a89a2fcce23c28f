-- title: The most delayed routes
-- text: Routes with at least 300 arrivals, by mean arrival delay.
-- chart: bar x=route y=mean_arrival_delay unit=minutes
SELECT
    concat(f.origin, ' to ', f.dest) AS route,
    any(p.name) AS destination,
    countIf(NOT f.cancelled) AS flown,
    round(avg(f.arr_delay), 1) AS mean_arrival_delay,
    round(quantile(0.9)(f.arr_delay), 0) AS ninth_decile
FROM flights AS f
LEFT JOIN airports AS p ON p.faa = f.dest
WHERE f.flight_date >= {start:Date} AND f.flight_date < {stop:Date}
GROUP BY f.origin, f.dest
HAVING count(f.arr_delay) >= 300
ORDER BY mean_arrival_delay DESC
LIMIT 15
