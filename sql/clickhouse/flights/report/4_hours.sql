-- title: When to fly
-- text: Mean departure delay by weekday and scheduled hour.
-- chart: heatmap x=hour y=weekday value=mean_delay unit=minutes
SELECT
    ['1 Mon', '2 Tue', '3 Wed', '4 Thu', '5 Fri', '6 Sat', '7 Sun'][toDayOfWeek(flight_date)] AS weekday,
    hour,
    count() AS flights,
    round(avg(dep_delay), 1) AS mean_delay
FROM flights
WHERE flight_date >= {start:Date} AND flight_date < {stop:Date} AND hour BETWEEN 5 AND 23
GROUP BY weekday, hour
ORDER BY weekday, hour
