"""Databases of a PostgreSQL server, each with a user of its own."""

from __future__ import annotations

from collections.abc import Mapping

from trilake.endpoints import PostgresEndpoint
from trilake.postgres.connection import connect


def make_databases(superuser: PostgresEndpoint, passwords: Mapping[str, str]) -> None:
    """Databases that do not know one another, each owned by a user of its name, who may enter no other. Safe twice.

    A user that is there gets this password: it is the one that everybody is told.

    :param passwords: by database.
    """
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles UNION ALL SELECT 'database ' || datname FROM pg_database")
        known = {name for (name,) in cursor.fetchall()}
        for name, password in passwords.items():
            # hashed here: the password itself is never part of a statement
            hashed = encrypt_password(password, name, connection, "scram-sha-256")
            verb = "ALTER" if name in known else "CREATE"
            cursor.execute(
                sql.SQL(f"{verb} ROLE {{}} LOGIN PASSWORD {{}}").format(sql.Identifier(name), sql.Literal(hashed))
            )
            if f"database {name}" not in known:
                cursor.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
