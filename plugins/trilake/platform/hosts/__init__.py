"""The three hosts, or their replica on one machine: their ``.env``, and what is set up on them from it."""

from trilake.platform.hosts.connections import connections

__all__ = ["connections"]
