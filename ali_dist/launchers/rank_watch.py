"""Ends a rank that waits in vain for another one, whichever library it waits in, and says who is missing.

Each rank has a thread that publishes a beat in the ranks' common store: how far it is, and where its training thread
is. Another thread looks whether this rank waits in a collective, for how long nothing has changed on any rank, and who
still beats. Ranks may work by themselves for as long as they like (rank 0 evaluates, draws and saves) while they beat:
the limit counts from the moment on which nobody does. The library's own limit (`LIBRARY_TIMEOUT`) is therefore far
away, and nothing is exchanged between ranks for an update's sake.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from ali_dist.distributed import Activity, World, current_activity
from ali_dist.errors import FAILED, STOPPED
from ali_dist.launchers.signals import end_process
from ali_dist.runs.lease import Holder

LIBRARY_TIMEOUT = timedelta(days=30)
"""The limit of gloo and NCCL themselves: how long rank 0 may evaluate or save at most."""
STARTING_SECONDS = 300.0
"""How long a rank may take until its first beat."""
SILENT_SECONDS = 3.0
"""After so long without a beat, a rank is not waited for any more by one that was asked to stop."""
_LONGEST_PERIOD = 1.0
_STOP_KEY = "stop"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself.

    Attributes:
        number: Counts its beats.
        holder: Its process, as `Holder.to_json` gives it.
        what: What it is doing, in a few words; empty for work of its own.
        excused: Whether the others wait for as long as that takes.
        changes: The rank's clock when it began that, which tells it from the next time.
        stack: Where its training thread is, if it has been there for a while.
    """

    number: int
    holder: str
    what: str
    excused: bool
    changes: float
    stack: str = ""


@dataclass(slots=True)
class _Heard:
    """What is known of another rank, with the times of this one's clock."""

    changed_at: float
    at: float
    beat: Beat | None = None

    def quiet_since(self) -> float:
        """Since when it keeps the others waiting."""
        return self.at if self.beat is None or self.beat.excused else self.changed_at


@dataclass(slots=True, kw_only=True)
class RankWatch:
    """Watches whether this rank waits in vain; `start` and `stop` begin and end it.

    Attributes:
        world: This rank among all ranks.
        store: Where ranks leave beats for each other; the watch uses connections of its own.
        timeout: Seconds that a rank may wait in a collective (`scale.collective_timeout`).
        stop_requested: Whether this rank was asked to save and stop.
        request_stop: Called when another rank was.
        end: Ends the process, given sentence and exit code.
        kill: Ends another process of this machine.
    """

    world: World
    store: Store
    timeout: float
    stop_requested: Callable[[], bool] = lambda: False
    request_stop: Callable[[], None] = lambda: None
    end: Callable[[str, int], None] = end_process
    kill: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL)
    _ended: threading.Event = field(default_factory=threading.Event)
    _heard: dict[int, _Heard] = field(default_factory=dict)
    _exchanged_at: float = 0.0
    _thread_id: int = 0
    _holder: str = ""

    @property
    def period(self) -> float:
        """Seconds between two beats."""
        return min(_LONGEST_PERIOD, self.timeout / 10)

    def start(self) -> None:
        """Begin to beat and to watch; the calling thread is the one that is watched.

        The first beat is there when this returns: a rank that hangs in the first collective has been heard of.
        """
        self._thread_id = threading.get_ident()
        self._holder = Holder.of_this_process().to_json().decode()
        now = self._exchanged_at = time.monotonic()
        others = set(range(self.world.size)) - {self.world.rank}
        self._heard = {rank: _Heard(now + STARTING_SECONDS, now + STARTING_SECONDS) for rank in others}
        with contextlib.suppress(dist.DistError, RuntimeError, OSError):  # the other thread finds that out, too
            self._open_store().set(f"{self.world.rank}", self._make_beat(0, current_activity()))
        for work in (self._exchange_beats, self._judge):
            threading.Thread(target=work, name=f"ali{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """End it. Its threads end by themselves, as one of them may be waiting for a store that is gone."""
        self._ended.set()

    # ---- Beats: but for the first one, by the only thread that talks to the store -----------------------------------

    def _exchange_beats(self) -> None:
        with contextlib.suppress(dist.DistError, RuntimeError, OSError):  # the store is gone: nobody is heard any more
            store = self._open_store()
            number = 1
            has_passed_on = False
            while not self._ended.wait(self.period):
                activity = current_activity()
                store.set(f"{self.world.rank}", self._make_beat(number, activity))
                number += 1
                if self.stop_requested() and not has_passed_on:
                    store.set(_STOP_KEY, "")
                    has_passed_on = True
                elif not has_passed_on and store.check([_STOP_KEY]):
                    self.request_stop()
                if activity.waits and time.monotonic() - activity.since > self.period:
                    self._listen(store, list(self._heard))
                elif unheard := [rank for rank, heard in self._heard.items() if heard.beat is None]:
                    self._listen(store, unheard)  # once, so that it is known which process a rank is when it hangs
                self._exchanged_at = time.monotonic()

    def _open_store(self) -> Store:
        return PrefixStore("ali-watch", self.store.clone())

    def _make_beat(self, number: int, activity: Activity) -> str:
        is_long = bool(activity.what) and time.monotonic() - activity.since > self.timeout / 4
        beat = {
            "number": number,
            "holder": self._holder,
            "what": activity.what,
            "excused": not activity.what,
            "changes": activity.since,
            "stack": self._describe_stack() if is_long else "",
        }
        return json.dumps(beat)

    def _listen(self, store: Store, ranks: Sequence[int]) -> None:
        """Read the beats of other ranks; of all of them, only a rank that waits does."""
        there = [rank for rank in ranks if self._heard[rank].beat is not None or store.check([str(rank)])]
        if not there:
            return
        for rank, content in zip(there, store.multi_get([str(rank) for rank in there]), strict=True):
            beat = Beat(**json.loads(content))
            heard = self._heard[rank]
            now = time.monotonic()
            before = heard.beat
            if before is None or before.number != beat.number:
                changed = before is None or (before.what, before.changes) != (beat.what, beat.changes)
                self._heard[rank] = _Heard(now if changed else heard.changed_at, now, beat)

    # ---- The judge: never waits for anything but the clock ---------------------------------------------------------

    def _judge(self) -> None:
        last = time.monotonic()
        awake_since = last
        asked_at: float | None = None
        while not self._ended.wait(self.period):
            now = time.monotonic()
            if now - last > 5 * self.period + 1:  # this process itself was stopped, or the machine slept
                awake_since = now
            last = now
            if asked_at is None and self.stop_requested():
                asked_at = now
            activity = current_activity()
            if not activity.waits:
                continue
            # Where the store is silent, no beat comes from anybody, not even the first one of a rank.
            heard = [each.quiet_since() for each in self._heard.values()]
            quiet = max(activity.since, awake_since, *([self._exchanged_at] if self._is_store_silent(now) else heard))
            if now - quiet > self.timeout * activity.patience:
                self._end(activity, now, FAILED)
            elif asked_at is not None and now - max(activity.since, asked_at) > SILENT_SECONDS and self._silent(now):
                self._end(activity, now, STOPPED)

    def _is_store_silent(self, now: float) -> bool:
        """Whether the store is gone, which rank 0 keeps."""
        return now - self._exchanged_at > self.timeout / 2

    def _silent(self, now: float) -> list[int]:
        """The ranks that do not beat any more, or never have."""
        limit = min(SILENT_SECONDS, self.timeout / 2)
        return [rank for rank, heard in sorted(self._heard.items()) if now - heard.at > limit]

    def _end(self, activity: Activity, now: float, code: int) -> None:
        """End this rank, and ranks of this machine that do not answer: nothing else would, or only after a while."""
        missing = self._silent(now)
        if self._is_store_silent(now):
            missing = [rank for rank in self._heard if rank == 0]
        sentence = self._describe(activity, now, missing, code)
        for rank in missing:
            self._end_silent(rank)
        self._ended.set()
        self.end(sentence, code)

    def _describe(self, activity: Activity, now: float, missing: list[int], code: int) -> str:
        seconds = now - activity.since
        why = (
            f"longer than scale.collective_timeout ({self.timeout:g} s) allows"
            if code == FAILED
            else "and was asked to stop"
        )
        who = " and ".join(self._describe_missing(rank, now) for rank in missing)
        who = who or "all ranks answer, so that the stacks below show which of them hangs"
        lines = [
            f"Rank {self.world.rank} waited {seconds:.0f} s for the other ranks in {activity.what}, {why}: {who}; run "
            "the same command to go on from the newest checkpoint.",
            f"Rank {self.world.rank} is at:\n{self._describe_stack()}",
        ]
        for rank, heard in sorted(self._heard.items()):
            if heard.beat is not None and heard.beat.stack:
                lines.append(f"Rank {rank} is at:\n{heard.beat.stack}")
        return "\n".join(lines)

    def _describe_missing(self, rank: int, now: float) -> str:
        heard = self._heard[rank]
        if heard.beat is None:
            return f"rank {rank} has never answered"
        holder = Holder.parse(heard.beat.holder.encode())
        where = f" (process {holder.pid} on {holder.host.partition(' ')[0]})" if holder is not None else ""
        doing = f", last seen in {heard.beat.what}" if heard.beat.what else ""
        return f"rank {rank}{where} has not answered for {now - heard.at:.0f} s{doing}"

    def _end_silent(self, rank: int) -> None:
        beat = self._heard[rank].beat
        holder = Holder.parse(beat.holder.encode()) if beat is not None else None
        if holder is not None and holder.is_here:
            with contextlib.suppress(OSError):
                self.kill(holder.pid)

    def _describe_stack(self) -> str:
        """Where the training thread is: calls of our own files, and the innermost call last."""
        frame = sys._current_frames().get(self._thread_id)
        if frame is None:
            return "an unknown place"
        calls = traceback.extract_stack(frame)
        own = [call for call in calls[:-1] if "site-packages" not in call.filename and call.filename[:1] != "<"]
        return "".join(traceback.format_list([*own, calls[-1]])).rstrip()
