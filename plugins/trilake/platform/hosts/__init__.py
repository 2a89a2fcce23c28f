"""Sets up the three hosts, or their replica on one machine, from their ``.env``."""

from trilake.platform.hosts.connections import connections

__all__ = ["connections"]
