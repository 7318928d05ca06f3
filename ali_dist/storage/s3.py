"""Objects in an S3 bucket, on AWS or on any S3-compatible endpoint.

Reads go on at the byte where a connection broke, pinned to the object's etag; every answer's length is checked;
requests are tried again on 408, 429, 5xx, broken connections and timeouts, after a jittered wait that doubles.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

from ali_dist.errors import InputError, StorageError
from ali_dist.storage.base import (
    Listing,
    MissingObject,
    ObjectInfo,
    changed_error,
    clean_key,
    not_found_error,
    open_source,
    truncated_error,
)
from ali_dist.storage.s3_client import (
    check_endpoint,
    client_for,
    error_text,
    explain_error,
    is_unreachable,
    reply_status,
    this_process,
    upload_parts,
)

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_JITTER = random.SystemRandom()  # not the seeded generators: a retry must not change what is trained
_CHUNK_BYTES = 256 * 1024  # most that a broken connection can make us read twice
_LONGEST_WAIT_SECONDS = 20.0
_FIRST_CONTACT_ATTEMPTS = 3  # an endpoint that has never answered is more likely misspelt than overloaded
_DELETE_KEYS = 100  # S3 takes 1000, but servers that take 25 ms a key would be silent for longer than the timeout


@dataclass(frozen=True, slots=True)
class S3Store:
    """A bucket, or the part of it below a prefix. Zero-byte 'folder' objects (keys that end in '/') are not listed.

    Attributes:
        bucket: bucket name.
        prefix: path of the store in the bucket, without slashes at its ends; "" is the whole bucket.
        endpoint_url: None is AWS.
        timeout_seconds: connect timeout, and longest silence of a connection.
        attempts: tries of one request.
        wait_seconds: wait after the first failed try; doubles each time, up to 20 s; half of it is random.
        part_bytes: objects above this size are uploaded in parts of it (S3 asks for at least 5 MiB).
        page_size: keys per page of a listing.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    timeout_seconds: float = 20.0
    attempts: int = 6
    wait_seconds: float = 0.5
    part_bytes: int = 32 * 1024 * 1024
    page_size: int = 1000

    @classmethod
    def from_url(cls, url: str, *, endpoint_url: str | None, timeout_seconds: float, attempts: int) -> S3Store:
        """`s3://bucket/prefix` as a store; the endpoint defaults to AWS_ENDPOINT_URL_S3, then AWS_ENDPOINT_URL.

        Raises:
            InputError: no bucket name, malformed prefix, or an endpoint that is not a plain http(s) url.
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.rstrip("/")
        if not bucket:
            raise InputError(f"{url!r} names no bucket: give s3://bucket or s3://bucket/prefix.")
        if prefix:
            clean_key(prefix, f"s3://{bucket}")
        endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return cls(bucket, prefix, check_endpoint(endpoint) if endpoint else None, timeout_seconds, attempts)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def list(self, prefix: str = "") -> Listing:
        base = f"{self.prefix}/" if self.prefix else ""
        query = {"Bucket": self.bucket, "Prefix": base + clean_key(prefix, self.url, partial=True)}
        found: Listing = []
        while True:
            reply = self._ask(prefix, methodcaller("list_objects_v2", **query, MaxKeys=self.page_size))
            for item in reply.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    found.append(ObjectInfo(item["Key"].removeprefix(base), item["Size"], item["ETag"].strip('"')))
            if not reply.get("IsTruncated"):
                return sorted(found, key=lambda info: info.key)
            query["ContinuationToken"] = reply["NextContinuationToken"]

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            reply = self._ask(key, methodcaller("head_object", Bucket=self.bucket, Key=self.name_of(key)))
        except MissingObject:  # a 404 to HEAD has no body to say whether it is the bucket that is missing
            self._ask(key, methodcaller("head_bucket", Bucket=self.bucket))
            return None
        return ObjectInfo(key, reply["ContentLength"], reply["ETag"].strip('"'))

    def get(self, key: str) -> bytes:
        return self._ask(key, _Download(self, key, 0, None, None))

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        assert start >= 0 <= length, (start, length)
        if length:
            return self._ask(key, _Download(self, key, start, start + length, etag))
        info = self.stat(key)  # S3 has no empty range
        if info is None:
            raise not_found_error(self.url, key)
        if etag not in (None, info.etag):
            raise changed_error(self.url, key)
        if start > info.size:
            raise truncated_error(self.url, key, info.size, start)
        return b""

    def put(self, key: str, data: bytes | Path) -> None:
        name = self.name_of(key)
        with open_source(data) as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            if size > self.part_bytes:  # boto3 tries each part again; starting over would send all of them again
                request = partial(
                    upload_parts, source=source, bucket=self.bucket, name=name, part_bytes=self.part_bytes
                )
                self._ask(key, request, by_boto=True)
            else:
                self._ask(key, methodcaller("put_object", Bucket=self.bucket, Key=name, Body=source.read()))

    def delete(self, keys: Sequence[str]) -> None:
        names = [self.name_of(key) for key in keys]
        for first in range(0, len(names), _DELETE_KEYS):
            self._ask(keys[first], partial(self._delete_some, names=names[first : first + _DELETE_KEYS]))

    def child(self, prefix: str) -> S3Store:
        return dataclasses.replace(self, prefix=self.name_of(prefix.rstrip("/")))

    def name_of(self, key: str) -> str:
        """The key as the bucket knows it."""
        return f"{self.prefix}/{clean_key(key, self.url)}".lstrip("/")

    def _delete_some(self, client: Any, names: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        reply = client.delete_objects(Bucket=self.bucket, Delete=wanted)
        for failed in reply.get("Errors", ()):
            if failed.get("Code") != "NoSuchKey":
                raise client.exceptions.ClientError({"Error": failed}, "DeleteObjects")

    def _ask(self, key: str, request: Callable[[Any], T], *, by_boto: bool = False) -> T:
        """The result of `request(client)`, tried again while the failure may pass (by boto3 itself if `by_boto`)."""
        answered = this_process().answered
        attempt = self.attempts - 1 if by_boto else 0
        while True:
            attempt += 1
            try:
                result = request(client_for(self.endpoint_url, self.timeout_seconds, self.attempts if by_boto else 1))
            except (InputError, StorageError):
                raise
            except Exception as error:
                final = explain_error(error, self.url, self.endpoint_url, key)
                if final is error:
                    raise
                unreached = is_unreachable(error) and self.endpoint_url not in answered
                most = min(self.attempts, _FIRST_CONTACT_ATTEMPTS) if unreached else self.attempts
                if final is None and attempt >= most:
                    final = self._exhausted(key, attempt, unreached, error)
                if final is not None:
                    raise final from error
                self._wait(key, attempt, error)
            else:
                answered.add(self.endpoint_url)
                return result

    def _wait(self, key: str, attempt: int, error: Exception) -> None:
        longest = min(_LONGEST_WAIT_SECONDS, self.wait_seconds * 2 ** (attempt - 1))
        seconds = longest * (0.5 + 0.5 * _JITTER.random())
        _LOG.warning(
            "s3_retry=%d url=%s key=%s wait_seconds=%.2f error=%r",
            *(attempt, self.url, key, seconds, error_text(error)),
        )
        time.sleep(seconds)

    def _exhausted(self, key: str, attempts: int, unreached: bool, error: Exception) -> Exception:
        place = self.endpoint_url or "AWS"
        if unreached:
            return InputError(
                f"The S3 endpoint {place} cannot be reached for {self.url} ({error_text(error)}): check "
                f"storage.endpoint_url or AWS_ENDPOINT_URL, and that the server is running."
            )
        return StorageError(f"{self.url} at {place} failed {attempts} times for {key!r}; last: {error_text(error)}.")


class _Download:
    """One object, or one range of it, on its way: called again after a break, it goes on behind what has arrived."""

    def __init__(self, store: S3Store, key: str, start: int, stop: int | None, etag: str | None) -> None:
        self.store, self.key, self.at, self.stop, self.etag = store, key, start, stop, etag
        self.chunks: list[bytes] = []

    def __call__(self, client: Any) -> bytes:
        arguments = {"Bucket": self.store.bucket, "Key": self.store.name_of(self.key)}
        if self.stop is not None:
            arguments["Range"] = f"bytes={self.at}-{self.stop - 1}"
        if self.etag is not None:
            arguments["IfMatch"] = f'"{self.etag}"'
        try:
            reply = client.get_object(**arguments)
        except client.exceptions.ClientError as error:
            if reply_status(error) == 416 and self.stop is not None:
                raise truncated_error(self.store.url, self.key, None, self.stop) from error
            raise
        self.stop = self._checked_stop(reply)
        body = reply["Body"]
        try:  # not `with body`: that hands out the raw stream, without boto3's own checks
            while self.at < self.stop:
                chunk = body.read(min(_CHUNK_BYTES, self.stop - self.at))
                if not chunk:
                    raise ConnectionError(f"the answer ended at byte {self.at} instead of {self.stop}")
                self.chunks.append(chunk)
                self.at += len(chunk)
        finally:
            body.close()
        return b"".join(self.chunks)

    def _checked_stop(self, reply: dict[str, Any]) -> int:
        """Where the answer ends, after checking that it is what was asked for, of the same object as before."""
        etag = reply["ETag"].strip('"')
        if self.etag not in (None, etag):
            raise changed_error(self.store.url, self.key)
        self.etag = etag
        if self.stop is None:
            return int(reply["ContentLength"])
        sent, _, total = reply.get("ContentRange", "").removeprefix("bytes ").partition("/")
        first, _, last = sent.partition("-")
        if first != str(self.at):
            raise StorageError(
                f"{self.store.url} does not answer byte range requests as S3 does, so it cannot be used."
            )
        if last != str(self.stop - 1):
            raise truncated_error(self.store.url, self.key, int(total) if total.isdigit() else None, self.stop)
        return self.stop
