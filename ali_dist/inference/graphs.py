"""Encoder and decoder as graphs that need none of our code: PyTorch's .pt2 (torch.export) and ONNX.

Both take and give any number of samples. The encoder takes images float32 [N, C, H, W] in [0, 1] at the size that
users see, and gives mu (and log_sigma, where it is Gaussian), [N, n_z]; the decoder goes the other way. What the
networks need beside that, such as another range or size, is part of the graphs. Conditional models take a second input,
`condition` [N, A].
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ali_dist.errors import InputError, TrainingError
from ali_dist.inference.choices import GRAPH_SUFFIXES, GraphFormat
from ali_dist.inference.exported import native_shape
from ali_dist.inference.load import LoadedRun

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_DIFFERENCE = 1e-4
"""Largest difference of a graph's output from that of the run's networks."""
_ROWS = 3  # of the example that a graph is recorded with; 1 would be taken for a constant


class EncoderGraph(nn.Module):
    """x [N, C, H, W] in [0, 1] (or points) -> mu, and log sigma where there is one, [N, n_z] each."""

    takes = "x"
    gives: tuple[str, ...] = ("mu", "log_sigma")

    def __init__(self, run: LoadedRun) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({n: m for n, m in run.model.networks.items() if n in ("encoder", "embedding")})
        self._run = run

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        mu, log_sigma = self._run.model.encode(self._run.space.unit_from_stored(x), condition)
        return (mu,) if log_sigma is None else (mu, log_sigma)


class FeatureGraph(EncoderGraph):
    """x [N, C, H, W] in [0, 1] (or points) -> mu beside the encoder's last hidden layer, [N, F]."""

    gives = ("features",)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self._run.model.features(self._run.space.unit_from_stored(x), condition),)


class DecoderGraph(nn.Module):
    """z [N, n_z] -> x [N, C, H, W] (in [0, 1]), or points."""

    takes, gives = "z", ("x",)

    def __init__(self, run: LoadedRun) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({n: m for n, m in run.model.networks.items() if n in ("decoder", "embedding")})
        self._run = run

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        x = self._run.space.native_from_unit(self._run.model.decode(z, condition))
        return (x.clamp(0, 1) if self._run.spec.is_images else x,)


def check_format(run: LoadedRun, graph_format: GraphFormat) -> None:
    """Refuse what cannot be done, before anything is written.

    Raises:
        InputError: A package is missing, or the encoder draws numbers of its own.
    """
    option = f"--format {graph_format}"
    check_encoder(run, option, "export it as safetensors")
    if graph_format == "onnx":
        check_onnx_packages(option, "choose --format torch")


def check_encoder(run: LoadedRun, option: str, otherwise: str) -> None:
    """Refuse an encoder that draws numbers of its own: no graph of it gives what the run gives.

    Args:
        run: The run.
        option: What asked for graphs, for the error.
        otherwise: What can be done instead, for the error.

    Raises:
        InputError: It is such an encoder.
    """
    if run.config.model.encoder == "implicit":
        raise InputError(
            f"{option} is for encoders with a closed form, but model.encoder of run {run.name!r} is 'implicit': "
            f"{otherwise}."
        )


def check_onnx_packages(option: str, otherwise: str) -> None:
    """Refuse to write ONNX where a package for it is missing; arguments are those of `check_encoder`.

    Raises:
        InputError: One is missing.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{option} needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed: "
            f"run `pip install 'ali-dist[onnx]'`, or {otherwise}."
        )


def write_graphs(
    folder: Path, run: LoadedRun, graph_format: GraphFormat, encoder: type[EncoderGraph] = EncoderGraph
) -> tuple[list[str], float]:
    """Record encoder and decoder, write them, read them again, and compare what they give with the run's networks.

    Args:
        folder: Where the files go; it exists.
        run: The run, on the CPU.
        graph_format: Which form they take.
        encoder: What is recorded as the encoder.

    Returns:
        Names of the files, and the largest difference of any output.
    """
    draws = torch.Generator().manual_seed(0)
    inputs = {
        "encoder": torch.rand(_ROWS + 2, *native_shape(run), generator=draws),
        "decoder": torch.randn(_ROWS + 2, run.model.latent_size, generator=draws),
    }
    size = run.model.condition_size
    condition = [torch.eye(size)[torch.arange(_ROWS + 2) % size]] if size else []
    names, largest = [], 0.0
    for graph in (encoder(run), DecoderGraph(run)):
        name = "encoder" if isinstance(graph, EncoderGraph) else "decoder"
        path = folder / f"{name}{GRAPH_SUFFIXES[graph_format]}"
        given = [inputs[name], *condition]
        graph.eval()
        with torch.no_grad():  # before it is recorded: what is computed once and kept must not be a recorder's stand-in
            expected = graph(*given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own; what matters is compared below
            _WRITERS[graph_format](path, graph, [part[:_ROWS] for part in given])
        outputs = READERS[graph_format](path)(given)
        largest = max(largest, *(_difference(a, b) for a, b in zip(outputs, expected, strict=True)))
        names.append(path.name)
    return names, largest


def check_difference(run: LoadedRun, graph_format: GraphFormat, difference: float, otherwise: str) -> None:
    """Refuse graphs that do not give what the run's networks give.

    Args:
        run: The run.
        graph_format: Which form the graphs have.
        difference: As `write_graphs` found it.
        otherwise: What can be done instead, for the error.

    Raises:
        TrainingError: It is too large.
    """
    if not difference <= MOST_DIFFERENCE:
        raise TrainingError(
            f"The graphs of format {graph_format} differ by {difference:.1e} from the networks of run {run.name!r}, "
            f"which is more than {MOST_DIFFERENCE:g}, so nothing was written: {otherwise}."
        )


def _difference(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).abs().max())


def _record(graph: nn.Module, given: Sequence[Tensor]) -> torch.export.ExportedProgram:
    rows = tuple({0: torch.export.Dim.DYNAMIC} for _ in given)
    with torch.no_grad():
        program = torch.export.export(graph, tuple(given), dynamic_shapes=rows)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names the folders of this machine, and would be written, too
    return program


def _write_torch(path: Path, graph: nn.Module, given: Sequence[Tensor]) -> None:
    archive = io.BytesIO()  # on a full disk, torch's own writer ends the process
    torch.export.save(_record(graph, given), archive)
    path.write_bytes(archive.getbuffer())


def _write_onnx(path: Path, graph: EncoderGraph | DecoderGraph, given: Sequence[Tensor]) -> None:
    torch.onnx.export(
        _record(graph, given),
        (),
        path,
        input_names=[graph.takes, "condition"][: len(given)],
        output_names=graph.gives[: len(graph(*given))],
        external_data=False,
        verbose=False,
    )


def _read_torch(path: Path) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    graph = torch.export.load(path).module()
    return lambda given: [output.detach() for output in graph(*given)]


def _read_onnx(path: Path) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(given: Sequence[Tensor]) -> Sequence[Tensor]:
        outputs = session.run(None, {name: part.numpy() for name, part in zip(names, given, strict=True)})
        return [torch.from_numpy(np.array(output)) for output in outputs]

    return call


_WRITERS: dict[GraphFormat, Callable[[Path, EncoderGraph | DecoderGraph, Sequence[Tensor]], None]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
}
READERS: dict[GraphFormat, Callable[[Path], Callable[[Sequence[Tensor]], Any]]] = {
    "torch": _read_torch,
    "onnx": _read_onnx,
}
"""Open a written graph as a function of its inputs, by format."""
