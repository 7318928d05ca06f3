"""Settings that decide where and how a run goes: its name and place, storage, scale and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ali_dist.config.fields import doc, require
from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What is run, for how long, and where its results go."""

    name: str = doc("run", "name of the run; the same name continues it")
    dir: str = doc("runs", "folder or s3://bucket/prefix that holds run folders")
    images: int = doc(64_000, "training length: real images seen, counted over all workers")
    seed: int = doc(0, "seed of weights, order, noise and dropout")

    def __post_init__(self) -> None:
        plain = "/" not in self.name and self.name not in (".", "..")
        require(plain, "run.name", self.name, "a folder name: without '/', and not '.' or '..'")
        require(self.images > 0, "run.images", self.images, "at least 1")
        require(0 <= self.seed < 2**31, "run.seed", self.seed, "from 0 to 2147483647")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """S3-compatible storage. Credentials come from the standard AWS variables, never from here."""

    endpoint_url: str | None = doc(None, "S3 endpoint, e.g. http://127.0.0.1:8080; default: AWS_ENDPOINT_URL or AWS")
    timeout_seconds: float = doc(20.0, "connect and read timeout of one request")
    attempts: int = doc(6, "tries of one request before giving up (429, 5xx, resets, timeouts)")

    def __post_init__(self) -> None:
        require(self.timeout_seconds > 0, "storage.timeout_seconds", self.timeout_seconds, "more than 0")
        require(self.attempts >= 1, "storage.attempts", self.attempts, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """On what the run is spread. None of this changes what is learnt, up to rounding and batch-norm statistics."""

    workers: str = doc("auto", "auto, 0 (in this process, no Ray), N Ray Train workers, or MIN:MAX elastic")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = doc("auto", "auto: bf16 where the GPU has it, else fp32")
    device: Literal["auto", "cpu", "cuda"] = doc("auto", "auto: the GPU if there is one")
    backend: Literal["auto", "gloo", "nccl"] = doc("auto", "auto: nccl on GPUs, gloo on CPUs")
    threads: int | None = doc(None, "CPU threads per worker; default: torch's own, or the cores shared out")
    gpus_per_worker: float = doc(1.0, "GPUs each Ray worker asks for, on a GPU cluster")
    cpus_per_worker: float = doc(1.0, "CPUs each Ray worker asks for")
    max_failures: int = doc(3, "restarts from the newest checkpoint after a worker is lost")
    compile: bool = doc(False, "torch.compile the three networks (CUDA)")

    def __post_init__(self) -> None:
        low, high = self.worker_range() or (0, 0)
        require(0 <= low <= high, "scale.workers", self.workers, "auto, 0, N or MIN:MAX with 1 <= MIN <= MAX")
        require(self.threads is None or self.threads >= 1, "scale.threads", self.threads, "at least 1")
        require(self.max_failures >= 0, "scale.max_failures", self.max_failures, "at least 0")
        require(self.gpus_per_worker > 0, "scale.gpus_per_worker", self.gpus_per_worker, "more than 0")
        require(self.cpus_per_worker > 0, "scale.cpus_per_worker", self.cpus_per_worker, "more than 0")

    def worker_range(self) -> tuple[int, int] | None:
        """(fewest, most) Ray workers; (0, 0) is in-process; None is auto."""
        if self.workers == "auto":
            return None
        low, colon, high = self.workers.partition(":")
        if not low.isdecimal() or (colon and (not high.isdecimal() or int(low) < 1)):
            raise InputError(f"scale.workers is {self.workers!r}, but must be auto, 0, N or MIN:MAX with MIN >= 1.")
        return int(low), int(high) if colon else int(low)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How often something is written, in images seen; 0 means only at the end."""

    log_every: int = doc(6_400, "images between lines of metrics.jsonl and TensorBoard scalars")
    gallery_every: int = doc(0, "images between sample, reconstruction and interpolation grids")
    evaluate_every: int = doc(0, "images between evaluations on the holdout split")
    checkpoint_every: int = doc(32_000, "images between checkpoints")
    keep_checkpoints: int = doc(2, "newest checkpoints that are kept")
    evaluation: Literal["auto", "none"] = doc("auto", "auto: the metrics that apply to the data")
    evaluation_samples: int = doc(2_000, "decoder samples that evaluation draws")

    def __post_init__(self) -> None:
        for name in ("gallery_every", "evaluate_every", "checkpoint_every"):
            require(getattr(self, name) >= 0, f"report.{name}", getattr(self, name), "at least 0")
        require(self.log_every >= 1, "report.log_every", self.log_every, "at least 1")
        require(self.keep_checkpoints >= 1, "report.keep_checkpoints", self.keep_checkpoints, "at least 1")
        require(self.evaluation_samples >= 2, "report.evaluation_samples", self.evaluation_samples, "at least 2")
