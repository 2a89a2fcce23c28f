-- blocking: a purchase has one row
SELECT id FROM {table} GROUP BY id HAVING count() > 1
