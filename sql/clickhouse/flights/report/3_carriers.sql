-- title: Carriers
-- text: All carriers by mean arrival delay.
-- chart: bar x=name y=mean_arrival_delay unit=minutes
SELECT
    any(a.name) AS name,
    f.carrier AS carrier,
    count() AS flights,
    round(100 * avg(f.cancelled), 2) AS cancelled_percent,
    round(avg(f.dep_delay), 2) AS mean_departure_delay,
    round(avg(f.arr_delay), 2) AS mean_arrival_delay
FROM flights AS f
INNER JOIN airlines AS a ON a.carrier = f.carrier
WHERE f.flight_date >= {start:Date} AND f.flight_date < {stop:Date}
GROUP BY f.carrier
ORDER BY mean_arrival_delay DESC
