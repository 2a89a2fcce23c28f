"""Who gets into which database of vps_1, by trying: "user@port/database" -> whether."""

import json
import os

import psycopg2

PASSWORDS = {
    "postgres": os.environ["POSTGRES_SUPERUSER_PASSWORD"],
    "airflow": os.environ["AIRFLOW_DB_PASSWORD"],
    "oltp": os.environ["OLTP_PASSWORD"],
    "lake": os.environ["LAKE_PASSWORD"],
    "lake_ro": os.environ["LAKE_RO_PASSWORD"],
    "backup": os.environ["POSTGRES_BACKUP_PASSWORD"],  # it may copy both servers, and enter no database
}
found = {}
for host, port in (("127.0.0.1", 5433), ("vps-1", 5432)):
    for user, password in PASSWORDS.items():
        for database in ("airflow", "oltp", "lake", "postgres", "template1"):
            for given in (password, "wrong", ""):
                if given == "wrong" and user != "postgres":
                    continue
                how = {password: "", "": " (no password)"}.get(given, f" ({given})")
                name = f"{user}{how}@{port}/{database}"
                try:
                    psycopg2.connect(
                        host=host, port=port, user=user, password=given or None, dbname=database, connect_timeout=5
                    ).close()
                    found[name] = True
                except psycopg2.OperationalError:
                    found[name] = False
print(json.dumps(found))
