"""Metrics as the rows of a table: names, values and references as text, by the catalog of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ali_dist.evaluation.catalog import METRICS, MetricInfo, family_of, metric_caveats, reference_keys

# What a run is judged by: its samples, its reconstructions and its codes, each by the first of these that it has.
_ASPECTS = (
    ("frechet", "high_quality", "swd"),
    ("reconstruction_mse", "modes"),
    ("label_kept", "probe_accuracy", "right_mode", "reverse_kl"),
)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One line of a table of metrics, as text.

    Attributes:
        key: The metric.
        title: Its name in words.
        value: Its value, formatted.
        caveat: What limits it, such as few samples; empty where nothing is known to.
        reference: What it is held against, formatted; empty where there is nothing.
        text: What it is; empty for a metric without a row in the catalog.
    """

    key: str
    title: str
    value: str
    caveat: str
    reference: str
    text: str

    @property
    def value_with_caveat(self) -> str:
        """Its value, and what limits it behind."""
        return f"{self.value}, {self.caveat}" if self.caveat else self.value


def metric_rows(metrics: Mapping[str, float]) -> list[MetricRow]:
    """The lines of a table of `metrics`: first those of the catalog in its order, then the others as they come.

    References have no line of their own: they stand beside the metric that is held against them.
    """
    rows = [
        MetricRow(
            key,
            info.title,
            format_metric(key, metrics[key]),
            _join_caveats(key, metrics),
            _format_reference(info, metrics),
            info.text,
        )
        for key, info in METRICS.items()
        if key in metrics
    ]
    hidden = {*METRICS, *reference_keys()}
    others = (key for key in metrics if key not in hidden and not key.endswith("_reference"))
    return rows + [_row_beside_catalog(key, metrics) for key in others]


def headline_rows(metrics: Mapping[str, float]) -> list[MetricRow]:
    """The at most three lines that a run is judged by first."""
    shown = [next((key for key in keys if key in metrics), None) for keys in _ASPECTS]
    return [row for row in metric_rows(metrics) if row.key in shown]


def format_metric(key: str, value: float) -> str:
    """A metric's value in about four digits; a share in percent."""
    if _is_share(key):
        return f"{value * 100:.1f} %"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def _is_share(key: str) -> bool:
    row = METRICS.get(family_of(key) or key)
    return row is not None and row.is_share


def _row_beside_catalog(key: str, metrics: Mapping[str, float]) -> MetricRow:
    """The line of a family's metric, or of one that the catalog does not have."""
    family = family_of(key)
    title = key if family is None else f"{METRICS[family].title}: {key.removeprefix(f'{family}_')}"
    reference = metrics.get(f"{key}_reference")
    beside = "" if family is None or reference is None else format_metric(key, reference)
    return MetricRow(key, title, format_metric(key, metrics[key]), _join_caveats(key, metrics), beside, "")


def _join_caveats(key: str, metrics: Mapping[str, float]) -> str:
    return ", ".join(metric_caveats(key, metrics))


def _format_reference(info: MetricInfo, metrics: Mapping[str, float]) -> str:
    if info.reference is None:
        return info.reference_text
    if info.reference not in metrics:
        return ""
    return f"{format_metric(info.key, metrics[info.reference])} ({info.reference_text})"
