-- title: The year, month by month
-- text: Mean delays in minutes, of the flights that left and that arrived; cancelled in percent.
-- chart: line x=month y=departure_delay,arrival_delay unit=minutes
SELECT
    formatDateTime(flight_date, '%Y-%m') AS month,
    count() AS flights,
    round(100 * avg(cancelled), 2) AS cancelled_percent,
    round(avg(dep_delay), 2) AS departure_delay,
    round(avg(arr_delay), 2) AS arrival_delay
FROM flights
WHERE flight_date >= {start:Date} AND flight_date < {stop:Date}
GROUP BY month
ORDER BY month
