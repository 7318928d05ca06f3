"""How the workers of Ray Train become one process group.

Ray's controller, which runs this, would load PyTorch for Ray's own `TorchConfig`: seconds of every start, in a process
that computes nothing. Here only the workers load it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from ali_dist.launchers.ray_cluster import use_node_interface
from ali_dist.loading_note import collector_paused

_LEAVING_SECONDS = 30.0  # that workers may take to leave the group, where they end without being killed


@dataclass
class GroupConfig(BackendConfig):
    """What connects the workers.

    Attributes:
        backend: As `scale.backend`.
    """

    backend: str = "auto"

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray calls as workers start and end."""
        return _Group

    def to_dict(self) -> dict[str, Any]:
        """For what Ray shows of a run."""
        return {"backend": self.backend}


class _Group(Backend):
    share_cuda_visible_devices = True  # GPUs of a machine reach each other directly

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Connect the workers, over the network that Ray itself uses; one worker alone talks to nobody."""
        if len(worker_group) == 1:
            return
        worker_group.execute(use_node_interface)
        address, port = worker_group.execute_single(0, _find_meeting_point)
        ray.get(worker_group.execute_async(_join_group, backend_config.backend, address, port))

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Let the workers leave the group; one that hangs is not waited for."""
        left = worker_group.execute_async(_leave_group)
        ray.wait(left, num_returns=len(left), timeout=_LEAVING_SECONDS)


def _find_meeting_point() -> tuple[str, int]:
    """The address of rank 0's machine and a free port there."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return address, port


def _join_group(backend: str, address: str, port: int) -> None:
    """Make this worker a rank of the group. Collective."""
    with collector_paused():
        import torch.distributed as dist
        from ray.train.torch import get_device

        from ali_dist.distributed import choose_backend
        from ali_dist.launchers.rank_watch import LIBRARY_TIMEOUT

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    os.environ.update(
        {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(context.get_local_rank()),
            "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
            "NODE_RANK": str(context.get_node_rank()),
        }
    )
    # A rank whose collective fails ends, as one on a CPU does, and does not go on with what it has not received.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    backend = choose_backend(backend, get_device())
    dist.init_process_group(backend, init_method="env://", rank=rank, world_size=size, timeout=LIBRARY_TIMEOUT)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
