"""Run all benchmarks and write what they found to benchmarks/RESULTS.md: `make bench`."""

from __future__ import annotations

import logging
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import agents
import imports
import inserts
import load
import publish
import rebuild
import spark_io

RESULTS = Path(__file__).with_name("RESULTS.md")
INTRODUCTION = """# Results

Written by `make bench` (the platform is up and holds the flights of `make demo`). Each ratio is of figures taken one
after the other in one run, as a median of rounds; seconds and rates are one machine's and shown for orientation. How
each is measured is told in the module that measures it; run it alone by `.venv/bin/python benchmarks/<module>.py`.
"""


def main() -> None:
    logging.disable(logging.WARNING)
    sections = [
        (publish.TITLE, "publish", lambda: publish.table([1, 10], rounds=3)),
        (rebuild.TITLE, "rebuild", lambda: rebuild.table(1, rounds=3)),
        (inserts.TITLE, "inserts", lambda: inserts.table(1_000_000, 2_000, rounds=3)),
        (spark_io.TITLE, "spark_io", lambda: spark_io.table(1_000_000, rounds=3)),
        (load.TITLE, "load", lambda: load.table([1, 3, 10], 16, 100)),
        (agents.TITLE, "agents", agents.table),
        (imports.TITLE, "imports", lambda: imports.table(rounds=5)),
    ]
    text = [INTRODUCTION]
    for title, module, measure in sections:
        print(f"benchmarks/{module}.py ...", flush=True)
        found = measure()
        print(found, flush=True)
        text.append(f"## {title}: `benchmarks/{module}.py`\n\n{found}\n")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text.append(
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {memory:.0f} GiB, Linux "
        f"{platform.release()}, Python {platform.python_version()}; load average at the end {os.getloadavg()[0]:.1f}.\n"
    )
    RESULTS.write_text("\n".join(text))
    print(f"Written to {RESULTS}.")


if __name__ == "__main__":
    main()
