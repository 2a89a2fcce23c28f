-- database: lake
-- What a publication's rows are, so that their loss can be found and the same rows can be published again. `columns` are
-- [name, ClickHouse type] of the table at that time. `checksums` are by shard: the sum of the rows' hashes over these
-- columns. `objects` names the data set and the plain objects with ETag and rows; NULL for rows of an Iceberg table.
-- Publications of older versions have none of these.
ALTER TABLE publications ADD COLUMN columns jsonb, ADD COLUMN checksums jsonb, ADD COLUMN objects jsonb;
