"""What a producer of `flights` can do, by trying, and what lies there then; KEY and SECRET come before this text."""

import http.client
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from trilake import s3
from trilake.endpoints import S3Endpoint
from trilake.errors import RefusedError
from trilake.platform.hosts import s3_admin

RAW = {"Bucket": "raw"}
THEIRS = {**RAW, "Key": "weather/2013-02/theirs.csv"}
OWN = {**RAW, "Key": "flights/2013-02/own.csv"}


def may(ask: Callable[..., Any], **what: Any) -> bool:
    try:
        answer = ask(**what)
    except RefusedError:
        return False
    except ClientError as e:
        if e.response["ResponseMetadata"]["HTTPStatusCode"] == 400:
            return False
        raise
    return not answer.get("Errors")


def put_at(path: str) -> bool:
    """A request whose path nobody on the way makes tidy."""
    request = AWSRequest("PUT", f"http://vps-1:7070/raw/{path}", data=b"x")
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)  # noqa: F821
    connection = http.client.HTTPConnection("vps-1", 7070, timeout=30)
    connection.request("PUT", f"/raw/{path}", b"x", dict(request.headers.items()))
    return connection.getresponse().status < 300


root = s3.client(s3_admin.root_of(s3_admin.secret(os.environ, "root")))
own = s3.client(S3Endpoint("http://vps-1:7070", KEY, SECRET))  # noqa: F821
root.put_object(**THEIRS, Body=b"theirs")
grown = root.create_multipart_upload(**{**OWN, "Key": "flights/2013-02/roots.csv"})["UploadId"]


def in_parts() -> dict[str, Any]:
    large = {**RAW, "Key": "flights/2013-02/large.csv"}
    upload = own.create_multipart_upload(**large)["UploadId"]
    part = own.upload_part(**large, UploadId=upload, PartNumber=1, Body=b"x" * s3.PART_BYTES)
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
    own.complete_multipart_upload(**large, UploadId=upload, MultipartUpload={"Parts": parts})
    second = own.create_multipart_upload(**large)["UploadId"]
    return dict(own.abort_multipart_upload(**large, UploadId=second))


found = {
    "puts below its prefix": may(own.put_object, **OWN, Body=b"first"),
    "replaces what it put": may(own.put_object, **OWN, Body=b"second"),
    "puts a large one in parts": may(in_parts),
    "reads its own": may(own.get_object, **OWN),
    "looks at its own": may(own.head_object, **OWN),
    "reads another's": may(own.get_object, **THEIRS),
    "removes its own": may(own.delete_object, **OWN),
    "removes its own in bulk": may(own.delete_objects, **RAW, Delete={"Objects": [{"Key": OWN["Key"]}]}),
    "lists buckets": bool(own.list_buckets()["Buckets"]),
    "lists the bucket": may(own.list_objects_v2, **RAW),
    "lists its prefix": may(own.list_objects_v2, **RAW, Prefix="flights/"),
    "lists in the old way": may(own.list_objects, **RAW, Prefix="flights/"),
    "lists versions": may(own.list_object_versions, **RAW, Prefix="flights/"),
    "lists uploads": may(own.list_multipart_uploads, **RAW, Prefix="flights/"),
    "lists parts": may(own.list_parts, **{**OWN, "Key": "flights/2013-02/roots.csv"}, UploadId=grown),
    "puts below another prefix": may(own.put_object, **THEIRS, Body=b"x"),
    "puts below a prefix that begins alike": may(own.put_object, **RAW, Key="flights2/2013-02/x.csv", Body=b"x"),
    "puts beside every prefix": may(own.put_object, **RAW, Key="x.csv", Body=b"x"),
    "puts in parts elsewhere": may(own.create_multipart_upload, **THEIRS),
    "copies another's": may(own.copy_object, **OWN, CopySource=THEIRS),
    "copies its own elsewhere": may(own.copy_object, **THEIRS, CopySource=OWN),
    "opens its own to all": may(own.put_object_acl, **OWN, ACL="public-read"),
    "tags its own": may(own.put_object_tagging, **OWN, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]}),
    "changes the policy": may(own.put_bucket_policy, **RAW, Policy=json.dumps(s3_admin.policy("raw"))),
    "reads the policy": may(own.get_bucket_policy, **RAW),
    "makes a bucket": may(own.create_bucket, Bucket="own"),
    "has a wrong secret": may(s3.client(S3Endpoint("http://vps-1:7070", KEY, "x" * 48)).put_object, **OWN, Body=b"x"),  # noqa: F821
}
found |= {
    f"puts into {bucket}": may(own.put_object, Bucket=bucket, Key="flights/2013-02/x.csv", Body=b"x")
    for bucket in s3_admin.BUCKETS
    if bucket != "raw"
}
ways = ("flights/../weather/2013-02/w.csv", "flights/2013-02/../../weather/2013-02/w.csv", "flights/./../weather/w.csv")
for way in ways:
    for path in (way, way.replace("..", "%2e%2e"), quote(way, safe="")):
        found[f"climbs by {path}"] = put_at(path)
found["climbs into another bucket"] = put_at("flights/../../lake/w.csv") or put_at("flights/%2e%2e/%2e%2e/lake/w.csv")

held = {bucket: s3.list_keys(root, bucket, "") for bucket in s3_admin.BUCKETS}
beyond = [f"{b}/{k}" for b, keys in held.items() for k in keys if k.rsplit("/", 1)[-1] in ("w.csv", "x.csv")]
theirs = root.get_object(**THEIRS)["Body"].read().decode()
s3.abort_uploads(root, "raw", "flights/")
s3.remove(root, "raw", [THEIRS["Key"], OWN["Key"], "flights/2013-02/large.csv"])
for way in beyond:
    s3.remove(root, way.partition("/")[0], [way.partition("/")[2]])
print(json.dumps({"may": [what for what, can in found.items() if can], "beyond": beyond, "theirs": theirs}))
