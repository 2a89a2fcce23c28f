-- database: lake
-- A run took this, and no job has committed it since. Of what was taken before this nobody knows, and nobody is told.
ALTER TABLE arrivals ADD COLUMN awaited boolean NOT NULL DEFAULT false;
