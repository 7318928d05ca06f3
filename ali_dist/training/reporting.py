"""What rank 0 shows of a run: metric records, galleries, evaluations, the summary and the report page."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from ali_dist.config import Config
from ali_dist.config.loading import flatten_mapping
from ali_dist.errors import InputError
from ali_dist.evaluation.monitor import EvaluationMonitor, EvaluationStopped
from ali_dist.evaluation.reference_cache import ReferenceCache
from ali_dist.model.build import build_networks
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.galleries import has_galleries, has_pictures
from ali_dist.report.page import write_page
from ali_dist.report.terminal import TrainingProgressDisplay
from ali_dist.runs.datasets import RunData
from ali_dist.runs.provenance import add_start, describe_start
from ali_dist.runs.run_writer import RunWriter
from ali_dist.runs.trackers import Record
from ali_dist.storage import is_local
from ali_dist.storage.base import Store
from ali_dist.training.alarms import Alarm
from ali_dist.training.memory_use import measure_memory
from ali_dist.training.network_modes import modes_kept
from ali_dist.training.picture_reporting import PictureReporter
from ali_dist.training.resume import TrainingProgress
from ali_dist.training.run_evaluation import Purpose, RunEvaluator, SplitEvaluation, describe_unmeasured
from ali_dist.training.state import TrainState
from ali_dist.training.time_budget import read_spent
from ali_dist.version import VERSION

_NO_METRICS = ("event", "step", "images", "seconds", "split")  # of an evaluation's record


@dataclass(frozen=True, slots=True)
class EvaluationOutcome:
    """What an evaluation gives the loop.

    Attributes:
        metrics: What the run is said to have reached; empty where nothing was measured.
        split: Name of the split that they are of.
        to_choose_by: What a sweep may compare: never of the split that is reported on, where there is another.
        is_stopped: Whether the evaluation was asked to stop, and has no metrics for that reason.
        is_failed: Whether it failed, and has none for that one.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    split: str = ""
    to_choose_by: dict[str, float] = field(default_factory=dict)
    is_stopped: bool = False
    is_failed: bool = False


class RunReporter:
    """Writes the files of a run and shows how it is doing; changes nothing in the training. Used by rank 0 alone.

    Where drawing, evaluating or the report page fail, that is said and recorded, and the run goes on. What asks the
    user for something is raised: an `InputError`, or the `FloatingPointError` of networks that have diverged.

    Args:
        config: The run's config.
        data: Its data.
        state: The networks; their averages are shown where there are any.
        store: The run's folder.
        device: Where the networks are.
        display: Where it is shown.
        should_stop: Whether this rank was asked to stop: an evaluation then ends without metrics. None: never.

    Attributes:
        say: Shows a sentence that stays.
        phase: Shows within a block what is done in place of training.
        spent: Gives the seconds since training began, by phase.
        flush: Brings all records to the local disk.
        upload: Brings to the run folder what is on the local disk; from any thread, and never fails.
    """

    def __init__(
        self,
        config: Config,
        data: RunData,
        state: TrainState,
        store: Store,
        device: torch.device,
        display: TrainingProgressDisplay,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._config = config
        self._data = data
        self._state = state
        self._device = device
        self._folder = RunWriter(store, display.message, config.report.tracker_names())
        self._display = display
        self.phase = display.phase
        self.spent = display.spent
        self.say = display.message
        self.flush = self._folder.flush
        self.upload = self._folder.upload
        self._evaluations: dict[str, SplitEvaluation] = {}
        self._pictures = PictureReporter(config, data, state, self._folder, device, self._going_on)
        # References are kept beside the data where they lie in a folder of this machine; else with the run.
        data_store = data.train.store
        self._evaluator = RunEvaluator(
            data,
            state.space,
            samples=config.report.evaluation_samples,
            memory_mb=config.data.memory_mb,
            device=device,
            say=display.message,
            monitor=EvaluationMonitor(display.start_bar, should_stop),
            cache=ReferenceCache([data_store, store] if is_local(data_store.url) else [store]),
        )

    def begin_training(self, progress: TrainingProgress) -> None:
        """Begin to show a training that starts, or goes on, from `progress`, which gets the newest metrics.

        `progress` also gets this start beside the earlier ones.
        """
        config = self._config
        state = self._state
        for note in self._folder.forget_after(progress.images):
            self.say(note)
        self._recall_metrics(progress)
        self._recall_time(progress)
        settings = dict(flatten_mapping(config.to_mapping()))
        self._folder.start_trackers(config.run.name, progress.images, settings)
        start = describe_start(progress.images, torch_version=torch.__version__)
        progress.starts = add_start(progress.starts, start)
        progress.restarts = self._folder.count_start(progress.restarts)
        self._folder.write_json("config.json", config.to_mapping())
        sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in state.ali.named_children()}
        self.say(
            f"Training {config.run.name!r} on {config.data.url}: "
            + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            + f" parameters; {state.step.rule.name} update, {state.precision.name} on {self._device}"
            + (f", {state.launching}." if state.launching else ".")
        )
        if resize := state.space.describe_resize():
            self.say(resize)
        self.say(f"Results go to {self._folder.store.url}.")
        self._say_what_is_measured()
        self._take_back_the_end({"step": progress.step, "images": progress.images, "seconds": progress.seconds})
        self._display.begin_training(progress.images)

    def _take_back_the_end(self, position: Record) -> None:
        """Let summary and page of an earlier start, which was stopped or failed, say that the run goes on."""
        with self._going_on("report page", position):
            summary = self._folder.read_json("summary.json")
            if summary is not None:
                summary.pop("reason", None)
                self._folder.write_json("summary.json", {**summary, "status": "running", "updated": _now()})
                write_page(self._folder.path)

    def _say_what_is_measured(self) -> None:
        """Say before training where nothing is measured, or where that is another split than the one asked for."""
        asked, holdout = self._config.data.holdout, self._data.holdout
        if self._config.report.evaluation == "none":
            return
        if self._unmeasured:
            self.say(self._unmeasured)
        elif holdout is not None and holdout.name != asked:
            self.say(
                f"The data have no split {asked!r}: {holdout.name!r} is reported on in its place, though it is chosen "
                f"by, too."
            )

    def count_images(self, images: int) -> None:
        """Show that so many images have been seen; cheap enough for every step."""
        self._display.update(images)

    def log_record(self, record: Record) -> None:
        """Write and show one record of metrics."""
        self._folder.log_record(record)
        if record["event"] == "train" and self._folder.has_trackers:
            position = {key: record[key] for key in ("images", "step", "seconds")}
            self._folder.track_record({"event": "memory", **position, **measure_memory(self._device)})
        self._display.update(record["images"], record)

    def log_measures(self, record: Record) -> None:
        """Write what the networks were measured for alarms; it is not shown."""
        self._folder.log_record(record)

    def record_alarm(self, alarm: Alarm, position: Record) -> None:
        """Write and say an alarm.

        Args:
            alarm: The alarm.
            position: Step, images and seconds at which it is raised.
        """
        self._folder.log_record(
            {"event": "alarm", **position, **alarm.to_record(), "response": self._config.run.on_alarm}
        )
        self.say(alarm.describe(position["images"]))

    def record_rollback(
        self, alarm: Alarm, images: int, position: Record, progress: TrainingProgress, *, most: int
    ) -> None:
        """Drop what was recorded after the checkpoint that the run went back to, and write and say that it did.

        Args:
            alarm: Why.
            images: Images seen when the alarm was raised.
            position: Step, images and seconds at which the run goes on.
            progress: The same; gets the newest metrics of before.
            most: How many rollbacks a run may have.
        """
        for note in self._folder.forget_after(progress.images):
            self.say(note)
        self._recall_metrics(progress)
        self._folder.log_record({"event": "rollback", **position, **alarm.to_record(), "alarm_images": images})
        self._folder.publish()
        self.say(
            f"Rolled back from {images:,} to {progress.images:,} images because of {alarm.name} (rollback "
            f"{progress.rollbacks} of at most {most}); noise, dropout and augmentation are drawn anew from here, "
            "and the order of the data stays."
        )

    def count_rollbacks(self) -> int:
        """Rollbacks that are recorded, of all starts of the run."""
        return sum(record.get("event") == "rollback" for record in self._folder.read_records())

    def publish(self, *, is_last: bool = False) -> None:
        """Bring what has been written to the run folder, where that is not on this machine.

        What cannot be uploaded is said, and goes with what is published next.

        Args:
            is_last: Whether it is tried again at once, because nothing is published after it.
        """
        with self.phase("uploading"):
            self._folder.publish(is_last=is_last)

    def record_failures(self, what: str, reasons: list[str], position: Record) -> None:
        """Record what has failed and was said elsewhere, and is tried again.

        Args:
            what: What it was, in a word.
            reasons: Why, for each failure.
            position: Step, images and seconds of the records.
        """
        for reason in reasons:
            self._folder.log_record({"event": "failure", **position, "what": what, "reason": reason})

    def publish_looks(self, outcome: Record, *, goes_on: bool) -> None:
        """Bring pictures and evaluations there, with summary and page unless these are about to be written at the end.

        Args:
            outcome: As for `write_summary`.
            goes_on: Whether there is more to train.
        """
        position = _position_of(outcome)
        if goes_on:
            with self._going_on("report page", position), self.phase("writing the report"):
                self._write_summary(self._summarize(outcome))
                write_page(self._folder.path)
        self.publish()
        self.record_failures("upload", self._folder.take_failures(), position)

    def has_evaluated(self, images: int) -> bool:
        """Whether the networks of that moment need not be measured, because they were, or will not be."""
        return self._is_evaluation_off or any(
            record["images"] == images
            and (record.get("event") == "evaluation" or record.get("what") == "evaluation")  # the latter: it failed
            for record in self._folder.read_records()
        )

    @property
    def _is_evaluation_off(self) -> bool:
        return self._config.report.evaluation == "none" or bool(self._unmeasured)

    @functools.cached_property
    def _unmeasured(self) -> str:
        return describe_unmeasured(self._data, self._config.data.holdout)

    def recall_choice(self, images: int) -> dict[str, float]:
        """What an earlier start measured at that moment to choose by; empty if it did not."""
        for record in self._folder.read_records():
            if record.get("event") == "evaluation" and record["images"] == images:
                return {key: value for key, value in record.items() if key not in _NO_METRICS}
        return {}

    def _recall_metrics(self, progress: TrainingProgress) -> None:
        """Give `progress` the metrics of the last evaluation: it may have come after the checkpoint."""
        evaluations = [record for record in self._folder.read_records() if record.get("event") == "evaluation"]
        if evaluations:
            *_, last = evaluations
            progress.metrics = {key: value for key, value in last.items() if key not in _NO_METRICS}
            progress.metrics_split = last.get("split", "")

    def _recall_time(self, progress: TrainingProgress) -> None:
        """Give `progress` all the time of a run that had finished: its last evaluation came after its checkpoint."""
        summary = self.read_finished_summary()
        if summary is not None and summary.get("images") == progress.images:
            seconds, spent = summary.get("seconds"), summary.get("time")
            progress.seconds = max(progress.seconds, seconds if isinstance(seconds, int | float) else 0.0)
            progress.spent = read_spent(spent) if isinstance(spent, dict) else progress.spent

    @contextmanager
    def _going_on(self, what: str, position: Record) -> Iterator[None]:
        """Record what fails in the block, and go on; what asks the user for something is raised.

        Args:
            what: What is done in it, in a word.
            position: Step, images and seconds of the record.
        """
        try:
            yield
        except (InputError, FloatingPointError, EvaluationStopped):
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            details = "".join(traceback.format_exception(error))
            self._folder.log_record(
                {"event": "failure", **position, "what": what, "reason": reason, "traceback": details}
            )
            self.say(
                f"The {what} after {position['images']:,} images failed ({reason}); the run goes on without it, and "
                "metrics.jsonl has the details."
            )

    def evaluate(self, position: Record, *, is_last: bool) -> EvaluationOutcome:
        """Measure the current networks, and log it; an empty outcome where there are no metrics, or if that fails.

        Before the end, the split that is chosen by is measured. At the end it is `data.holdout`, and before it, if
        there were (or could have been) earlier evaluations, once more the other one.

        Args:
            position: Step, images and seconds of the record.
            is_last: Whether training has ended.
        """
        if self._is_evaluation_off:
            return EvaluationOutcome()
        by_report_split = self._evaluator.chooses_by_report_split
        chosen = reported = SplitEvaluation()
        is_failed = True
        try:
            with self._going_on("evaluation", position):
                if not is_last or (self._config.report.evaluate_every and not by_report_split):
                    chosen = self._measure(position, "choice")
                if is_last:
                    reported = self._measure(position, "report")
                is_failed = False
        except EvaluationStopped:
            return EvaluationOutcome(is_stopped=True)
        result = reported if is_last else chosen
        return EvaluationOutcome(result.metrics, result.split, chosen.metrics or result.metrics, is_failed=is_failed)

    def _measure(self, position: Record, purpose: Purpose) -> SplitEvaluation:
        with self.phase("evaluating"), modes_kept(self._state.ali):
            result = self._evaluator.measure(self._make_inference_model(), purpose)
        if result.metrics:
            self._evaluations[purpose] = result
            self.log_record({"event": "evaluation", **position, "split": result.split, **result.metrics})
        self._pictures.track_distributions(position)
        return result

    def draw_galleries(self, position: Record) -> None:
        """Draw what the current networks make of the same latents and images as at every other time.

        Args:
            position: Images seen, for the files' names, and step and seconds.
        """
        if not has_galleries(self._data.train.index.spec):
            return
        with self.phase("drawing"), modes_kept(self._state.ali):
            self._pictures.draw(self._make_inference_model(), position)

    def write_summary(self, outcome: Record, substituted: list[str]) -> Record:
        """Write the summary and the report page.

        Args:
            outcome: Status, images, steps and metrics of the run.
            substituted: Samples that could not be read and were replaced by others.

        Returns:
            The whole summary.
        """
        position = _position_of(outcome)
        self.record_failures("upload", self._folder.take_failures(), position)
        summary = self._summarize(outcome)
        if substituted:
            summary["substituted"] = substituted
        with self.phase("finishing the trackers"):
            self._folder.finish_trackers(summary)
        self._write_summary(summary)
        num_failures = len(summary.get("failures", ()))
        with self._going_on("report page", position), self.phase("writing the report"):
            write_page(self._folder.path)
        if len(_list_failures(self._folder.read_records())) > num_failures:
            self._write_summary(summary)
        self.publish(is_last=True)
        self.conclude(summary)
        return summary

    def _summarize(self, outcome: Record) -> Record:
        summary = {
            "run": self._config.run.name,
            **outcome,
            "updated": _now(),
            "version": VERSION,
            "torch": torch.__version__,
            "precision": self._state.precision.name,
            "device": _device_name(self._device),
            "update": self._state.step.rule.name,
            "launching": self._state.launching,
            "weights": "ema" if self._state.average is not None else "raw",
        }
        if self._evaluations:
            summary["evaluation"] = {purpose: result.to_json() for purpose, result in self._evaluations.items()}
        if "choice" in self._evaluations:
            summary["metrics_to_choose_by"] = self._evaluations["choice"].metrics
        return summary

    def conclude(self, summary: Record) -> None:
        """Show what a finished run leaves, and where; nothing more is shown live then."""
        if summary["status"] == "finished":
            spec, url = self._data.train.index.spec, self._folder.store.url
            self._display.conclude(summary, url, draws=has_galleries(spec), explores=has_pictures(spec))

    def _write_summary(self, summary: Record) -> None:
        """Write the summary with all alarms and all that has failed."""
        summary["alarms"] = _list_alarms(self._folder.read_records())
        failures = _list_failures(self._folder.read_records())
        if failures:
            summary["failures"] = failures
        if tracker_failures := self._folder.tracker_failures():
            summary["trackers"] = tracker_failures
        self._folder.write_json("summary.json", summary)

    def read_finished_summary(self) -> Record | None:
        """Read the summary of a run that has finished before; None if it has not."""
        summary = self._folder.read_json("summary.json")
        return summary if summary and summary.get("status") == "finished" else None

    def close(self) -> None:
        """Release the terminal and the files."""
        try:
            self._folder.close()
        finally:
            self._display.close()

    def _make_inference_model(self) -> InferenceModel:
        def make_untrained(seed: int) -> dict[str, torch.nn.Module]:
            return dict(build_networks(self._config, self._data.train.index.spec, seed)[0].named_children())

        return InferenceModel(self._state.inference_networks(), self._state.space, make_untrained)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _position_of(outcome: Record) -> Record:
    return {key: outcome[key] for key in ("step", "images", "seconds")}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _list_failures(records: Iterable[Record]) -> list[Record]:
    """What has failed, in the form of the summary."""
    return [
        {key: record.get(key) for key in ("what", "images", "reason")}
        for record in records
        if record.get("event") == "failure"
    ]


def _list_alarms(records: Iterable[Record]) -> list[Record]:
    """Alarms so far, and what was done; one that a rollback answered is known by the record of that."""
    return [
        {
            "alarm": record.get("alarm"),
            "images": record.get("alarm_images", record["images"]),
            "value": record.get("value"),
            "threshold": record.get("threshold"),
            "response": "rollback" if record["event"] == "rollback" else record.get("response"),
            "meaning": record.get("meaning"),
            "advice": record.get("advice"),
        }
        for record in records
        if record.get("event") in ("alarm", "rollback")
    ]
