"""`python -m trilake.platform.embedded.clickhouse --config FILE`: serve until SIGTERM.

If it cannot serve, it writes one line to stderr and exits with code 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from trilake.errors import ConfigurationError
from trilake.platform.embedded.clickhouse.config import GatewayConfig
from trilake.platform.embedded.clickhouse.server import serve


def main() -> int:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m trilake.platform.embedded.clickhouse", description="ClickHouse over chDB"
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON file; `trilake up` writes it")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # uvicorn logs an error for an incomplete answer. The gateway does this on purpose, and logs it itself.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    try:
        serve(GatewayConfig.load(arguments.config))
    except ConfigurationError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
