"""What each identity of S3 can do, by trying: bucket -> identity -> letters; and what nobody may in any bucket."""

import json
import os
from collections.abc import Callable
from typing import Any

from trilake import s3
from trilake.endpoints import S3Endpoint
from trilake.errors import RefusedError
from trilake.platform.hosts import s3_admin

KEY = "rights/of-all"


def client(identity: str, secret: str = "") -> Any:
    return s3.client(S3Endpoint("http://vps-1:7070", identity, secret or s3_admin.secret(os.environ, identity)))


def may(ask: Callable[..., Any], **what: Any) -> bool:
    try:
        answer = ask(**what)
    except RefusedError:
        return False
    # a bulk request is answered, and refuses each of its keys
    return not answer.get("Errors")


def letters(own: Any, identity: str, bucket: str, below: str = "") -> str:
    """The rights it has. Half a right is a question mark, which no table has."""
    at, mine = {"Bucket": bucket}, f"{below}rights/of-{identity}"
    found = {
        "r": [may(own.get_object, **at, Key=below + KEY), may(own.list_objects_v2, **at, Prefix=f"{below}rights/")],
        # the uploads of a bucket are those of every prefix
        "w": [may(own.put_object, **at, Key=mine, Body=b"1")]
        + ([] if below else [may(own.list_multipart_uploads, **at)]),
        "d": [
            may(own.delete_object, **at, Key=mine),
            may(own.delete_objects, **at, Delete={"Objects": [{"Key": mine}]}),
        ],
    }
    return "".join(letter if all(all_of) else "?" for letter, all_of in found.items() if any(all_of))


def beyond(own: Any, identity: str) -> list[str]:
    """What it can do that nobody may."""
    policy = json.dumps(s3_admin.policy("raw"))
    found = {
        "makes a bucket": may(own.create_bucket, Bucket=f"own-{identity}"),
        "removes a bucket": may(own.delete_bucket, Bucket="exports"),
        "changes a policy": may(own.put_bucket_policy, Bucket="raw", Policy=policy),
        "opens a bucket": may(own.put_bucket_acl, Bucket="lake", ACL="public-read"),
    }
    if "r" not in s3_admin.RIGHTS["logs"].get(identity, ""):
        source = {"Bucket": "logs", "Key": KEY}
        found["copies what it may not read"] = may(
            own.copy_object, Bucket="exports", Key=f"rights/of-{identity}", CopySource=source
        )
    return [f"{identity} {what}" for what, can in found.items() if can]


root = client("root")
below = {
    (bucket, who): rights.prefix
    for bucket, by_who in s3_admin.RIGHTS.items()
    for who, rights in by_who.items()
    if isinstance(rights, s3_admin.Below)
}
for bucket in s3_admin.BUCKETS:
    for prefix in {"", *below.values()}:
        root.put_object(Bucket=bucket, Key=prefix + KEY, Body=b"1")
by_identity = {identity: client(identity) for identity in s3_admin.IDENTITIES}
tried = {bucket: {who: letters(own, who, bucket) for who, own in by_identity.items()} for bucket in s3_admin.BUCKETS}
found = {
    "rights": {bucket: {who: text for who, text in rights.items() if text} for bucket, rights in tried.items()},
    "below": {
        f"{who} {bucket}/{prefix}": letters(by_identity[who], who, bucket, prefix)
        for (bucket, who), prefix in below.items()
    },
    # a listing without a prefix, or with one that only begins alike, shows the keys of others
    "beside": [
        f"{who} {bucket}/{asked}"
        for (bucket, who), prefix in below.items()
        for asked in ("", prefix[:1], "rights/")
        if may(by_identity[who].list_objects_v2, Bucket=bucket, Prefix=asked)
    ],
    "beyond": [what for who, own in by_identity.items() for what in beyond(own, who)],
    "wrong_secret": may(client("airflow", "x" * 48).list_objects_v2, Bucket="raw"),
    "nobody": may(client("nobody", "x" * 48).list_objects_v2, Bucket="raw"),
}
for bucket in s3_admin.BUCKETS:
    for prefix in {"", *below.values()}:
        s3.remove(root, bucket, s3.list_keys(root, bucket, f"{prefix}rights/"))
print(json.dumps(found))
