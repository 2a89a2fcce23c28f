-- warning: no flight leaves more than a day late, or two hours early
SELECT flight, dep_delay FROM {table} WHERE dep_delay NOT BETWEEN -120 AND 1440
