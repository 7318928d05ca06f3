"""The most that this machine computes and moves: one large matrix product, and one large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SIDES = {"cpu": 2048, "cuda": 8192}
_SIDE_OF_BF16 = {"cpu": 512, "cuda": 8192}  # many CPUs compute it a hundred times as slowly
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}  # more than any cache holds
_CALLS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What the machine reached in one large operation.

    Attributes:
        products: Operations a second of a large matrix product, by fp32, bf16 and, on a GPU, tf32.
        bytes_per_second: Of a large copy, read and written.
    """

    products: dict[str, float]
    bytes_per_second: float

    def operations_per_second(self, precision: str) -> float:
        """The fastest product that an update of this precision may use; its numbers in fp32 may be products in TF32."""
        names = ("bf16", "fp32") if precision == "bf16" else ("fp32", "tf32")
        return max(self.products.get(name, 0.0) for name in names)

    def best_with(self, other: Roof) -> Roof:
        """The higher of two measurements in everything: what else the machine does can only lower one."""
        return Roof(
            products={name: max(rate, other.products[name]) for name, rate in self.products.items()},
            bytes_per_second=max(self.bytes_per_second, other.bytes_per_second),
        )


def measure_roof(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Roof:
    """Measure it now, with torch's present number of threads: a second or two on a CPU.

    Args:
        device: What to measure.
        clock: Gives seconds.
    """
    products = {
        "fp32": _measure_product(_SIDES[device.type], torch.float32, device, clock),
        "bf16": _measure_product(_SIDE_OF_BF16[device.type], torch.bfloat16, device, clock),
    }
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:  # in which convolutions of fp32 numbers are computed
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        products["tf32"] = _measure_product(_SIDES[device.type], torch.float32, device, clock)
        torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.randint(0, 256, (_COPIED_BYTES[device.type],), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = _least_seconds(lambda: target.copy_(source), device, clock)
    return Roof(products=products, bytes_per_second=2 * source.nbytes / seconds)


def _measure_product(side: int, dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return 2 * side**3 / _least_seconds(lambda: torch.matmul(a, b, out=product), device, clock)


def _least_seconds(call: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """The shortest time of a call after a first one."""
    call()
    times = []
    for _ in range(_CALLS):
        _wait_for(device)
        began = clock()
        call()
        _wait_for(device)
        times.append(clock() - began)
    return min(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
