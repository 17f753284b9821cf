"""`avpt compare`: runs side by side, repeats grouped, and a paired test between groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from avpt.commands._side_by_side import BESIDE, MARK, as_csv, as_markdown, in_words, tables
from avpt.diagnosis import group_tests
from avpt.errors import ConfigError
from avpt.files.locks import claim
from avpt.files.outputs import write_text
from avpt.files.reuse import check_ours, must_write
from avpt.options import CompareConfig
from avpt.runs.folder import expand_folders, read_run
from avpt.runs.groups import NamedGroup, differing_options, group, seed_of
from avpt.runs.scores import TEST_FIRST, check_clips, metric_of, metrics_of
from avpt.training.metrics import informative
from avpt.types import Report, Split


def run(config: CompareConfig) -> Report:
    """Read the runs' own records, group the runs, compare the groups, and write the outputs asked for."""
    runs = [read_run(path) for path in {os.path.realpath(path): path for path in expand_folders(config.runs)}.values()]
    check_clips(runs)
    groups = group(runs, config.search)
    metrics = metrics_of(runs, config.metric)
    counts = [len(run.header.classes) for run in runs if run.header is not None]
    shown = metrics if config.metric or not counts else informative(metrics, max(counts))
    tested = config.metric or metrics[:1]
    record = compare(groups, metrics, tested, baselines_of(groups, config.against))
    outputs = []
    if config.csv is not None:
        first = ",".join(BESIDE)
        outputs += write(config.csv, as_csv(groups, record["differing"], metrics), first, "--csv", config.overwrite)
    if config.markdown is not None:
        outputs += write(config.markdown, as_markdown(groups, record, shown), MARK, "--markdown", config.overwrite)
    if config.plot is not None:
        outputs += plot(groups, [*tested, "loss"], config.plot, config.overwrite)
    return Report(record, tuple(outputs), tables(groups, record, shown), words=in_words(record))


def baselines_of(groups: Sequence[NamedGroup], paths: Sequence[Path] | None) -> list[NamedGroup]:
    """The groups that the runs at some paths are in; all groups where there are none.

    Raises:
        ConfigError: a path is not one of the runs.
    """
    if paths is None:
        return list(groups)
    wanted = {os.path.realpath(path): path for path in paths}
    chosen = [one for one in groups if any(os.path.realpath(run.path) in wanted for run in one.runs)]
    there = {os.path.realpath(run.path) for one in groups for run in one.runs}
    if strangers := [path for real, path in wanted.items() if real not in there]:
        raise ConfigError(f"--against {strangers[0]} is none of the runs that are compared; name one of them")
    return chosen


def compare(
    groups: Sequence[NamedGroup],
    metrics: Sequence[str],
    tested: Sequence[str],
    baselines: Sequence[NamedGroup],
) -> dict[str, Any]:
    """Make the record: groups with their runs and statistics, and the tests of each group against the baselines."""
    differ = differing_options([one.options for one in groups])
    finished = [run for one in groups for run in one.finished]
    split: Split = "test" if all(run.summary and run.summary["test"] for run in finished) else "val"
    tests = []
    for metric in tested:
        for first, second in pairs(groups, baselines):
            result = group_tests.paired_test(first.values(split, metric), second.values(split, metric))
            if result is not None:
                tests.append({"metric": metric, "split": split, "groups": [first.letter, second.letter], **result})
    for test, adjusted in zip(tests, group_tests.holm([test["p"] for test in tests]), strict=True):
        test["holm_p"] = adjusted
    return {"groups": [describe(one, differ, metrics) for one in groups], "differing": differ, "tests": tests}


def pairs(groups: Sequence[NamedGroup], baselines: Sequence[NamedGroup]) -> list[tuple[NamedGroup, NamedGroup]]:
    """Each pair of groups of which at least one is a baseline, which comes first: what is tested is second - first."""
    both = [pair for pair in combinations(groups, 2) if any(one in baselines for one in pair)]
    return [pair if pair[0] in baselines else (pair[1], pair[0]) for pair in both]


def describe(one: NamedGroup, differ: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """The entry of a group in the record."""
    entry: dict[str, Any] = {"group": one.letter, "name": one.name}
    entry["options"] = {name: one.options[name] for name in differ if name in one.options}
    entry["runs"] = [
        {
            "run": str(run.path),
            "seed": seed_of(run),
            "finished": run.summary is not None,
            "epochs": len(run.epochs),
            "best_epoch": (run.summary or {}).get("best_epoch"),
            **{split: (run.summary or {}).get(split) for split in TEST_FIRST},
        }
        for run in one.runs
    ]
    for split in TEST_FIRST:
        values = {metric: [metric_of(run, split, metric) for run in one.finished] for metric in metrics}
        known = {metric: [value for value in column if value is not None] for metric, column in values.items()}
        entry[split] = {metric: group_tests.summarise(column) for metric, column in known.items() if column}
    return entry


def write(path: Path, text: str, first: str, option: str, overwrite: bool) -> list[Path]:
    """Write a text, unless the file holds it already.

    Raises:
        OutputError: the path holds another file.
    """
    with claim(path):
        existing = check_ours(path, lambda content: content.startswith(first.encode()), option=option)
        if must_write(path, text.encode(), existing, "holds another comparison", option=option, overwrite=overwrite):
            write_text(path, text)
    return [path]


def plot(groups: Sequence[NamedGroup], metrics: Iterable[str], folder: Path, overwrite: bool) -> list[Path]:
    """Draw the val curves of all finished runs, one figure per metric."""
    from avpt.figures import style
    from avpt.figures.curves import draw_curves

    paths = []
    for metric in dict.fromkeys(metrics):
        named = {f"{one.letter}: {one.name}": one.curves(metric) for one in groups}
        curves = {name: runs for name, runs in named.items() if runs}
        if curves:
            words = metric.replace("_", " ")
            width = style.ONE_COLUMN if len(curves) < 4 else style.TWO_COLUMNS
            figure = draw_curves(curves, label=f"val {words}", width=width)
            paths += style.save(figure, folder, f"val-{re.sub(r'[^A-Za-z0-9.]', '-', metric)}", overwrite=overwrite)
    return paths
