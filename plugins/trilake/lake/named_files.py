"""Which files the current snapshots of Iceberg tables name. This needs neither S3 nor a catalog: it reads a copy.

A backup and a restore use it to show that PostgreSQL and S3 fit together: every file that the catalog names is there,
and has the size that Iceberg recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilake.errors import TrilakeError
from trilake.lake.column_sums import SUMS_PROPERTY
from trilake.lake.data_set import LAKE_BUCKET

if TYPE_CHECKING:
    from pyiceberg.io import FileIO, InputStream
    from pyiceberg.table.snapshots import Snapshot

_SHOWN = 3
# of a query on the database `lake`
TABLES_QUERY = "SELECT table_namespace || '.' || table_name, metadata_location FROM iceberg_tables ORDER BY 1"


class MissingFilesError(TrilakeError):
    """The catalog names files that are not there, or that have another size."""


@dataclass(frozen=True)
class NamedFile:
    """A file that a table needs.

    :param key: bucket and key, such as ``lake/warehouse/curated/flights/data/1.parquet``.
    :param size: bytes; None if Iceberg does not record it.
    """

    table: str
    key: str
    size: int | None


# The local path of a bucket and key, or None if the copy does not have it.
Locate = Callable[[str], Path | None]
# The bytes of a bucket and key, or None if the copy does not have it.
SizeOf = Callable[[str], int | None]


def check(tables: Iterable[tuple[str, str]], locate: Locate, size_of: SizeOf | None = None) -> int:
    """Check that the copy has every file that the tables name. Returns how many files they are.

    :param tables: name and metadata location, as the catalog has them.
    :param size_of: for a copy of which only the metadata can be read; by default the size of the local file.
    :raises MissingFilesError: a file is missing, or has another size than Iceberg recorded.
    """

    def local_size(key: str) -> int | None:
        path = locate(key)
        return None if path is None else path.stat().st_size

    total, wrong = 0, []
    for table, location in tables:
        for named in named_files(table, location, locate):
            total += 1
            size = (size_of or local_size)(named.key)
            if size is None:
                wrong.append(f"s3://{named.key} of {table} is missing")
            elif named.size not in (None, size):
                wrong.append(f"s3://{named.key} of {table} has {size} bytes, not {named.size}")
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise MissingFilesError(
            f"The catalog and the files in S3 do not fit together: {'; '.join(wrong[:_SHOWN])}{more}."
        )
    return total


def named_files(table: str, metadata_location: str, locate: Locate) -> Iterator[NamedFile]:
    """The metadata file of a table, and all files of the snapshots that its branches and tags show.

    If one of them that names others is missing, the files that only it names are not listed.

    :raises MissingFilesError: a file that names others cannot be read.
    """
    from pyiceberg.serializers import FromInputFile

    io = _copy_io(locate)
    yield NamedFile(table, _key(metadata_location), None)
    if locate(_key(metadata_location)) is None:
        return
    seen: set[str] = set()

    def fresh(location: str, size: int | None) -> Iterator[NamedFile]:
        if location not in seen:
            seen.add(location)
            yield NamedFile(table, _key(location), size)

    try:
        metadata = FromInputFile.table_metadata(io.new_input(metadata_location))
        shown = {reference.snapshot_id for reference in metadata.refs.values()} | {metadata.current_snapshot_id}
        for snapshot in metadata.snapshots:
            if snapshot.snapshot_id not in shown:
                continue
            yield from fresh(snapshot.manifest_list, None)
            properties = snapshot.summary.additional_properties if snapshot.summary else {}
            if sums := properties.get(SUMS_PROPERTY):
                yield from fresh(f"s3a://{LAKE_BUCKET}/{sums}", None)
            if locate(_key(snapshot.manifest_list)) is not None:
                yield from _files_of(snapshot, io, locate, fresh)
        for statistics in metadata.statistics:
            if statistics.snapshot_id in shown:
                yield from fresh(statistics.statistics_path, statistics.file_size_in_bytes)
    except (ValueError, OSError, EOFError, KeyError) as e:
        raise MissingFilesError(
            f"The metadata of Iceberg table {table} ({metadata_location}) cannot be read: {type(e).__name__}: {e}"
        ) from None


def _files_of(
    snapshot: Snapshot, io: FileIO, locate: Locate, fresh: Callable[[str, int | None], Iterator[NamedFile]]
) -> Iterator[NamedFile]:
    for manifest in snapshot.manifests(io):
        yield from fresh(manifest.manifest_path, manifest.manifest_length)
        if locate(_key(manifest.manifest_path)) is None:
            continue
        for entry in manifest.fetch_manifest_entry(io, discard_deleted=True):
            yield from fresh(entry.data_file.file_path, entry.data_file.file_size_in_bytes)


def _key(location: str) -> str:
    """Bucket and key of ``s3://bucket/key`` or ``s3a://bucket/key``."""
    return location.partition("://")[2]


def _copy_io(locate: Locate) -> FileIO:
    """A FileIO of PyIceberg that reads the copy and can change nothing."""
    from pyiceberg.io import FileIO, InputFile, OutputFile

    class CopiedFile(InputFile):
        def __init__(self, location: str) -> None:
            super().__init__(location)
            self._path = locate(_key(location))

        def __len__(self) -> int:
            return self._found().stat().st_size

        def exists(self) -> bool:
            return self._path is not None

        def open(self, seekable: bool = True) -> InputStream:
            stream: Any = self._found().open("rb")
            return stream  # type: ignore[no-any-return]  # a file has all methods of the protocol

        def _found(self) -> Path:
            if self._path is None:
                raise FileNotFoundError(self.location)
            return self._path

    class CopyIO(FileIO):
        def new_input(self, location: str) -> InputFile:
            return CopiedFile(location)

        def new_output(self, location: str) -> OutputFile:
            raise PermissionError(location)

        def delete(self, location: str | InputFile | OutputFile) -> None:
            raise PermissionError(str(location))

    return CopyIO()


def main(arguments: Sequence[str] | None = None) -> int:
    """For a host's programs: check a folder of buckets, and print how many files the tables name."""
    parser = argparse.ArgumentParser(prog="named_files", description=main.__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="JSON: a list of name and metadata location")
    parser.add_argument("--root", type=Path, required=True, help="the folder of buckets")
    parser.add_argument("--sizes", type=Path, help="lines of bucket/key, tab, bytes; by default those of the files")
    options = parser.parse_args(arguments)

    def locate(key: str) -> Path | None:
        path: Path = options.root / key
        return path if path.is_file() else None

    sizes = None
    if options.sizes:
        lines = (line.rpartition("\t") for line in options.sizes.read_text().splitlines())
        sizes = {key: int(size) for key, _, size in lines}
    try:
        print(check(json.loads(options.tables.read_text()), locate, sizes.get if sizes is not None else None))
    except MissingFilesError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
