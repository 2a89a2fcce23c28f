"""PostgreSQL's users for people: they read marts, and the tables of the Iceberg catalog. Only a superuser makes them.

Their rights are those of one role. A person's user is a member of it, and owns nothing: it can be dropped at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trilake.endpoints import PostgresEndpoint
from trilake.errors import ConfigurationError
from trilake.postgres.connection import connect
from trilake.postgres.databases import BACKUP_USER, CATALOG_READER

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

READERS = "trilake_readers"
OLTP, LAKE = "oltp", "lake"
_MARTS = "marts"
# The tables that PyIceberg and Spark read to find a table's metadata.
_CATALOG = ("iceberg_tables", "iceberg_namespace_properties")
# Another user's name: a person may not become it.
_TAKEN = {"postgres", OLTP, LAKE, "airflow", BACKUP_USER, CATALOG_READER, READERS}
_CONNECTIONS = 5
_STATEMENT_TIMEOUT = "10min"


def set_reader(superuser: PostgresEndpoint, name: str, password: str) -> None:
    """Make a person's user, or give it this password. Can be repeated.

    :param superuser: of any database of the server.
    :raises ConfigurationError: the name belongs to a user of Trilake.
    """
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    _check(name)
    grant_readers(superuser)
    with connect(superuser) as connection, connection.cursor() as cursor:
        # hash the password here, so that no statement contains it
        hashed = encrypt_password(password, name, connection, "scram-sha-256")
        verb = "ALTER" if _exists(cursor, name) else "CREATE"
        user = sql.Identifier(name)
        rights = f"LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT {_CONNECTIONS} PASSWORD"
        cursor.execute(sql.SQL(f"{verb} ROLE {{}} {rights} {{}}").format(user, sql.Literal(hashed)))
        cursor.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(user))
        cursor.execute(sql.SQL(f"ALTER ROLE {{}} SET statement_timeout = '{_STATEMENT_TIMEOUT}'").format(user))
        cursor.execute(sql.SQL(f"GRANT {READERS} TO {{}}").format(user))


def drop_reader(superuser: PostgresEndpoint, name: str) -> bool:
    """Drop a person's user and end its sessions. Can be repeated. False: there was none."""
    from psycopg2 import sql

    _check(name)
    user = sql.Identifier(name)
    with connect(superuser, autocommit=True) as connection, connection.cursor() as cursor:
        if not _exists(cursor, name):
            return False
        cursor.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(user))
        # a session that ends here rolls back, so that its locks do not hold up the DROP
        cursor.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", (name,))
        cursor.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(user))
        return True


def grant_readers(superuser: PostgresEndpoint) -> None:
    """Give the role of readers its rights on what exists by now. Can be repeated."""
    with connect(superuser) as connection, connection.cursor() as cursor:
        if not _exists(cursor, READERS):
            cursor.execute(f"CREATE ROLE {READERS} NOLOGIN")
        cursor.execute(f"GRANT CONNECT ON DATABASE {OLTP}, {LAKE} TO {READERS}")
    with connect(replace(superuser, database=OLTP)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (_MARTS,))
        if cursor.fetchone():  # the migrations make it
            cursor.execute(f"GRANT USAGE ON SCHEMA {_MARTS} TO {READERS}")
            cursor.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {_MARTS} TO {READERS}")
            # and on the marts that Trilake's user makes later
            cursor.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
            (owner,) = cursor.fetchone() or ("postgres",)
            cursor.execute(
                f'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA {_MARTS} GRANT SELECT ON TABLES TO {READERS}'
            )
    with connect(replace(superuser, database=LAKE)) as connection, connection.cursor() as cursor:
        for table in _CATALOG:
            cursor.execute("SELECT to_regclass(%s)", (f"public.{table}",))
            if cursor.fetchone() != (None,):  # the catalog makes them when it is first opened
                cursor.execute(f"GRANT SELECT ON public.{table} TO {READERS}")


def _check(name: str) -> None:
    if name in _TAKEN or name.startswith("pg_"):
        raise ConfigurationError(f"{name} is a user of PostgreSQL that Trilake needs.", hint="Choose another name.")


def _exists(cursor: Cursor, name: str) -> bool:
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
    return cursor.fetchone() is not None
