"""The three hosts, or their replica on one machine: their ``.env``, and what is set up on them from it."""

from trilake.hosts.connections import as_environment, connections

__all__ = ["as_environment", "connections"]
