-- warning: every till says what was paid
SELECT id FROM {table} WHERE amount IS NULL
