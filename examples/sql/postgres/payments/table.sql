CREATE TABLE payments (
    payment bigint PRIMARY KEY,
    amount  numeric(12, 2) NOT NULL,
    note    text,
    paid_at timestamptz NOT NULL
);
INSERT INTO payments
SELECT n, n / 100.0, CASE WHEN n % 3 = 0 THEN 'paid in ' || n || ' parts' END, timestamptz '2013-01-01 00:00Z' + n * interval '1 hour'
FROM generate_series(1, 2000) n;
