-- blocking: a purchase stands once
SELECT id FROM {table} GROUP BY id HAVING count() > 1
