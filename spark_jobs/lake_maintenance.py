"""Maintenance of every table of the lake: small files, old snapshots, orphan files."""

from collections.abc import Sequence

from trilake.spark import maintenance


def main(arguments: Sequence[str]) -> None:
    maintenance.main(arguments)
