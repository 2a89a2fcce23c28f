"""``trilake put``: upload local files to a partition of ``s3://raw/``, as a producer does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trilake.endpoints import Endpoints
from trilake.errors import ConfigurationError
from trilake.lake.data_set import RAW_BUCKET
from trilake.lake.declared import find_data_set
from trilake.s3 import client, list_keys
from trilake.spark.inputs import check_name


def put_files(
    project: Path, endpoints: Endpoints, name: str, partition: str, files: Sequence[Path], *, as_json: bool
) -> None:
    """Upload the files under their own names, and print each. Files with the same names are replaced.

    :raises ConfigurationError: there is no such data set, partition or file. Nothing was uploaded.
    :raises trilake.spark.inputs.InputError: jobs do not read files with such a name. Nothing was uploaded.
    """
    data_set = find_data_set(project / "dags", name)
    (where,) = data_set.window(partition).partitions
    keys = {data_set.raw_key(where, file.name): file for file in files}
    if len(keys) < len(files):
        raise ConfigurationError(
            "Two of these files have the same name, so one would replace the other.", hint="Rename one of them."
        )
    for key, file in keys.items():
        check_name(key)
        try:
            file.open("rb").close()
        except OSError as e:
            raise ConfigurationError(f"{file} cannot be read: {e.strerror}.") from None
    store = client(endpoints.s3)
    existing = set(list_keys(store, RAW_BUCKET, data_set.raw_key(where)))
    uploaded = []
    for key, file in keys.items():
        store.upload_file(str(file), RAW_BUCKET, key)
        size = store.head_object(Bucket=RAW_BUCKET, Key=key)["ContentLength"]
        uploaded.append({"key": key, "bytes": size, "replaced": key in existing})
        how = ", replaced an earlier file" if key in existing else ""
        print(f"s3://{RAW_BUCKET}/{key}: {size:,} bytes{how}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(uploaded))
