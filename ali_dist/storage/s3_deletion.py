"""Deleting objects from servers that know no DeleteObjects, or that want a Content-MD5 with it.

S3 deletes many objects by one request. Some servers lack it, and some refuse it without the older checksum. What a
server has turned out to need is remembered for as long as the process lives, so that it is asked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ali_dist.storage.s3_client import process_state
from ali_dist.storage.s3_errors import error_code, is_about_access, is_transient, reply_status

MOST_KEYS = 100  # S3 takes 1000, but servers that take 25 ms a key would be silent for longer than the timeout
_UNKNOWN_REQUEST = (400, 404, 405, 411, 501)  # how servers refuse a request that they do not have
_UNKNOWN_CODES = ("NotImplemented", "MethodNotAllowed", "UnsupportedOperation")


def delete_together(client: Any, *, bucket: str, names: Sequence[str], endpoint_url: str | None) -> bool:
    """Delete at most `MOST_KEYS` objects by one request; names that are not there are passed over.

    Returns:
        Whether it was done; False where the server does not know that request, and `delete_one` has to be used.
    """
    state = process_state()
    if endpoint_url in state.deletes_singly:
        return False
    request = {"Objects": [{"Key": name} for name in names], "Quiet": True}
    try:
        failures = client.delete_objects(Bucket=bucket, Delete=request).get("Errors", ())
    except client.exceptions.ClientError as error:
        if not _is_unknown_request(error):
            raise
        if reply_status(error) == 400 and endpoint_url not in state.wants_content_md5:
            state.wants_content_md5.add(endpoint_url)
            return delete_together(client, bucket=bucket, names=names, endpoint_url=endpoint_url)
        state.deletes_singly.add(endpoint_url)
        return False
    for failure in failures:
        if failure.get("Code") in _UNKNOWN_CODES:
            state.deletes_singly.add(endpoint_url)
            return False
        if failure.get("Code") != "NoSuchKey":
            raise client.exceptions.ClientError({"Error": failure}, "DeleteObjects")
    return True


def delete_one(client: Any, *, bucket: str, name: str) -> None:
    """Delete one object, or do nothing if there is none."""
    try:
        client.delete_object(Bucket=bucket, Key=name)
    except client.exceptions.ClientError as error:
        if reply_status(error) != 404 or error_code(error) == "NoSuchBucket":
            raise


def _is_unknown_request(error: Any) -> bool:
    """Whether a server refused the request itself, and not the bucket, the credentials or the moment."""
    is_meant_otherwise = error_code(error) == "NoSuchBucket" or is_about_access(error) or is_transient(error)
    return reply_status(error) in _UNKNOWN_REQUEST and not is_meant_otherwise
