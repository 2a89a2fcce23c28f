-- blocking: a cancelled flight has no departure time, and only a cancelled one has none
SELECT flight FROM {table} WHERE cancelled != (dep_time IS NULL)
