-- blocking: a flight (carrier, number, day, airport and scheduled time) stands once
SELECT carrier, flight, flight_date, origin, sched_dep_time FROM {table} GROUP BY ALL HAVING count() > 1
