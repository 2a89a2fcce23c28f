"""Bad input, as real bytes: what producers have put below a data set's prefix, and what has to come of it.

Every case is a few objects of one data set (columns `HEADER`, month 2013-01 unless a case says otherwise). Either the
job refuses with an error that names the object, or every line is accounted for: curated, quarantined with a reason and
its text, or an exact duplicate.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SCHEMA = "k int NOT NULL, d date NOT NULL, name string, price double"
HEADER = "k,d,name,price"
MONTH, NEXT_MONTH = "2013-01", "2013-02"
MIB = 1024**2


@dataclass(frozen=True)
class Case:
    """:param objects: bytes by name below the month's prefix.
    :param curated: the keys (column k) that come through.
    :param quarantined: how many rows are refused for which reason.
    :param refused: what the job's error says, after which nothing was committed.
    :param changed: an object that is replaced by these bytes while the job reads.
    :param held: both months hold what an earlier run made of `BEFORE`: what is refused leaves it, and what is not
        replaces the month's alone.
    """

    objects: Mapping[str, bytes] = field(repr=False)
    curated: tuple[int, ...] = ()
    quarantined: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    refused: str = ""
    changed: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    held: bool = False

    @property
    def rows(self) -> int:
        return len(self.curated) + sum(self.quarantined.values()) + self.duplicates


def csv(*lines: str | bytes, header: str = HEADER, end: bytes = b"\n") -> bytes:
    encoded = (line if isinstance(line, bytes) else line.encode() for line in (header, *lines))
    return b"".join(line + end for line in encoded)


def good(number: int, name: str = "a") -> str:
    return f"{number},2013-01-05,{name},1.5"


# A good line and a bad one of each month, whose objects are gone by the time of the case.
BEFORE = {MONTH: csv(good(-1), "bad"), NEXT_MONTH: csv("-2,2013-02-05,a,1.5", "bad")}


def cases() -> Iterator[tuple[str, Case]]:
    """(name, case); those of ever so many files are made when they are asked for."""
    yield "good lines", Case({"a.csv": csv(good(1), good(2))}, (1, 2))
    yield (
        "broken lines",
        Case(
            {"a.csv": csv(good(1), "2,2013-01-05", "3,2013-01-05,a,1,more", '4,2013-01-05,"a,1', "", good(5))},
            (1, 5),
            {"field count": 2, "unbalanced quote": 1, "empty line": 1},
        ),
    )
    yield (
        "wrong types",
        Case(
            {
                "a.csv": csv(
                    *(good(1), "x,2013-01-05,a,1", "2,2013-13-05,a,1", "3,2013-01-05,a,dear", "4e1,2013-01-05,a,1"),
                    *("5,2013-01-05 at noon,a,1", "6,2013,a,1", "7,2013-01-05,a,1.5d", "8,2013-01-05,a, 1"),
                )
            },
            (1,),
            {"type of k": 2, "type of d": 3, "type of price": 3},
        ),
    )
    yield (
        "numbers out of range, and values that are missing where they may not be",
        Case(
            {
                "a.csv": csv(
                    *("2147483648,2013-01-05,a,1", ",2013-01-05,a,1", "1,,a,1", "2,2013-01-05,,"),
                    *("3,2013-01-05,a,1e400", "4,2013-01-05,a,1e-400"),
                )
            },
            (2,),
            {"type of k": 1, "type of price": 2, "missing k": 1, "missing d": 1},
        ),
    )
    yield (
        "a column that is missing",
        Case({"a.csv": csv("1,2013-01-05,a", header="k,d,name")}, refused="a.csv is 'k,d,n"),
    )
    yield (
        "columns in another order",
        Case({"a.csv": csv("2013-01-05,1,a,1", header="d,k,name,price")}, refused="a.csv is 'd,k,name,price'"),
    )
    yield (
        "one file of two with another header",
        Case(
            {"a.csv": csv(good(1)), "b.csv": csv(good(2), header="K,D,NAME,PRICE")}, refused="b.csv is 'K,D,NAME,PRICE'"
        ),
    )
    yield (
        "a quoted end of line",
        Case({"a.csv": csv(good(1), '2,2013-01-05,"a\nb",1', good(3))}, (1, 3), {"unbalanced quote": 2}),
    )
    yield "lines that end as on Windows", Case({"a.csv": csv(good(1), good(2), end=b"\r\n")}, (1, 2))
    yield (
        "lines that end as on Windows, twice",
        Case({"a.csv": csv(good(1), good(2), end=b"\r\r\n")}, refused=r"a.csv is 'k,d,name,price\r'", held=True),
    )
    yield "a last line without an end", Case({"a.csv": csv(good(1), good(2))[:-1]}, (1, 2))
    yield (
        "bytes that are not text",
        Case(
            {"a.csv": csv(good(1), b"2,2013-01-05,\xff\xfe,1", b"3,2013-01-05,\xed\xa0\x80,1")}, (1,), {"not UTF-8": 2}
        ),
    )
    yield (
        "characters that some programs take for the end of a line, and zeros",
        Case(
            {"a.csv": csv(good(1, "a\u2028b"), good(2, "a\x0bb\x0cc\x85"), good(3, "a\x00b"), good(4, "\U0001f980"))},
            (1, 2, 3, 4),
        ),
    )
    yield (
        "what Spark's parser takes for the end of a text, and what it drops at its beginning",
        Case(
            {"a.csv": csv(good(1), good(2, "a\uffffb"), good(3), "\ufeff" + good(4), good(5))},
            (1, 3, 5),
            {"not a character": 1, "byte order mark": 1},
        ),
    )
    yield (
        "an encoding of two bytes",
        Case({"a.csv": (HEADER + "\n" + good(1) + "\n").encode("utf-16")}, refused="The header of s3://raw/"),
    )
    yield "a mark of the byte order", Case({"a.csv": b"\xef\xbb\xbf" + csv(good(1))}, refused="The header of s3://raw/")
    yield "an empty object", Case({"a.csv": b""}, refused="a.csv is empty")
    yield "a header alone", Case({"a.csv": csv()}, (), held=True)
    yield "a header alone, without its end", Case({"a.csv": HEADER.encode()}, ())
    yield "a month without an object", Case({}, refused="Nothing was ingested for")
    yield (
        "the same file twice",
        Case({"a.csv": csv(good(1), good(2)), "again.csv": csv(good(1), good(2))}, (1, 2), duplicates=2),
    )
    yield (
        "a line three times, and a bad one twice",
        Case({"a.csv": csv(good(1), good(1), good(1), "x", "x")}, (1,), {"field count": 2}, duplicates=2),
    )
    yield (
        "rows of another month",
        Case({"a.csv": csv(good(1), "2,2013-02-01,a,1", "3,2012-12-31,a,1")}, (1,), {"outside_window": 2}, held=True),
    )
    yield "a header in the middle", Case({"a.csv": csv(good(1), HEADER, good(2))}, (1, 2), {"type of k": 1})
    yield (
        "an object that changes while it is read",
        Case(
            {"a.csv": csv(good(1)), "b.csv": csv(good(2))},
            refused="b.csv changed while the job read it",
            changed={"b.csv": csv(good(3))},
            held=True,
        ),
    )
    packed = gzip.compress(csv(*(good(number) for number in range(1000))))
    yield "a compressed file", Case({"a.csv.gz": packed}, refused="a.csv.gz is not a .csv file")
    yield (
        "a compressed file that was cut off",
        Case({"a.csv.gz": packed[: len(packed) // 2]}, refused="a.csv.gz is not a .csv"),
    )
    yield "a compressed file by the name of a plain one", Case({"a.csv": packed}, refused="The header of s3://raw/")
    yield "a bomb of zeros", Case({"a.csv.gz": _bomb()}, refused="a.csv.gz is not a .csv file")
    yield (
        "a picture",
        Case({"a.csv": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100}, refused="The header of s3://raw/"),
    )
    long = good(2, "x" * 100 * MIB)
    yield (
        "100 MB on one line",
        Case({"a.csv": csv(good(1)), "b.csv": csv(good(3), long)}, refused="b.csv has lines of more", held=True),
    )
    yield "a line of four megabytes", Case({"a.csv": csv(good(1), good(2, "x" * 4 * MIB))}, (1, 2))
    yield "a quoted text of four megabytes", Case({"a.csv": csv(good(1), good(2, f'"{"x" * 4 * MIB}"'))}, (1, 2))
    for name in ("a*.csv", "a?.csv", "[a].csv", "{a}.csv", "_a.csv", ".a.csv"):
        yield f"a key that Spark reads otherwise: {name}", Case({name: csv(good(1))}, refused=f"{name} has a name that")
    for name in (
        "a b.csv",
        "a%20b.csv",
        "ä€.csv",
        "a+b=c,d&e.csv",
        "x/y/z.csv",
        "it's.csv",
        "a#b.csv",
        "a:b.csv",
        "a\nb.csv",
    ):
        yield f"an odd key: {name!r}", Case({name: csv(good(1), "x")}, (1,), {"field count": 1})


def flood(files: int = 10_000) -> Case:
    return Case({f"{n % 10}/{n}.csv": csv(good(n)) for n in range(files)}, tuple(range(files)))


def _bomb() -> bytes:
    """1 GiB of zeros in a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(1024)), packer.flush()])
