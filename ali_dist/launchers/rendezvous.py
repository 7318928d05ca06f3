"""How the ranks of one start find each other in a store that an earlier start of theirs has used, too.

torchrun keeps its store when it restarts the processes, with the addresses of the former ones in it, which a process
that comes first would take for those of the new ones. Each start therefore gets a part of the store of its own.
"""

from __future__ import annotations

import json
import secrets
import time

from torch.distributed.distributed_c10d import PrefixStore, Store

from ali_dist.distributed import World
from ali_dist.errors import TrainingError

_POLL_SECONDS = 0.05


def open_part_of_start(store: Store, world: World, timeout: float) -> PrefixStore:
    """The part of the store that belongs to this start of all ranks. Collective.

    Every other rank writes a random name of its own until rank 0 has read it; rank 0 says which names it has read, and
    what the part is called. What an earlier start has left has other names.

    Args:
        store: The store of the ranks.
        world: This rank among them.
        timeout: Seconds to wait for the others.

    Raises:
        TrainingError: Another rank has not come.
    """
    meeting = PrefixStore("ali-meeting", store)
    deadline = time.monotonic() + timeout
    if world.is_main:
        return PrefixStore(_gather(meeting, world, deadline), store)
    return PrefixStore(_wait_to_be_read(meeting, world, deadline), store)


def _gather(meeting: Store, world: World, deadline: float) -> str:
    """Read the others' names, and tell them, until all of them know; the name of the part."""
    part = f"ali-{secrets.token_hex(8)}"
    said: dict[str, str] = {}
    meeting.set("read", json.dumps({"part": part, "names": said}))
    others = [str(rank) for rank in range(1, world.size)]
    while missing := [rank for rank in others if _read(meeting, f"known-{rank}") != part]:
        names = {rank: name for rank in others if (name := _read(meeting, f"name-{rank}"))}
        if names != said:
            said = names
            meeting.set("read", json.dumps({"part": part, "names": said}))
        _pause(deadline, f"rank 0 has not heard of rank {', '.join(missing)}")
    return part


def _wait_to_be_read(meeting: Store, world: World, deadline: float) -> str:
    """Write this rank's name until rank 0 has read it; the name of the part."""
    name = secrets.token_hex(8)
    meeting.set(f"name-{world.rank}", name)
    while True:
        content = json.loads(_read(meeting, "read") or '{"names": {}}')
        if content["names"].get(str(world.rank)) == name:
            part: str = content["part"]
            meeting.set(f"known-{world.rank}", part)
            return part
        _pause(deadline, f"rank {world.rank} has not heard of rank 0")


def _read(store: Store, key: str) -> str:
    """What stands there; empty if nothing does."""
    return store.get(key).decode() if store.check([key]) else ""


def _pause(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise TrainingError(
            f"Not all ranks have started ({what}): see what the others say, and run the same command again."
        )
    time.sleep(_POLL_SECONDS)
