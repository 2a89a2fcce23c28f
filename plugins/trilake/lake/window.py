"""A window of partitions: what one run of a pipeline works on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from trilake.errors import ConfigurationError

Grain = Literal["day", "month"]

# A window names each of its partitions. More than this is a typing error (2013 for 2031), not a backfill.
MAX_PARTITIONS = 3_660

_FORM = {"day": re.compile(r"\d{4}-\d{2}-\d{2}"), "month": re.compile(r"\d{4}-\d{2}(-\d{2})?")}
_EXAMPLE = {"day": "2013-02-28", "month": "2013-02"}
# Python's last date. A window needs the first day after it, so it cannot contain this one.
_LAST = {"day": "9999-12-31", "month": "9999-12"}


@dataclass(frozen=True)
class Window:
    """Whole partitions from `start` to `end`, both included, both the first day of their partition."""

    grain: Grain
    start: date
    end: date

    @classmethod
    def parse(cls, grain: Grain, start: str, end: str | None = None) -> Window:
        """Read a window as people type it: ``2013-02`` or ``2013-02-28``. Without `end` it is one partition.

        :raises ConfigurationError: not a date, the end is before the start, or more than `MAX_PARTITIONS`.
        """
        first = parse_partition(grain, start)
        last = parse_partition(grain, end) if end else first
        if last < first:
            raise ConfigurationError(
                f"The window ends before it starts: start {start}, end {end}.", hint="Swap them, or leave end empty."
            )
        window = cls(grain, first, last)
        if len(window) > MAX_PARTITIONS:
            raise ConfigurationError(
                f"The window {start} to {end} has {len(window)} partitions, more than {MAX_PARTITIONS}.",
                hint="Check the years, or run it in parts.",
            )
        return window

    def __len__(self) -> int:
        if self.grain == "month":
            return (self.end.year - self.start.year) * 12 + self.end.month - self.start.month + 1
        return (self.end - self.start).days + 1

    def __str__(self) -> str:
        first, last = partition_name(self.grain, self.start), partition_name(self.grain, self.end)
        return first if first == last else f"{first}..{last}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.partitions)

    @property
    def partitions(self) -> list[str]:
        """The names of the partitions, oldest first: ``2013-02`` or ``2013-02-28``."""
        names, day = [], self.start
        while day <= self.end:
            names.append(partition_name(self.grain, day))
            day = _next(self.grain, day)
        return names

    @property
    def stop(self) -> date:
        """The first day after the window."""
        return _next(self.grain, self.end)


def partition_name(grain: Grain, day: date) -> str:
    return day.isoformat()[:7] if grain == "month" else day.isoformat()


def parse_partition(grain: Grain, text: str) -> date:
    """The first day of the partition that contains the date `text`.

    :raises ConfigurationError: `text` is not such a date, or it is the last date that Python knows.
    """
    text = text.strip()
    try:
        if not _FORM[grain].fullmatch(text):
            raise ValueError
        day = date.fromisoformat(text if len(text) == 10 else f"{text}-01")
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a {grain}.", hint=f"Write it like {_EXAMPLE[grain]}.") from None
    if text.startswith(_LAST[grain]):
        raise ConfigurationError(
            f"{text!r} cannot be a partition: no later partition is possible.",
            hint="If it means 'never', use another value for it.",
        )
    return day.replace(day=1) if grain == "month" else day


def _next(grain: Grain, day: date) -> date:
    if grain == "day":
        return day + timedelta(days=1)
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)
