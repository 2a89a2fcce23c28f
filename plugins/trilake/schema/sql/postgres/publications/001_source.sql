-- database: lake
-- What a publication's rows came from: 'Iceberg table <UUID>', or 'plain objects'. Those before this are of Iceberg tables
-- whose UUID nobody wrote down. Of plain objects snapshot_id is a digest and sequence_number the version of the load.
ALTER TABLE publications ADD COLUMN source text NOT NULL DEFAULT 'Iceberg table';
