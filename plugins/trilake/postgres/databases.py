"""Databases of a PostgreSQL server, each with its own user."""

from __future__ import annotations

from collections.abc import Mapping

from trilake.endpoints import PostgresEndpoint
from trilake.postgres.connection import connect


def make_databases(superuser: PostgresEndpoint, passwords: Mapping[str, str]) -> None:
    """Create separate databases. Each is owned by a user of the same name, who cannot connect to the others. Can be
    repeated.

    An existing user gets the password given here.

    :param passwords: by database.
    """
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles UNION ALL SELECT 'database ' || datname FROM pg_database")
        existing = {name for (name,) in cursor.fetchall()}
        for name, password in passwords.items():
            # hash the password here, so that no statement contains it
            hashed = encrypt_password(password, name, connection, "scram-sha-256")
            verb = "ALTER" if name in existing else "CREATE"
            cursor.execute(
                sql.SQL(f"{verb} ROLE {{}} LOGIN PASSWORD {{}}").format(sql.Identifier(name), sql.Literal(hashed))
            )
            if f"database {name}" not in existing:
                cursor.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
