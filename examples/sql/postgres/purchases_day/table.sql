CREATE SCHEMA IF NOT EXISTS marts;
CREATE TABLE marts.purchases_day (
    day       date   NOT NULL,
    shop      text   NOT NULL,
    purchases bigint NOT NULL,
    amount    numeric(19, 2), -- euros; NULL if no purchase has an amount
    PRIMARY KEY (day, shop)
);
