"""Which recipe learns: `python -m tests.bench.recipes --data FOLDER --out FOLDER [--variants FILE.json|A,B] [options]`.

It trains variants of one recipe through the product's own loop, each in a process of its own, and compares their
metrics in a table. Variants are built in (`--list`), or a JSON file maps names to settings, the most valuable first. A
variant whose settings are refused or that diverges is recorded with the reason, and the others go on.

FOLDER/results.jsonl gets a line when a trial is over, so that an interruption loses only those in progress; the same
command goes on with what is missing. Beside it are pictures of every trial, and in `trials` what each of them said.
No trial begins that would outlast --budget, judged by the longest so far, and what still runs then is cut off.
It needs what tests.gpu.check needs: no Ray, boto3, rich, webdataset or torchvision.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from ali_dist.cli import CommandParser, number_type, parse_comma_list, parse_path, whole_number_type
from ali_dist.data.shards.index import Index, load_index
from ali_dist.errors import InputError, exit_code
from ali_dist.preset_option import load_preset_option
from ali_dist.storage import open_store
from tests.bench.recipes.process import TrialProcess
from tests.bench.recipes.queue import run_queue
from tests.bench.recipes.table import format_markdown, format_text
from tests.bench.recipes.trial import DIVERGED, FINISHED, Result
from tests.bench.recipes.variants import BASE, Settings, choose_variants
from tests.helpers.documents import replace_marked

CUT_OFF, NOT_BEGUN = "cut off", "not begun"
RECORDS = 20  # lines of losses in a trial: it ends within a twentieth after it has diverged


@dataclass(frozen=True)
class Trial:
    """A variant with a seed.

    Attributes:
        name: Of the variant.
        seed: Of the run.
        changes: What the variant changes.
        settings: What decides the result.
    """

    name: str
    seed: int
    changes: Settings
    settings: Settings

    @property
    def label(self) -> str:
        """Names its files."""
        return f"{self.name}-{self.seed}"

    def describe(self, data: str) -> Result:
        """What it is, as its line has it; `data` is the fingerprint of the data."""
        return {
            "name": self.name,
            "seed": self.seed,
            "changes": self.changes,
            "settings": self.settings,
            "images": self.settings["run.images"],
            "data": data,
        }


def plan_trials(
    variants: Mapping[str, Settings], base: Settings, overrides: Settings, seeds: Sequence[int]
) -> list[Trial]:
    """Plan all variants with the first seed, then all with the next one."""
    return [
        Trial(name, seed, dict(changes), {**base, **changes, **overrides, "run.seed": seed})
        for seed in seeds
        for name, changes in variants.items()
    ]


def read_results(file: Path) -> list[Result]:
    """Read the lines of results; one that was cut off by a crash is left out."""
    results = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            results.append(json.loads(line))
        except ValueError:
            continue
    return results


def select_missing(trials: Sequence[Trial], results: Sequence[Result], data: str) -> list[Trial]:
    """Leave out what has finished or diverged before, with the same settings on the same data."""

    def identify(result: Result) -> str:
        decisive = {key: result[key] for key in ("name", "seed", "settings", "data")}
        return json.dumps(decisive, sort_keys=True)

    known = {identify(result) for result in results if result["status"] in (FINISHED, DIVERGED)}
    return [trial for trial in trials if identify(trial.describe(data)) not in known]


def run_trials(
    trials: Sequence[Trial],
    *,
    data: str,
    out: Path,
    places: Settings,
    jobs: int,
    budget: float,
    say: Callable[[str], None],
) -> list[Result]:
    """Run trials, and append a line to results.jsonl whenever one is over.

    Args:
        trials: In this order.
        data: Fingerprint of the data.
        out: Folder of the results.
        places: Settings that do not decide the result.
        jobs: Trials at a time.
        budget: Seconds for all of them.
        say: Takes lines for the user.

    Returns:
        What found no time, as results that are in no file.
    """
    not_begun = []
    starters = [
        partial(TrialProcess, trial.label, {**trial.settings, **places, "run.name": trial.label}, out)
        for trial in trials
    ]
    for ended in run_queue(starters, jobs=jobs, budget=budget):
        trial = trials[ended.number]
        description = trial.describe(data) | {"jobs": jobs, "date": time.strftime("%Y-%m-%d")}
        if not ended.has_begun:
            not_begun.append(description | {"status": NOT_BEGUN, "reason": "the budget leaves no time for it"})
            continue
        over = {"status": CUT_OFF, "reason": f"the budget of {budget:.0f} s was over"}
        result = description | (ended.result or over)
        with (out / "results.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result) + "\n")
        say(_describe_outcome(trial, result))
    return not_begun


def _describe_outcome(trial: Trial, result: Result) -> str:
    if result["status"] != FINISHED:
        return f"{trial.label}: {result['status']} ({result['reason']})"
    distance = result["metrics"].get("frechet", math.nan)
    return (
        f"{trial.label}: Fréchet distance {distance:.4g}, {result['images_per_second']:,.0f} images/s, "
        f"{result['seconds']:.0f} s of training, {result['evaluation_seconds']:.0f} s of evaluation"
    )


def _make_parser() -> CommandParser:
    parser = CommandParser("tests.bench.recipes", (__doc__ or "").strip())
    parser.add_argument("--data", metavar="FOLDER", help="prepared images with the splits train and test")
    parser.add_argument("--out", type=parse_path, default=Path("runs/recipes"), help="folder (runs/recipes)")
    parser.add_argument("--variants", metavar="FILE.json|A,B", help="what to train (default: all that --list shows)")
    parser.add_argument("--list", action="store_true", help="show the variants that are built in, and stop")
    parser.add_argument("--preset", metavar="NAME|FILE", help="what variants change (default: the base of --list)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every variant")
    parser.add_argument("--images", type=whole_number_type(1), default=64_000, help="images to train with (64000)")
    parser.add_argument("--seeds", type=parse_comma_list, default=("0",), metavar="N,...", help="seeds (0)")
    parser.add_argument("--jobs", type=whole_number_type(1), default=1, help="trials at a time (1)")
    parser.add_argument("--threads", type=whole_number_type(1), help="CPU threads of a trial (the cores shared out)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--budget", type=number_type(above=0), default=math.inf, metavar="SECONDS", help="for everything (no limit)"
    )
    parser.add_argument(
        "--evaluate-on", type=whole_number_type(2), default=2_000, metavar="N", help="decoder samples measured (2000)"
    )
    parser.add_argument("--only-table", action="store_true", help="train nothing: show what --out has")
    parser.add_argument("--table", type=parse_path, metavar="FILE.md", help="write the table between its two markers")
    parser.add_argument(
        "--marker", default="recipes", help="name in the markers '<!-- NAME: begin -->' and end (recipes)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    if_interrupted = "Interrupted; what is over is in results.jsonl, and the same command goes on."
    return exit_code("tests.bench.recipes", lambda: _run_command(_make_parser().parse_args(arguments)), if_interrupted)


def _run_command(options: argparse.Namespace) -> None:
    if options.list:
        _list_variants()
        return
    if options.table is not None:  # found out before the training, not behind it
        _write_table(options, None)
    results_file = options.out / "results.jsonl"
    not_begun: list[Result] = []
    if not options.only_table:
        not_begun = _train_missing(options, results_file)
    results = [*not_begun, *read_results(results_file)]
    if not results:
        raise InputError(f"{results_file} has no results: train variants first, without --only-table.")
    print(format_text(results))
    if options.table is not None:
        _write_table(options, results)


def _list_variants() -> None:
    print(f"{'base':<28}{json.dumps(BASE)}")
    for name, changes in choose_variants(None).items():
        if changes:
            print(f"{name:<28}{json.dumps(changes)}")


def _load_base(options: argparse.Namespace, overrides: Settings) -> Settings:
    """The settings of `--preset`; those of one that is sized by its pictures follow from these and `overrides`."""
    places = {"data.url": str(options.data), "run.dir": str(options.out), "run.name": "recipes"}
    return load_preset_option(options.preset, {**overrides, **places}).settings


def _train_missing(options: argparse.Namespace, results_file: Path) -> list[Result]:
    began = time.monotonic()
    variants = choose_variants(options.variants)
    overrides: Settings = {"run.images": options.images, "report.evaluation_samples": options.evaluate_on}
    overrides["report.log_every"] = max(1, options.images // RECORDS)
    overrides |= _parse_overrides(options.set)
    if options.data is None:
        raise InputError("--data is missing: name a folder that python -m ali_dist.prepare has written.")
    base = BASE if options.preset is None else _load_base(options, overrides)
    data = _load_train_index(options.data).fingerprint
    seeds = [_parse_seed(word) for word in options.seeds]
    trials = plan_trials(variants, base, overrides, seeds)
    missing = select_missing(trials, read_results(results_file), data)
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    _say(f"{len(missing)} of {len(trials)} trials to run, {options.jobs} at a time; results go to {results_file}.")
    with _end_on_sigterm():
        return run_trials(
            missing,
            data=data,
            out=out,
            places=_choose_places(options, out),
            jobs=options.jobs,
            budget=options.budget - (time.monotonic() - began),
            say=_say,
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse_overrides(words: Sequence[str]) -> Settings:
    for word in words:
        if "=" not in word:
            raise InputError(f"--set is {word!r}, but must be KEY=VALUE, such as model.width=0.5.")
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _parse_seed(word: str) -> int:
    if not word.isdecimal():
        raise InputError(f"--seeds has {word!r}, but must be whole numbers, such as 0,1,2.")
    return int(word)


def _load_train_index(url: str) -> Index:
    return load_index(open_store(url).child("train"))


def _choose_places(options: argparse.Namespace, out: Path) -> Settings:
    """Where a trial takes place and what it writes: nothing of it decides the result."""
    url = options.data
    return {
        "run.dir": str(out / "runs"),
        "data.url": url if "://" in url else str(Path(url).expanduser().resolve()),
        "data.source": None,
        "scale.workers": "0",
        "scale.device": options.device,
        "scale.threads": options.threads or max(1, (os.cpu_count() or 1) // options.jobs),
        "report.gallery_every": 0,
        "report.evaluate_every": 0,
        "report.checkpoint_every": 0,
    }


class _end_on_sigterm:  # noqa: N801  (it reads as the words of a with statement)
    """SIGTERM ends the command as Ctrl-C does, so that no trial outlives it."""

    def __enter__(self) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            del number, frame
            raise KeyboardInterrupt

        self._previous = signal.signal(signal.SIGTERM, interrupt)

    def __exit__(self, *details: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)


def _write_table(options: argparse.Namespace, results: Sequence[Result] | None) -> None:
    """Write the table into the document; without results, only find out whether that is possible."""
    try:
        document = options.table.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{options.table} cannot be read ({error}): name a page of the docs.") from error
    text = "" if results is None else format_markdown(results, _describe_bench(results))
    replaced = replace_marked(document, options.marker, text, "the table is")
    if results is not None:
        options.table.write_text(replaced, encoding="utf-8")


def _describe_bench(results: Sequence[Result]) -> str:
    """Say when and where results were measured."""
    finished = [result for result in results if result["status"] == FINISHED]

    def list_values(key: str) -> str:
        return " and ".join(sorted({str(result[key]) for result in finished}))

    if not finished:
        return "`python -m tests.bench.recipes`: nothing has finished yet."
    return (
        f"`python -m tests.bench.recipes`, {list_values('date')}, {list_values('device')}, "
        f"{list_values('precision')}, {list_values('jobs')} at a time (which images/s depend on)."
    )


if __name__ == "__main__":
    sys.exit(main())
