CREATE SCHEMA IF NOT EXISTS marts;
CREATE TABLE marts.visits_day (
    day    date   NOT NULL,
    page   text   NOT NULL,
    visits bigint NOT NULL,
    seen   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (day, page)
);
