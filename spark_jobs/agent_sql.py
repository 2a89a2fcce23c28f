"""An agent's query in Spark SQL, which can only read."""

from collections.abc import Sequence

from trilake.spark import agent_sql


def main(arguments: Sequence[str]) -> None:
    agent_sql.main(arguments)
