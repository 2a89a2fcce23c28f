-- warning: every purchase has an amount
SELECT id FROM {table} WHERE amount IS NULL
