-- database: lake
-- What of s3://raw/ is in whose hands: plugins/trilake/arrivals.py tells how it is used.
CREATE TABLE arrivals (
    data_set  text        NOT NULL,
    partition text        NOT NULL,
    digest    text        NOT NULL,
    run_id    text        NOT NULL,
    taken_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (data_set, partition)
);
