"""The training loop: take a global batch, update, count images, and do what is due. Nothing else.

Every rank runs it in step; rank 0 also writes. It knows no Ray: see `context.py`.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack

import torch

from ali_dist.config import Config
from ali_dist.data.batch import BatchSource
from ali_dist.data.loader import open_batches
from ali_dist.data.order import lanes_of_rank
from ali_dist.distributed import any_rank, average_buffers, check_replicas, gather_texts
from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.model.ali import LabelledBatch
from ali_dist.model.data_space import condition_vectors
from ali_dist.model.layers import BatchNorm
from ali_dist.runs.checkpoint import CheckpointMetadata, CheckpointStore
from ali_dist.runs.datasets import open_run_data, open_run_store
from ali_dist.runs.run_writer import Record
from ali_dist.training import schedules as schedule
from ali_dist.training.context import Context
from ali_dist.training.labelled_batches import LabelledBatches
from ali_dist.training.loss_meter import LossMeter
from ali_dist.training.randomness import NoiseSource, seed_dropout
from ali_dist.training.reporting import RunReporter
from ali_dist.training.resume import resume_run
from ali_dist.training.state import TrainState, loss_weights_at
from ali_dist.training.step import TrainBatch

_STOP_POLL = 10  # updates between two votes of several ranks on stopping


def fit(config: Config, context: Context) -> Record | None:
    """Train from the newest checkpoint of the run, or from the start, to `run.images`. Collective.

    Returns:
        The summary that rank 0 wrote (None on other ranks).

    Raises:
        InputError: Config, data and checkpoint do not go together.
        TrainingError: A loss or weight is not finite.
        Stopped: The context asked to stop; a checkpoint has been saved.
    """
    with ExitStack() as stack:
        training = Training(config, context, stack)
        return training.run()


class Training:
    """One run on this rank.

    Args:
        config: What to do.
        context: Which rank this is and who may stop it.
        stack: Closes what is opened here.
    """

    def __init__(self, config: Config, context: Context, stack: ExitStack) -> None:
        self.config, self.context, self.world, self.device = config, context, context.world, context.device
        self.inputs = open_run_data(config)
        self.rows = self._rows()
        self.players = TrainState.build(config, self.inputs.train.index, self.device, self.world)
        self._check_batch()
        self.labelled = None
        if config.objective.supervised:
            self.labelled = LabelledBatches(self.inputs.train, config, self.rows, self.device)
        store = open_run_store(config)
        self.reporter = None
        if self.world.is_main:
            self.reporter = RunReporter(config, self.inputs, self.players, store, self.device)
            stack.callback(self.reporter.close)
        self.checkpoints = CheckpointStore(store, config.report.keep_checkpoints, self._say)
        stack.callback(self.checkpoints.close)
        fingerprint = self.inputs.train.index.fingerprint
        self.at = resume_run(config, self.checkpoints, self.players, fingerprint, self.world, self._say)
        self.meter = LossMeter(config.objective.loss, self.device, self.world)
        self.began = time.monotonic()

    def run(self) -> Record | None:
        """The loop; see `fit`."""
        total, size = self.config.total_steps(), self.config.data.global_batch_size
        latent_size, labelled = self.config.model.latent_size, self.labelled is not None
        noise = NoiseSource(self.config.run.seed, size, latent_size, self.rows, self.device, labelled=labelled)
        if self.at.step >= total:
            return self._done_before()
        if self.reporter:
            self.reporter.begin(self.at)
        with self._batches() as batches:
            self.meter.start(self.at.images, batches.wait_seconds)
            while self.at.step < total:
                if self._must_stop():
                    self._stop(batches)
                self._update(batches, noise)
                self.at.step += 1
                self.at.images += size
                if self.reporter:
                    self.reporter.advance(self.at.images)
                self._do_what_is_due(batches, last=self.at.step == total)
            return self._finish("finished", batches)

    def _update(self, batches: BatchSource, noise: NoiseSource) -> None:
        """One update of Algorithm 1 on the next global batch."""
        config, players, images, total = self.config, self.players, self.at.images, self.config.run.images
        batch = self._batch(batches, noise)
        seed_dropout(config.run.seed, self.at.step, self.world.rank)
        rate = schedule.learning_rate_factor(config.optim.schedule, images, total)
        players.set_learning_rates(config.optim.lr_g * rate, config.optim.lr_d * rate)
        penalty = schedule.penalty_factor(config.objective.penalty_final, images, total)
        self.meter.add(players.step(batch, loss_weights_at(config, self.at.step, penalty)))
        if players.average is not None:
            size = config.data.global_batch_size
            players.average.update(schedule.ema_decay(config.optim.ema_half_life, size, images + size))

    def _batch(self, batches: BatchSource, noise: NoiseSource) -> TrainBatch:
        """The next global batch, this rank's part: data, noise, conditions, and labelled data where D classifies."""
        space, ali = self.players.space, self.players.ali
        data = next(batches)
        z, epsilon, *more = noise.at(self.at.step)
        c = labelled = None
        if isinstance(ali.embedding, torch.nn.Linear):
            if data.y is None:
                raise InputError(
                    f"model.condition is {self.config.model.condition!r}, and the index of {self.config.data.url} "
                    f"names such labels, but its samples have none: prepare the data again, or set it to 'none'."
                )
            c = condition_vectors(data.y, ali.embedding.in_features)
        if self.labelled is not None:
            x, y = self.labelled.at(self.at.step)
            labelled = LabelledBatch(space.model_from_unit(space.unit_from_stored(x)), y, more[0])
        return TrainBatch(space.model_from_unit(space.unit_from_stored(data.x)), z, epsilon, c, labelled)

    def _do_what_is_due(self, batches: BatchSource, *, last: bool) -> None:
        """Record, show, judge and save, as images seen and the config say; the clock of training stands meanwhile."""
        report, now = self.config.report, self.at.images
        before = now - self.config.data.global_batch_size

        def due(every: int) -> bool:
            return last or schedule.is_due(every, before, now)

        clocks = (report.log_every, report.gallery_every, report.evaluate_every, report.checkpoint_every)
        if not any(map(due, clocks)):
            return
        self._log(batches)
        if due(report.gallery_every) or due(report.evaluate_every):
            self._average_statistics()
        if self.reporter and due(report.gallery_every):
            self.reporter.gallery(now)
        if due(report.evaluate_every):
            metrics = self.reporter.evaluate(self._position()) if self.reporter else {}
            self.at.metrics = metrics or self.at.metrics
            self.context.report({"images": float(now), **metrics})
        if due(report.checkpoint_every):
            self._save()
        self.meter.start(now, batches.wait_seconds)

    def _log(self, batches: BatchSource) -> None:
        """Write a record of the training since the last one, if it is finite. Collective."""
        record = self.meter.take(self.at.images, batches.wait_seconds)
        if not math.isfinite(record["d_loss"] + record["g_loss"]):
            raise TrainingError(
                f"Training diverged before image {self.at.images:,} (d_loss {record['d_loss']:.3g}, g_loss "
                f"{record['g_loss']:.3g}); earlier checkpoints are kept: lower optim.lr_d and optim.lr_g, or raise "
                "objective.r1 and objective.r2, under another --run.name."
            )
        if self.reporter:
            lr_g, lr_d = (float(group["lr"]) for group in self.players.optimizer.param_groups)
            self.reporter.log({"event": "train", **self._position(), **record, "lr_g": lr_g, "lr_d": lr_d})

    def _save(self) -> None:
        """Snapshot this moment as a checkpoint, written in the background. Collective."""
        if not all(bool(p.isfinite().all()) for p in self.players.ali.parameters()):
            raise TrainingError(
                f"A weight is not finite after image {self.at.images:,}; earlier checkpoints are kept: lower "
                "optim.lr_d and optim.lr_g, or raise objective.r1 and objective.r2, under another --run.name."
            )
        check_replicas(self.players.ali, self.world)
        self._average_statistics()
        if self.reporter is None:
            return
        state = CheckpointMetadata(
            step=self.at.step,
            images_seen=self.at.images,
            epoch=self.at.images // self.inputs.train.index.num_samples,
            seconds=self._seconds(),
            restarts=self.at.restarts,
            fingerprint=self.inputs.train.index.fingerprint,
            world_size=self.world.size,
            config=self.config.to_mapping(),
            precision=self.players.precision.state_dict(),
            metrics=self.at.metrics,
            data=self.inputs.train.index.spec.to_mapping(),
        )
        self.checkpoints.save(state, self.players.tensors())
        self.reporter.publish()

    def _must_stop(self) -> bool:
        if self.world.size > 1 and self.at.step % _STOP_POLL:
            return False
        return any_rank(self.context.stop_requested(), self.device, self.world)

    def _done_before(self) -> Record | None:
        """Nothing is left to train; a run killed between its last checkpoint and its summary gets the summary."""
        if self.reporter is None:
            return None
        summary = self.reporter.finished()
        self._say(
            f"Run {self.config.run.name!r} is finished ({self.at.images:,} images): raise --run.images to go on, "
            "or choose another --run.name."
        )
        return summary or self.reporter.finish(self._outcome("finished"), [])

    def _stop(self, batches: BatchSource) -> None:
        if self.at.images > self.meter.images:
            self._log(batches)
        self._save()
        self._finish("stopped", batches)
        raise Stopped(
            f"Stopped on request after {self.at.images:,} of {self.config.run.images:,} images with a checkpoint "
            "saved; run the same command to go on."
        )

    def _finish(self, status: str, batches: BatchSource) -> Record | None:
        """Collective."""
        substituted = gather_texts(batches.substituted, self.world)
        self.checkpoints.wait()  # a run is what its checkpoints are: nothing is finished before they are written
        if self.reporter is None:
            return None
        outcome = self._outcome(status) | self.meter.speed() | {"residency": batches.residency}
        return self.reporter.finish(outcome, substituted)

    def _outcome(self, status: str) -> Record:
        return {
            "status": status,
            **self._position(),
            "world_size": self.world.size,
            "restarts": self.at.restarts,
            "metrics": self.at.metrics,
        }

    def _batches(self) -> BatchSource:
        data, part = self.config.data, self.inputs.train
        return open_batches(
            part.store,
            part.index,
            seed=self.config.run.seed,
            lanes=data.num_lanes(),
            global_batch_size=data.global_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=self.at.step,
            device=self.device,
            residency=data.residency,
            memory_mb=data.memory_mb,
            window_mb=data.window_mb,
            prefetch=data.prefetch,
            bad_samples=data.bad_samples,
        )

    def _rows(self) -> slice:
        """This rank's rows of a global batch: those of its lanes."""
        lanes = self.config.data.num_lanes()
        mine = lanes_of_rank(lanes, self.world.rank, self.world.size)
        each = self.config.data.global_batch_size // lanes
        return slice(mine.start * each, mine.stop * each)

    def _check_batch(self) -> None:
        rows = self.rows.stop - self.rows.start
        if rows < 2 and any(isinstance(m, BatchNorm) for m in self.players.ali.modules()):
            raise InputError(
                f"A worker has {rows} image of each batch (data.global_batch_size is "
                f"{self.config.data.global_batch_size}, workers {self.world.size}), but batch norm needs at least 2: "
                "raise data.global_batch_size, or use fewer workers."
            )

    def _average_statistics(self) -> None:
        share = (self.rows.stop - self.rows.start) / self.config.data.global_batch_size
        average_buffers(self.players.ali, share, self.world)
        if self.players.average is not None:
            average_buffers(self.players.average, share, self.world)

    def _seconds(self) -> float:
        return self.at.seconds + time.monotonic() - self.began

    def _position(self) -> Record:
        return {"step": self.at.step, "images": self.at.images, "seconds": round(self._seconds(), 3)}

    def _say(self, text: str) -> None:
        if self.reporter:
            self.reporter.say(text)
