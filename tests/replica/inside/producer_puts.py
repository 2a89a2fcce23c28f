"""Below which prefixes a producer can put; KEY and SECRET come before this text."""

import json
import os

from trilake import s3
from trilake.endpoints import S3Endpoint
from trilake.errors import RefusedError
from trilake.platform.hosts import s3_admin

own = s3.client(S3Endpoint("http://vps-1:7070", KEY, SECRET))  # noqa: F821
found = []
for data_set in ("flights", "weather"):
    try:
        own.put_object(Bucket="raw", Key=f"{data_set}/rights", Body=b"1")
    except RefusedError:
        pass
    else:
        found.append(data_set)
s3.remove(
    s3.client(s3_admin.root_of(s3_admin.secret(os.environ, "root"))),
    "raw",
    [f"{data_set}/rights" for data_set in found],
)
print(json.dumps(found))
