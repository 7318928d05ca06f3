"""python -m ali_dist.evaluate: measure a trained model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali_dist.cli import (
    CommandParser,
    device_from_arguments,
    make_run_parser,
    parse_comma_list,
    parse_path,
    storage_from_arguments,
    whole_number_type,
)
from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError, exit_code
from ali_dist.evaluation.catalog import CAVEAT_KEYS, METRICS, is_known_key, metric_caveats, metric_keys
from ali_dist.inference.evaluations import EVALUATIONS, REQUIRED, Estimates
from ali_dist.launchers.signals import interrupt_on_sigterm
from ali_dist.process_end import run_to_the_end
from ali_dist.report.tables import estimates_to_json, print_table
from ali_dist.storage.local import write_file

if TYPE_CHECKING:
    from ali_dist.inference.evaluation_request import EvaluationRequest

_DESCRIPTION = """\
Measure a trained model: a table on stdout, and JSON with --json.

With --seeds K, everything that is drawn (samples, the classifier's training, labels) is drawn K times, and each metric
is a mean with its 95 % interval."""
_EPILOG = """\
what:
{evaluations}

examples:
  python -m ali_dist.evaluate digits --seeds 5 --json digits.json
  python -m ali_dist.evaluate s3://bucket/runs/svhn --what svm --workers 8"""
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _EvaluationOption:
    """An option of some of the evaluations, as their dataclasses describe it.

    Attributes:
        field: Its field, of the first evaluation that has it.
        type: Parses its value.
        evaluations: Names of the evaluations that have it.
    """

    field: dataclasses.Field[Any]
    type: Callable[[str], Any]
    evaluations: list[str]

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return f"--{self.field.name.replace('_', '-')}"

    @property
    def default(self) -> Any:
        """Its value where it is not given."""
        return None if self.field.default is REQUIRED else self.field.default

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Add it to a parser's group."""
        metadata = self.field.metadata
        help_text = f"{', '.join(self.evaluations)}: {metadata['help']}"
        group.add_argument(self.name, type=self.type, default=self.default, metavar=metadata["metavar"], help=help_text)


def _evaluation_options() -> list[_EvaluationOption]:
    """Collect the options of all evaluations, each once."""
    options: dict[str, _EvaluationOption] = {}
    for evaluation_name, evaluation in EVALUATIONS.items():
        hints = typing.get_type_hints(evaluation.options)
        for field in dataclasses.fields(evaluation.options):
            if field.name in options:
                options[field.name].evaluations.append(evaluation_name)
            else:
                is_text = hints[field.name] is str
                value_type = str if is_text else whole_number_type(field.metadata["least"], field.metadata["most"])
                options[field.name] = _EvaluationOption(field, value_type, [evaluation_name])
    return list(options.values())


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    summaries = "\n".join(f"  {name:<8} {evaluation.summary}" for name, evaluation in EVALUATIONS.items())
    parser = make_run_parser("evaluate", _DESCRIPTION, _EPILOG.format(evaluations=summaries))
    what = parser.add_argument_group("what")
    default = next(iter(EVALUATIONS))
    what.add_argument("--what", choices=tuple(EVALUATIONS), default=default, help=f"default: {default}; see below")
    what.add_argument(
        "--seed", type=whole_number_type(0, _LARGEST_SEED), default=0, help="seed of the first evaluation (default 0)"
    )
    what.add_argument(
        "--metrics",
        type=parse_comma_list,
        metavar="A,B",
        help="show these alone, by the names they have in summary.json",
    )
    parser.suggestions["metrics"] = metric_keys()
    own_options = parser.add_argument_group("options of single evaluations")
    for option in _evaluation_options():
        option.add_to(own_options)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="to measure on; default: the run's holdout split")
    data.add_argument(
        "--memory-mb",
        type=whole_number_type(1),
        help="megabytes a split may take; of a larger one a sample is used; default: as in the run",
    )
    parser.add_argument_group("files").add_argument(
        "--json", type=parse_path, metavar="FILE", help="also write the results as JSON to FILE"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    with interrupt_on_sigterm():
        return exit_code("ali_dist.evaluate", lambda: _run_command(make_parser().parse_args(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    evaluation = EVALUATIONS[arguments.what]
    options = _read_evaluation_options(arguments)
    _check_metric_names(arguments.metrics or ())
    # Not above: --help and refusals come at once without torch.
    from ali_dist.inference.evaluation_request import EvaluationRequest
    from ali_dist.inference.load import load_run
    from ali_dist.inference.samples import open_samples_for, say_resize
    from ali_dist.runs.datasets import holdout_names

    device = device_from_arguments(arguments)
    storage = storage_from_arguments(arguments)
    run = load_run(arguments.run, storage, weights=arguments.weights, device=device)
    data = run.config.data
    splits = [arguments.split] if arguments.split else holdout_names(data)
    request = EvaluationRequest(
        run,
        open_train=lambda: open_samples_for(run, arguments.data, [data.split], storage),
        holdout=open_samples_for(run, arguments.data, splits, storage),
        seed=arguments.seed,
        memory_mb=arguments.memory_mb or data.memory_mb,
        device=device,
        open_split=lambda names: open_samples_for(run, arguments.data, names, storage),
    )
    say_resize(run, request.holdout)
    estimates = _choose_metrics(evaluation.evaluate(request, options), arguments.metrics)
    _print_heading(request, arguments.seeds)
    print_table(estimates)
    if request.notes:
        print("", *request.notes, sep="\n")
    if request.listing:
        print("", *request.listing, sep="\n")
    if arguments.json:
        _write_json(arguments, request, estimates)


def _read_evaluation_options(arguments: argparse.Namespace) -> Any:
    """The options of the chosen evaluation.

    Raises:
        InputError: An option was given that would do nothing, or one is missing.
    """
    values = {}
    for option in _evaluation_options():
        value = getattr(arguments, option.field.name)
        if arguments.what in option.evaluations:
            if value is None and option.field.default is REQUIRED:
                raise InputError(f"--what {arguments.what} needs {option.name}; see --help.")
            values[option.field.name] = value
        elif value != option.default:
            raise InputError(
                f"{option.name} applies to --what {' or '.join(option.evaluations)}, not to {arguments.what}: "
                "leave it out."
            )
    return EVALUATIONS[arguments.what].options(**values)


def _check_metric_names(names: tuple[str, ...]) -> None:
    """Refuse misspelt metrics before anything is computed."""
    for name in names:
        if not is_known_key(name):
            hint = did_you_mean(name, metric_keys()).removesuffix("?")
            raise InputError(f"--metrics: there is no metric {name!r}{hint}; metrics: {', '.join(metric_keys())}.")


def _choose_metrics(estimates: Estimates, names: tuple[str, ...] | None) -> Estimates:
    """Keep the metrics that were asked for, their references, and what limits them; None: all."""
    if names is None:
        return estimates
    for name in names:
        if name not in estimates:
            raise InputError(f"--metrics: {name!r} does not apply to this run, which has {', '.join(estimates)}.")
    beside = {METRICS[name].reference for name in names if name in METRICS}
    if any(metric_caveats(name, {key: estimate.mean for key, estimate in estimates.items()}) for name in names):
        beside.update(CAVEAT_KEYS)
    return {name: estimate for name, estimate in estimates.items() if name in names or name in beside}


def _print_heading(request: EvaluationRequest, seeds: int) -> None:
    run = request.run
    heading = f"{run.name} at image {run.metadata.images_seen:,} ({run.weights} weights) on {request.holdout.store.url}"
    print(f"{heading}, {seeds} seeds" if seeds > 1 else heading, end="\n\n")


def _write_json(arguments: argparse.Namespace, request: EvaluationRequest, estimates: Estimates) -> None:
    run = request.run
    content = {
        "run": run.name,
        "url": run.store.url,
        "step": run.metadata.step,
        "images": run.metadata.images_seen,
        "weights": run.weights,
        "what": arguments.what,
        "data": request.holdout.store.url,
        "fingerprint": request.holdout.index.fingerprint,
        **({"samples": request.samples} if request.samples else {}),
        **({"notes": request.notes} if request.notes else {}),
        "seeds": list(range(arguments.seed, arguments.seed + arguments.seeds)),
        **estimates_to_json(estimates),
        **request.details,
    }
    path: Path = arguments.json
    write_file(path, f"{json.dumps(content, indent=1)}\n".encode())


if __name__ == "__main__":
    run_to_the_end(main)
