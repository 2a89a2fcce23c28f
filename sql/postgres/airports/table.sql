CREATE TABLE airports (
    faa   text PRIMARY KEY,
    name  text NOT NULL,
    lat   double precision NOT NULL, -- degrees
    lon   double precision NOT NULL, -- degrees
    alt   integer NOT NULL,          -- feet
    tz    double precision,          -- hours from UTC, without summer time
    dst   text,
    tzone text
);
