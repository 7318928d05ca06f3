"""Settings that decide where and how a run goes: its name and place, storage, scale and reports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ali_dist.config.setting import require_value, setting, show_value
from ali_dist.errors import InputError

_LONGEST_NAME = 200  # bytes; file systems take 255, and names of Ray's files begin with it
_MOST_IMAGES = 10**18
_MOST_WORKERS = 100_000
_LONGEST_TIMEOUT = 86_400  # a day, in seconds
_LONGEST_OUTAGE = 10_080  # a week, in minutes
_MOST_THREADS = 1024  # OpenMP crashes where it cannot start as many


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What is run, for how long, and where its results go."""

    name: str = setting("run", "name of the run; the same name continues it")
    dir: str = setting("runs", "folder or s3://bucket/prefix that holds run folders")
    images: int = setting(64_000, "training length: real images seen, counted over all workers")
    seed: int = setting(0, "seed of weights, order, noise and dropout")
    on_alarm: Literal["warn", "rollback", "stop"] = setting(
        "warn",
        "what an alarm of a sick run does: warn: say it; rollback: go back to the last checkpoint from before the "
        "trouble, with other noise, at most 3 times, then stop; stop: end with exit code 1, with that one the newest",
    )

    def __post_init__(self) -> None:
        for key, text in (("run.name", self.name), ("run.dir", self.dir)):
            if any("\udc80" <= character <= "\udcff" for character in text):  # how Python keeps bytes that are no text
                raise InputError(
                    f"{key} is {show_value(text)}, which is no text in this terminal's locale: choose one without such "
                    "characters, or set LC_ALL=C.UTF-8."
                )
        self._check_name()
        require_value(0 < self.images <= _MOST_IMAGES, "run.images", self.images, f"from 1 to {_MOST_IMAGES:,}")
        require_value(0 <= self.seed < 2**31, "run.seed", self.seed, "from 0 to 2147483647")

    def _check_name(self) -> None:
        """Refuse what is no folder's name, and what a shell, a log line or another command would read otherwise."""
        name = self.name
        plain = "/" not in name and name not in (".", "..") and name == name.strip() and name[:1] not in ("-", "~")
        require_value(
            plain and name.isprintable() and len(name.encode(errors="replace")) <= _LONGEST_NAME,
            "run.name",
            name,
            "a folder name of one line: without '/' and control characters, not '.' or '..', not beginning with '-' or "
            f"'~' or a blank, and of at most {_LONGEST_NAME} bytes",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """S3-compatible storage. Credentials come from the standard AWS variables, never from here."""

    endpoint_url: str | None = setting(
        None, "S3 endpoint, e.g. http://127.0.0.1:8080; default: AWS_ENDPOINT_URL or AWS"
    )
    timeout_seconds: float = setting(20.0, "connect and read timeout of one request")
    attempts: int = setting(6, "tries of one request before giving up (429, 5xx, resets, timeouts)")
    outage_minutes: float = setting(
        30.0,
        "minutes that a run goes on while S3 fails, without a new checkpoint or waiting for data that it streams; what "
        "could not be saved by then is kept on the machine",
    )
    anonymous: bool = setting(False, "read public buckets without credentials: requests are not signed")
    region: str | None = setting(None, "region of the bucket; default: AWS_REGION, AWS_DEFAULT_REGION or the profile's")
    addressing: Literal["auto", "path", "virtual"] = setting(
        "auto", "where the bucket's name stands: in the path or the host name; auto: path with an endpoint of your own"
    )
    request_payer: bool = setting(False, "agree to pay for requests to buckets whose requester pays")

    def __post_init__(self) -> None:
        require_value(self.timeout_seconds > 0, "storage.timeout_seconds", self.timeout_seconds, "more than 0")
        require_value(self.attempts >= 1, "storage.attempts", self.attempts, "at least 1")
        minutes = self.outage_minutes
        require_value(0 <= minutes <= _LONGEST_OUTAGE, "storage.outage_minutes", minutes, "from 0 to 10080, a week")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """On what the run is spread. None of this changes what is learned, up to rounding, unless `batch_norm` is local."""

    workers: str = setting("auto", "auto, 0 (in this process, no Ray), N Ray Train workers, or MIN:MAX elastic")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "auto: bf16 where the GPU has it, else fp32")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: the GPU if there is one")
    backend: Literal["auto", "gloo", "nccl"] = setting("auto", "auto: nccl on GPUs, gloo on CPUs")
    threads: int | None = setting(None, "CPU threads per worker; default: torch's own, or the cores shared out")
    gpus_per_worker: float = setting(1.0, "GPUs each Ray worker asks for, on a GPU cluster")
    cpus_per_worker: float = setting(1.0, "CPUs each Ray worker asks for")
    max_failures: int | None = setting(
        None,
        "restarts from the newest checkpoint after a worker is lost, or the one process of a run is killed; default: 3 "
        "with Ray workers, else 0 (torchrun has its own --max-restarts)",
    )
    collective_timeout: float = setting(
        120.0, "seconds that a worker waits for another one that does not go on, before the run ends or is restarted"
    )
    batch_norm: Literal["global", "local"] = setting(
        "global", "global: statistics of the whole global batch; local: of each worker's part, without communication"
    )
    micro_batch: int | None = setting(
        None, "samples that a worker gives the networks at once; gradients add up to the batch's; default: all it has"
    )
    compile: bool = setting(False, "torch.compile the three networks (CUDA)")
    cuda_graph: Literal["auto", "off"] = setting(
        "auto", "auto: record an update once and replay it, on one GPU without scale.compile; off: launch each kernel"
    )

    def __post_init__(self) -> None:
        low, high = self.worker_range() or (0, 0)
        require_value(0 <= low <= high, "scale.workers", self.workers, "auto, 0, N or MIN:MAX with 1 <= MIN <= MAX")
        threads = self.threads
        require_value(
            threads is None or 1 <= threads <= _MOST_THREADS, "scale.threads", threads, f"from 1 to {_MOST_THREADS:,}"
        )
        micro = self.micro_batch
        require_value(micro is None or micro >= 1, "scale.micro_batch", micro, "at least 1")
        timeout = self.collective_timeout
        require_value(0 < timeout <= _LONGEST_TIMEOUT, "scale.collective_timeout", timeout, "more than 0, up to 86400")
        failures = self.max_failures
        require_value(failures is None or failures >= 0, "scale.max_failures", failures, "at least 0")
        require_value(self.gpus_per_worker > 0, "scale.gpus_per_worker", self.gpus_per_worker, "more than 0")
        whole_or_less = self.gpus_per_worker < 1 or self.gpus_per_worker.is_integer()  # as Ray has it
        require_value(
            whole_or_less, "scale.gpus_per_worker", self.gpus_per_worker, "less than 1, or a whole number of GPUs"
        )
        require_value(self.cpus_per_worker > 0, "scale.cpus_per_worker", self.cpus_per_worker, "more than 0")

    def worker_range(self) -> tuple[int, int] | None:
        """(fewest, most) Ray workers; (0, 0) is in-process; None is auto."""
        if self.workers == "auto":
            return None
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", self.workers, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        is_elastic = ":" in self.workers
        require_value(
            match is not None and (low >= 1 or not is_elastic) and high <= _MOST_WORKERS,
            "scale.workers",
            self.workers,
            f"auto, 0, N or MIN:MAX with MIN >= 1 and MAX <= {_MOST_WORKERS:,}",
        )
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How often something is written, in images seen; 0 means only at the end."""

    log_every: int = setting(6_400, "images between lines of metrics.jsonl, and scalars of the trackers")
    gallery_every: int = setting(0, "images between sample, reconstruction and interpolation grids")
    evaluate_every: int = setting(
        0, "images between evaluations on the split valid (a tenth of the training split where there is none)"
    )
    checkpoint_every: int = setting(32_000, "images between checkpoints")
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept")
    evaluation: Literal["auto", "none"] = setting("auto", "auto: the metrics that apply to the data")
    evaluation_samples: int = setting(2_000, "decoder samples that evaluation draws")
    trackers: str = setting(
        "tensorboard", "what is told of the run beside metrics.jsonl: tensorboard, wandb, mlflow, some of them, or none"
    )

    def tracker_names(self) -> tuple[str, ...]:
        """The trackers that `trackers` names; empty where there are none."""
        return () if self.trackers == "none" else tuple(name.strip() for name in self.trackers.split(","))

    def __post_init__(self) -> None:
        for name in ("gallery_every", "evaluate_every", "checkpoint_every"):
            require_value(getattr(self, name) >= 0, f"report.{name}", getattr(self, name), "at least 0")
        require_value(self.log_every >= 1, "report.log_every", self.log_every, "at least 1")
        require_value(self.keep_checkpoints >= 1, "report.keep_checkpoints", self.keep_checkpoints, "at least 1")
        require_value(self.evaluation_samples >= 2, "report.evaluation_samples", self.evaluation_samples, "at least 2")
        names = self.tracker_names()
        require_value(
            all(names) and len(set(names)) == len(names),
            "report.trackers",
            self.trackers,
            "'none', or names of trackers, each once, with commas between them, such as 'tensorboard,wandb'",
        )
