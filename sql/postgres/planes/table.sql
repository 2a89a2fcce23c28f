CREATE TABLE planes (
    tailnum      text PRIMARY KEY,
    year         smallint, -- of manufacture
    type         text,
    manufacturer text,
    model        text,
    engines      smallint,
    seats        smallint,
    speed        smallint, -- miles per hour
    engine       text
);
