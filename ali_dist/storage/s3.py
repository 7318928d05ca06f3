"""Objects in an S3 bucket, on AWS or on any S3-compatible endpoint.

A read continues at the byte where its connection broke, pinned to the object's etag, and the length of every answer is
checked. Requests are tried again on 408, 429, 5xx, broken connections and timeouts, after a jittered wait that doubles,
or that the server asks for. What is missing is looked for once more, because one of a service's many servers may lag
behind the others or have a wrong clock.
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
    Access,
    Listing,
    MissingObject,
    ObjectInfo,
    changed_error,
    check_range,
    clean_key,
    not_found_error,
    open_source,
    truncated_error,
)
from ali_dist.storage.retries import note_retry
from ali_dist.storage.s3_client import check_endpoint, client_for, process_state, renew_client, upload_parts
from ali_dist.storage.s3_deletion import MOST_KEYS, delete_one, delete_together
from ali_dist.storage.s3_download import Download, clean_tag, is_same_content
from ali_dist.storage.s3_errors import (
    asked_wait_seconds,
    error_text,
    explain_error,
    is_missing,
    is_skewed,
    is_unreachable,
    may_be_stale_credentials,
    misnamed_hint,
    server_name,
)

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_JITTER = random.SystemRandom()  # not the seeded generators: a retry must not change what is trained
_LONGEST_WAIT_SECONDS = 20.0
_LONGEST_ASKED_SECONDS = 60.0  # what a server may ask for by Retry-After
_FIRST_CONTACT_ATTEMPTS = 3  # an endpoint that has never answered is more likely misspelt than overloaded


@dataclass(frozen=True, slots=True)
class S3Store:
    """A bucket, or the part of it below a prefix. Zero-byte 'folder' objects (keys that end in '/') are not listed.

    Attributes:
        bucket: Name of the bucket.
        prefix: Path of the store in the bucket, without slashes at its ends; "" is the whole bucket.
        access: How the server is reached; an endpoint of None is AWS.
        wait_seconds: Wait after the first failed try; it doubles each time, up to 20 s, and half of it is random.
        part_bytes: Size of the parts in which larger objects are uploaded (S3 asks for at least 5 MiB).
        page_size: Keys per page of a listing.
    """

    bucket: str
    prefix: str = ""
    access: Access = Access()
    wait_seconds: float = 0.5
    part_bytes: int = 32 * 1024 * 1024
    page_size: int = 1000

    @classmethod
    def from_url(cls, url: str, access: Access) -> S3Store:
        """Make the store of `s3://bucket/prefix`; the endpoint defaults to AWS_ENDPOINT_URL_S3, then AWS_ENDPOINT_URL.

        Raises:
            InputError: There is no bucket name, the prefix is malformed, or the endpoint is not a plain http(s) url.
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.rstrip("/")
        if not bucket:
            raise InputError(f"{url!r} names no bucket: give s3://bucket or s3://bucket/prefix.")
        if prefix:
            clean_key(prefix, f"s3://{bucket}")
        endpoint = access.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        endpoint = check_endpoint(endpoint) if endpoint else None
        return cls(bucket, prefix, dataclasses.replace(access, endpoint_url=endpoint))

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def list(self, prefix: str = "") -> Listing:
        base = f"{self.prefix}/" if self.prefix else ""
        query = {"Bucket": self.bucket, "Prefix": base + clean_key(prefix, self.url, partial=True)}
        objects: Listing = []
        while True:
            reply = self._request(prefix, methodcaller("list_objects_v2", **query, MaxKeys=self.page_size))
            for item in reply.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    objects.append(
                        ObjectInfo(item["Key"].removeprefix(base), item["Size"], clean_tag(item.get("ETag")))
                    )
            if not reply.get("IsTruncated"):
                return sorted(objects, key=lambda info: info.key)
            query["ContinuationToken"] = reply["NextContinuationToken"]

    def stat(self, key: str) -> ObjectInfo | None:
        head = methodcaller("head_object", Bucket=self.bucket, Key=self.object_name(key))
        try:
            reply = self._request(key, head)
        except MissingObject:  # a 404 to HEAD has no body that could say that the bucket is missing
            if (self.access.endpoint_url, self.bucket) not in process_state().buckets:
                self._request(key, methodcaller("head_bucket", Bucket=self.bucket))
            try:  # once more, at once: most of what is looked for in this way is not there
                reply = self._request(key, head)
            except MissingObject:
                return None
        return ObjectInfo(key, reply["ContentLength"], clean_tag(reply.get("ETag")))

    def get(self, key: str) -> bytes:
        return self._request(key, self._download(key))

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        check_range(start, length)
        if length:
            return self._request(key, self._download(key, position=start, stop=start + length, etag=etag))
        info = self.stat(key)  # S3 knows no empty range
        if info is None:
            raise not_found_error(self.url, key)
        if not is_same_content(etag or "", info.etag):
            raise changed_error(self.url, key)
        if start > info.size:
            raise truncated_error(self.url, key, info.size, start)
        return b""

    def put(self, key: str, data: bytes | Path) -> None:
        name = self.object_name(key)
        with open_source(data) as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            if size > self.part_bytes:  # boto3 repeats single parts, where we would send all of them again
                request = partial(
                    upload_parts, source=source, bucket=self.bucket, name=name, part_bytes=self.part_bytes
                )
                self._request(key, request, by_boto=True)
            else:
                self._request(key, methodcaller("put_object", Bucket=self.bucket, Key=name, Body=source.read()))

    def delete(self, keys: Sequence[str]) -> None:
        names = [self.object_name(key) for key in keys]
        for first in range(0, len(names), MOST_KEYS):
            some = names[first : first + MOST_KEYS]
            together = partial(delete_together, bucket=self.bucket, names=some, endpoint_url=self.access.endpoint_url)
            if not self._request(keys[first], together):
                for key, name in zip(keys[first:], some, strict=False):
                    self._request(key, partial(delete_one, bucket=self.bucket, name=name))

    def child(self, prefix: str) -> S3Store:
        return dataclasses.replace(self, prefix=self.object_name(prefix.rstrip("/")))

    def object_name(self, key: str) -> str:
        """The name under which the bucket has the object of `key`."""
        return f"{self.prefix}/{clean_key(key, self.url)}".lstrip("/")

    def _download(self, key: str, **part: Any) -> Download:
        part = {"patience_seconds": self.access.timeout_seconds, **part}
        return Download(url=self.url, key=key, bucket=self.bucket, name=self.object_name(key), **part)

    def _request(self, key: str, request: Callable[[Any], T], *, by_boto: bool = False) -> T:
        """Return `request(client)`, tried again while the failure may pass; with `by_boto`, boto3 itself does that."""
        answered, access = process_state().answered, self.access
        boto_attempts = access.attempts if by_boto else 1
        attempt = access.attempts - 1 if by_boto else 0
        is_first_refusal = is_first_miss = True
        while True:
            attempt += 1
            client = client_for(access, boto_attempts)
            try:
                result = request(client)
            except (InputError, StorageError):
                raise
            except Exception as error:
                if is_first_refusal and (
                    is_skewed(error)
                    or (may_be_stale_credentials(error) and renew_client(access, boto_attempts, client))
                ):
                    is_first_refusal = False  # asked again at once, and signed anew
                    continue
                if is_first_miss and is_missing(error):
                    is_first_miss = False
                    time.sleep(self._wait_seconds(1))
                    continue
                final = explain_error(error, self.url, access, key)
                if final is error:
                    raise
                unreached = is_unreachable(error) and access.endpoint_url not in answered
                max_attempts = min(access.attempts, _FIRST_CONTACT_ATTEMPTS) if unreached else access.attempts
                if final is None and attempt >= max_attempts:
                    final = self._exhausted_error(key, attempt, unreached, error)
                if final is not None:
                    raise final from error
                self._wait_before_retry(key, attempt, error)
            else:
                answered.add(access.endpoint_url)
                process_state().buckets.add((access.endpoint_url, self.bucket))
                return result

    def _wait_seconds(self, attempt: int) -> float:
        longest = min(_LONGEST_WAIT_SECONDS, self.wait_seconds * 2 ** (attempt - 1))
        return longest * (0.5 + 0.5 * _JITTER.random())

    def _wait_before_retry(self, key: str, attempt: int, error: Exception) -> None:
        asked = min(_LONGEST_ASKED_SECONDS, asked_wait_seconds(error))
        seconds = max(asked, self._wait_seconds(attempt))
        _LOG.warning(
            "s3_retry=%d url=%s key=%s wait_seconds=%.2f error=%r",
            *(attempt, self.url, key, seconds, error_text(error)),
        )
        note_retry()
        time.sleep(seconds)

    def _exhausted_error(self, key: str, attempts: int, unreached: bool, error: Exception) -> Exception:
        server = server_name(self.access)
        if unreached:
            return InputError(
                f"The S3 endpoint {server} cannot be reached for {self.url} ({error_text(error)}): check "
                f"storage.endpoint_url or AWS_ENDPOINT_URL, and that the server is running{misnamed_hint(self.access)}."
            )
        return StorageError(f"{self.url} at {server} failed {attempts} times for {key!r}; last: {error_text(error)}.")
