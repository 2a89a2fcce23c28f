"""``.env``: addresses and secrets of the three hosts. It is written once. Compose and this package read it.

`VARIABLES` lists the variables and the hosts that need them. A host gets only its own part (`part`), without the
secrets of other hosts. vps_3 has digests of its users' passwords, not the passwords.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trilake.errors import ConfigurationError
from trilake.platform.private_files import write_once

FILE = ".env"
HOSTS = ("vps_1", "vps_2", "vps_3")
REPLICA_SUBNET = "10.77.0.0/24"
# The last byte of a host's address in the replica's subnet.
_REPLICA_LAST_BYTES = {"vps_1": 11, "vps_2": 12, "vps_3": 13}
_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.ASCII)
_DIGEST = "_SHA256"
_SHORTEST_SECRET = 16


@dataclass(frozen=True)
class Variable:
    """A variable of ``.env``.

    :param hosts: the hosts that need it.
    :param kind: ``address``; ``secret`` (random, hexadecimal); ``fernet`` (a key of Fernet); ``digest`` (SHA-256, in
        hexadecimal, of the variable of the same name without ``_SHA256``).
    """

    name: str
    about: str
    hosts: tuple[str, ...] = ("vps_1",)
    kind: str = "secret"


VARIABLES = (
    Variable("VPS_1_ADDRESS", "the private addresses of the hosts", HOSTS, "address"),
    Variable("VPS_2_ADDRESS", "", HOSTS, "address"),
    Variable("VPS_3_ADDRESS", "", HOSTS, "address"),
    Variable("POSTGRES_SUPERUSER_PASSWORD", "PostgreSQL: user postgres of both servers"),
    Variable("POSTGRES_BACKUP_PASSWORD", "PostgreSQL: user backup of both servers, which may only copy them"),
    Variable("AIRFLOW_DB_PASSWORD", "PostgreSQL: user airflow, Airflow's metadata"),
    Variable("OLTP_PASSWORD", "PostgreSQL: user oltp, database oltp"),
    Variable("LAKE_PASSWORD", "PostgreSQL: user lake, database lake (Iceberg's catalog, publications)"),
    Variable("AIRFLOW_FERNET_KEY", "Airflow: encrypts connections in the metadata", kind="fernet"),
    Variable("AIRFLOW_API_SECRET_KEY", "Airflow: signs the UI's sessions"),
    Variable("AIRFLOW_JWT_SECRET", "Airflow: signs the tokens of API and tasks"),
    Variable("AIRFLOW_ADMIN_PASSWORD", "Airflow: the UI's user admin"),
    Variable("S3_ROOT_SECRET", "S3: key root, which makes buckets and identities"),
    Variable("S3_AIRFLOW_SECRET", "S3: key airflow"),
    Variable("S3_SPARK_SECRET", "S3: key spark"),
    Variable("S3_CLICKHOUSE_SECRET", "S3: key clickhouse", ("vps_1", "vps_3")),
    Variable("S3_AGENTS_SECRET", "S3: key agents (Airflow's api-server and scheduler)"),
    Variable("S3_AGENTS_SPARK_SECRET", "S3: key agents-spark (agents' Spark applications)"),
    Variable(
        "LAKE_RO_PASSWORD", "PostgreSQL: user lake_ro, which reads Iceberg's catalog (agents' Spark applications)"
    ),
    Variable("CLICKHOUSE_ETL_PASSWORD", "ClickHouse: user etl_writer (Airflow, Spark)"),
    Variable("CLICKHOUSE_AGENTS_PASSWORD", "ClickHouse: user agents (Airflow's api-server and scheduler)"),
    Variable("CLICKHOUSE_ACCESS_PASSWORD", "ClickHouse: user access_admin (only `trilake access`; no service has it)"),
    Variable("CLICKHOUSE_ETL_PASSWORD_SHA256", "ClickHouse: digests of its users' passwords", ("vps_3",), "digest"),
    Variable("CLICKHOUSE_AGENTS_PASSWORD_SHA256", "", ("vps_3",), "digest"),
    Variable("CLICKHOUSE_ACCESS_PASSWORD_SHA256", "", ("vps_3",), "digest"),
    Variable("K3S_TOKEN", "Kubernetes: the token that a node joins with", ("vps_2",)),
    Variable("CLICKHOUSE_INTERSERVER_SECRET", "ClickHouse: secret between the shards", ("vps_3",)),
)


class EnvironmentFileError(ConfigurationError):
    """``.env`` is missing, exists already, or has a missing or wrong variable."""


def replica_settings(subnet: str = REPLICA_SUBNET) -> dict[str, str]:
    """The replica's settings in ``.env`` besides the secrets: addresses, and the network of each host's container.

    :raises EnvironmentFileError: the subnet has fewer than 16 addresses, or they are not private IPv4 addresses.
    """
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as e:
        raise EnvironmentFileError(f"{subnet!r} is not a subnet ({e}).", hint="Use one like 10.77.0.0/24.") from None
    if network.num_addresses < 16 or not network.is_private:
        raise EnvironmentFileError(f"{subnet} is too small or public.", hint="Use one like 10.77.0.0/24.")
    # On a laptop, Airflow runs the DAGs of the folder as they are now. On a host, it runs the deployed DAGs.
    settings = {"TRILAKE_SUBNET": str(network), "DAG_BUNDLE": "folder"}
    for host, last in _REPLICA_LAST_BYTES.items():
        settings[f"{host.upper()}_ADDRESS"] = str(network[last])
        settings[f"{host.upper()}_NETWORK"] = f"service:{host}"
    return settings


def host_settings(addresses: list[str]) -> dict[str, str]:
    """The hosts' settings in ``.env`` besides the secrets.

    :param addresses: the private addresses of vps_1, vps_2 and vps_3.
    :raises EnvironmentFileError: one of them is not a private IPv4 address.
    """
    settings = {f"{host.upper()}_ADDRESS": address for host, address in zip(HOSTS, addresses, strict=True)}
    for name, address in settings.items():
        if problem := _problem(Variable(name, "", kind="address"), address, settings):
            raise EnvironmentFileError(f"{name} {problem}.")
    return settings


def write(path: Path, settings: Mapping[str, str]) -> None:
    """Write the file with new random secrets and mode 600, completely or not at all. An existing file is not replaced.

    :raises EnvironmentFileError: the file exists.
    """
    values = dict(settings)
    for variable in VARIABLES:
        if variable.name not in values:
            values[variable.name] = _random(variable, values)
    if not write_once(path, "".join(f"{line}\n" for line in _lines(values))):
        raise EnvironmentFileError(
            f"{path} already exists, and the stored data needs its secrets.",
            hint="Keep it. `trilake env --check` checks it.",
        )


def _random(variable: Variable, known: Mapping[str, str]) -> str:
    if variable.kind == "fernet":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    if variable.kind == "digest":
        return digest(known[variable.name.removesuffix(_DIGEST)])
    return secrets.token_hex(24)


def digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _lines(values: Mapping[str, str]) -> Iterator[str]:
    names = {variable.name for variable in VARIABLES}
    yield "# Addresses and secrets of the three hosts; `trilake env --check` checks it. Never add it to git."
    yield from (f"{name}={value}" for name, value in values.items() if name not in names)
    for variable in VARIABLES:
        if variable.name in values:
            yield from [f"# {variable.about}"] if variable.about else []
            yield f"{variable.name}={values[variable.name]}"


def read(path: Path) -> dict[str, str]:
    """The file's variables, unchecked.

    :raises EnvironmentFileError: the file is missing, or a line is not ``NAME=value``. The line's text is not shown.
    """
    try:
        text = path.read_text()
    except OSError as e:
        raise EnvironmentFileError(
            f"{path} cannot be read ({e.strerror}).", hint="Write it with `trilake env`."
        ) from None
    except UnicodeDecodeError:
        raise EnvironmentFileError(f"{path} is not UTF-8 text.") from None
    values = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise EnvironmentFileError(f"Line {number} of {path} is not NAME=value.")
        values[match["name"]] = match["value"].strip().strip("\"'")
    return values


def check(values: Mapping[str, str], host: str | None = None, *, where: str = FILE) -> None:
    """Check that every variable that `host` (or any host) needs is set and valid.

    :raises EnvironmentFileError: the message names the first variable that is missing or wrong, never its value.
    """
    for variable in VARIABLES:
        if host is not None and host not in variable.hosts:
            continue
        if problem := _problem(variable, values.get(variable.name, ""), values):
            raise EnvironmentFileError(
                f"{where}: {variable.name} {problem}.",
                hint="Restore the old value. If there is no data yet, remove the file and write it with `trilake env`.",
            )


def check_given(values: Mapping[str, str]) -> None:
    """Check the variables that are set. A container gets only some of its host's variables.

    :raises EnvironmentFileError: the message names the first variable that is wrong, never its value.
    """
    for variable in VARIABLES:
        if (value := values.get(variable.name)) and (problem := _problem(variable, value, values)):
            raise EnvironmentFileError(f"{variable.name} {problem}.", hint="`trilake env --check` checks .env.")


def _problem(variable: Variable, value: str, values: Mapping[str, str]) -> str:
    """The problem with a value, as text that follows its name; empty if the value is valid."""
    return _PROBLEMS[variable.kind](variable.name, value, values) if value else "is not set"


def _problem_of_address(name: str, value: str, values: Mapping[str, str]) -> str:
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        return "is not an IPv4 address"
    # `is_private` is true for these, too, but another host cannot reach such an address
    if not address.is_private or address.is_loopback or address.is_link_local or address.is_unspecified:
        return "is not a private address"
    others = [v.name for v in VARIABLES if v.kind == "address" and v.name != name and values.get(v.name) == value]
    return f"is also {others[0]}" if others else ""


def _problem_of_fernet(_name: str, value: str, _values: Mapping[str, str]) -> str:
    try:
        valid = len(base64.urlsafe_b64decode(value)) == 32
    except ValueError:
        valid = False
    return "" if valid else "is not a Fernet key (32 bytes in base64)"


def _problem_of_digest(name: str, value: str, values: Mapping[str, str]) -> str:
    password = name.removesuffix(_DIGEST)
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        return "is not a SHA-256 digest in hexadecimal"
    return f"is not the digest of {password}" if password in values and digest(values[password]) != value else ""


def _problem_of_secret(_name: str, value: str, _values: Mapping[str, str]) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
        return "may have only letters, digits, dots, dashes and underscores (it goes into addresses and files)"
    return "" if len(value) >= _SHORTEST_SECRET else f"is shorter than {_SHORTEST_SECRET} characters"


_PROBLEMS: Mapping[str, Callable[[str, str, Mapping[str, str]], str]] = {
    "address": _problem_of_address,
    "fernet": _problem_of_fernet,
    "digest": _problem_of_digest,
    "secret": _problem_of_secret,
}


def part(values: Mapping[str, str], host: str) -> str:
    """The text of one host's ``.env``, without secrets that only other hosts need.

    :raises EnvironmentFileError: as `check`.
    """
    check(values, host)
    needed = {v.name for v in VARIABLES if host in v.hosts}
    others = {v.name for v in VARIABLES} - needed
    return "".join(f"{line}\n" for line in _lines({k: v for k, v in values.items() if k not in others}))
