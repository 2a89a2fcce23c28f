"""How many commits of `commits.py` the lake and PostgreSQL have; each file is read."""

import json
from contextlib import closing

from trilake.endpoints import Endpoints
from trilake.lake.catalog import load_table, open_catalog
from trilake.postgres.connection import connect

endpoints = Endpoints.from_environment()
with closing(open_catalog(endpoints.lake, endpoints.s3)) as catalog:
    lake = load_table(catalog, "curated.commits").scan().to_arrow().num_rows
with connect(endpoints.oltp) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT max(n) FROM commits")
    row = cursor.fetchone()
print(json.dumps({"lake": lake, "oltp": row[0] if row else 0}))
