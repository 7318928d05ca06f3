"""The model card: README.md of an exported model, as the Hugging Face Hub shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from ali_dist import __version__
from ali_dist.config.wording import format_count
from ali_dist.inference.exported import native_shape
from ali_dist.inference.load import LoadedRun
from ali_dist.names import printable_name
from ali_dist.report.metric_rows import metric_rows

_USE = {
    "encoder.pt2": """import torch

graph = torch.export.load("encoder.pt2").module()  # then mu, log_sigma = graph(x)""",
    "encoder.onnx": """import onnxruntime

session = onnxruntime.InferenceSession("encoder.onnx")  # then session.run(None, {"x": x})""",
}
_MOST_NAMES = 40


def write_card(
    run: LoadedRun,
    metrics: Mapping[str, float],
    *,
    split: str,
    license_name: str,
    files: Sequence[str],
    difference: float | None,
) -> str:
    """The text of the card.

    Args:
        run: The run.
        metrics: What its model measured.
        split: Name of the split that the metrics are of; empty where it is not known.
        license_name: License of the weights, as the Hub names licenses.
        files: Names of the exported files.
        difference: Largest difference between the graphs and the run's networks; None where there are no graphs.
    """
    front = yaml.safe_dump(
        {
            "license": license_name,
            "library_name": "ali_dist",
            "pipeline_tag": "unconditional-image-generation" if run.spec.is_images else "other",
            "tags": ["adversarially-learned-inference", "gan", "image-feature-extraction", "pytorch"],
        },
        sort_keys=False,
    )
    sections = [
        f"---\n{front}---\n\n# {printable_name(run.name)}",
        "Encoder and decoder of a model trained by Adversarially Learned Inference (Dumoulin et al., ICLR 2017, "
        f"arXiv 1606.00704), exported by ali_dist {__version__}.",
        "## The model\n\n" + _model_table(run),
        "## The data\n\n" + _data_table(run),
        "## Metrics\n\n" + _metrics_table(metrics, split),
        "## Use\n\n" + _use(run, files, difference),
        "## Intended use\n\nSampling, reconstructing and interpolating pictures like those of the training data, and "
        "features of such pictures for other models. Samples are no photographs of anything: mark them as generated "
        "where people may take them for real.",
        "## Limits\n\n" + _limits(run),
        f"## License\n\n{_license(license_name)}\n",
    ]
    return "\n\n".join(sections)


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {key} | {_escaped(str(value))} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _model_table(run: LoadedRun) -> str:
    config = run.config
    weights = "averaged" if run.weights == "ema" else "as last updated"
    condition = "none" if config.model.condition == "none" else f"{config.model.condition}, float [N, A]"
    shape = "x".join(map(str, native_shape(run)))
    return _table(
        {
            "samples": f"{'images' if run.spec.is_images else 'points'} {shape}"
            + (f", {run.space.image_size}x{run.space.image_size} inside" if run.space.image_size else ""),
            "latents": f"{run.model.latent_size}, z ~ N(0, I)",
            "encoder": f"{config.model.encoder}, architecture {config.model.architecture}",
            "condition": condition,
            "weights": f"{weights}, after {run.metadata.images_seen:,} images ({run.metadata.step:,} updates)",
        }
    )


def _data_table(run: LoadedRun) -> str:
    names = [printable_name(name) for name in run.spec.label_names]
    kind = "classes" if run.spec.classes else "attributes"
    shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    return _table(
        {
            "stored as": f"{run.spec.dtype} {'x'.join(map(str, run.spec.shape))}",
            "fingerprint of the index": f"`{run.metadata.fingerprint}`",
            "labels": f"{len(names)} {kind}: {shown}" if names else "none",
        }
    )


def _metrics_table(metrics: Mapping[str, float], split: str) -> str:
    if not metrics:
        return "None were measured."
    lines = ["| | | reference |", "|---|---|---|"]
    for row in metric_rows(metrics):
        name = row.title if row.title == row.key else f"{row.title} (`{row.key}`)"
        lines.append("| " + " | ".join(_escaped(cell) for cell in (name, row.value_with_caveat, row.reference)) + " |")
    of = f"Of the split {printable_name(split)!r}.\n\n" if split else ""
    return of + "\n".join(lines)


def _use(run: LoadedRun, files: Sequence[str], difference: float | None) -> str:
    condition = ", condition" if run.model.condition_size else ""
    lines = [
        "```python",
        "import ali_dist",
        "",
        'model = ali_dist.load("this/folder")',
        f"z = model.encode(pictures{condition})",
        f"pictures = model.decode(z{condition})",
        "```",
    ]
    graphs = [use for name, use in _USE.items() if name in files]
    if graphs:
        lines += ["", "Without ali_dist:", "", "```python", "\n\n".join(graphs), "```", ""]
        lines.append(
            "The graphs take and give float32, images in [0, 1] and channels first"
            + (", with the condition as the second input" if condition else "")
            + f"; what they give differs from the run's networks by at most {difference or 0:.1e}."
        )
    return "\n".join(lines)


def _limits(run: LoadedRun) -> str:
    seen = format_count(run.metadata.images_seen, "image")
    return (
        f"It knows what its training data show ({seen} seen, repetitions included) and nothing else: their gaps and "
        "biases are its own. Samples may repeat training images, miss rare kinds of them, or show none at all; "
        "reconstructions keep the meaning of a picture rather than its pixels. Scores and features are no ground for "
        "decisions about people."
    )


def _license(license_name: str) -> str:
    if license_name == "unknown":
        return (
            "Not chosen yet: fill in `license` above before this is published. The license of the training data may "
            "limit the choice. The code of ali_dist is under Apache-2.0."
        )
    return f"Of these weights: {license_name}. The code of ali_dist is under Apache-2.0."
