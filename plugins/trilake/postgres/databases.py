"""Databases of a PostgreSQL server, each with its own user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trilake.endpoints import PostgresEndpoint
from trilake.postgres.connection import connect

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

BACKUP_USER = "backup"
# Reads Iceberg's catalog in database `lake`, for agents' Spark applications.
CATALOG_READER = "lake_ro"


def make_databases(superuser: PostgresEndpoint, passwords: Mapping[str, str]) -> None:
    """Create separate databases. Each is owned by a user of the same name, who cannot connect to the others. Can be
    repeated.

    An existing user gets the password given here.

    :param passwords: by database.
    """
    from psycopg2 import sql

    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles UNION ALL SELECT 'database ' || datname FROM pg_database")
        existing = {name for (name,) in cursor.fetchall()}
        for name, password in passwords.items():
            _set_user(cursor, name, password, "LOGIN", known=name in existing)
            if f"database {name}" not in existing:
                cursor.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")


def make_backup_user(superuser: PostgresEndpoint, password: str) -> None:
    """Create the user that copies the server. It can connect to no database. Can be repeated."""
    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (BACKUP_USER,))
        known = cursor.fetchone() is not None
        _set_user(cursor, BACKUP_USER, password, "LOGIN REPLICATION", known=known)


def make_catalog_reader(superuser: PostgresEndpoint, password: str) -> None:
    """Create the user that reads Iceberg's catalog. It can connect to database lake alone. Can be repeated.

    Its rights to the catalog's tables come with `trilake migrate` (`trilake.lake.catalog.grant_catalog`).
    """
    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (CATALOG_READER,))
        known = cursor.fetchone() is not None
        _set_user(cursor, CATALOG_READER, password, "LOGIN CONNECTION LIMIT 40", known=known)
        cursor.execute(f"ALTER ROLE {CATALOG_READER} SET default_transaction_read_only = on")
        cursor.execute(f"GRANT CONNECT ON DATABASE lake TO {CATALOG_READER}")


def _set_user(cursor: Cursor, name: str, password: str, rights: str, *, known: bool) -> None:
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    # hash the password here, so that no statement contains it
    hashed = encrypt_password(password, name, cursor.connection, "scram-sha-256")
    verb = "ALTER" if known else "CREATE"
    statement = sql.SQL(f"{verb} ROLE {{}} {rights} PASSWORD {{}}")
    cursor.execute(statement.format(sql.Identifier(name), sql.Literal(hashed)))
