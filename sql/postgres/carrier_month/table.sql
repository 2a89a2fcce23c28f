CREATE SCHEMA IF NOT EXISTS marts;
CREATE TABLE marts.carrier_month (
    month          date NOT NULL, -- its first day
    carrier        text NOT NULL,
    name           text NOT NULL,
    flights        bigint NOT NULL,
    cancelled      bigint NOT NULL,
    arrivals       bigint NOT NULL, -- neither cancelled nor diverted
    mean_dep_delay double precision, -- minutes, of the flights that left
    mean_arr_delay double precision, -- minutes, of the arrivals
    PRIMARY KEY (month, carrier)
);
