-- title: Weather
-- text: Delays and cancellations by visibility in the hour of departure.
-- chart: bar x=visibility_miles y=mean_departure_delay unit=minutes
SELECT
    multiIf(visib < 1, 'below 1', visib < 3, '1 to 3', visib < 6, '3 to 6', visib < 10, '6 to 10', '10') AS visibility_miles,
    count() AS flights,
    round(100 * avg(cancelled), 2) AS cancelled_percent,
    round(avg(dep_delay), 1) AS mean_departure_delay
FROM flights
WHERE flight_date >= {start:Date} AND flight_date < {stop:Date} AND visib IS NOT NULL
GROUP BY visibility_miles
ORDER BY min(visib)
