"""`avpt compare`: runs side by side, repeats grouped, and a paired test between groups."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

from avpt.diagnosis import group_tests
from avpt.files.outputs import check_ours, claim, must_write, write_text
from avpt.options import CompareConfig
from avpt.runs.folder import read_run
from avpt.runs.groups import Compared, differing, group, pattern, seed_of, value_in_words
from avpt.runs.scores import HELD_OUT, check_clips, curve_of, metric_of, metrics_of
from avpt.text import for_sheet, printable, sparkline
from avpt.types import Folded, Report, Split, Table

log = logging.getLogger(__name__)

WIDTH = 80  # of a table where there is no terminal
MARK = "<!-- avpt compare -->\n"  # of the Markdown, which is replaced only where it is there
BESIDE = ("group", "run", "seed", "state", "epochs_done", "best_epoch")  # columns of the CSV before the options


def run(config: CompareConfig) -> Report:
    """Read what the runs say of themselves, group them, compare, write what was asked for."""
    runs = [read_run(path) for path in {os.path.realpath(path): path for path in config.runs}.values()]
    check_clips(runs)
    groups = group(runs, config.search)
    metrics = metrics_of(runs, config.metric)
    tested = config.metric or metrics[:1]
    record = compare(groups, metrics, tested)
    outputs = []
    if config.csv is not None:
        first = ",".join(BESIDE)
        outputs += write(config.csv, as_csv(groups, record["differing"], metrics), first, "--csv", config.overwrite)
    if config.markdown is not None:
        outputs += write(config.markdown, as_markdown(groups, record, metrics), MARK, "--markdown", config.overwrite)
    if config.plot is not None:
        outputs += plot(groups, [*tested, "loss"], config.plot, config.overwrite)
    return Report(record, tuple(outputs), tables(groups, record, metrics), text=in_words(record))


def compare(groups: Sequence[Compared], metrics: Sequence[str], tested: Sequence[str]) -> dict[str, Any]:
    """The record: groups with their runs and statistics, and the tests between them."""
    differ = differing([one.options for one in groups])
    finished = [run for one in groups for run in one.finished]
    split: Split = "test" if all(run.summary and run.summary["test"] for run in finished) else "val"
    tests = []
    for metric in tested:
        for first, second in combinations(groups, 2):
            found = group_tests.paired_test(first.values(split, metric), second.values(split, metric))
            if found is not None:
                tests.append({"metric": metric, "split": split, "groups": [first.letter, second.letter], **found})
    for test, adjusted in zip(tests, group_tests.holm([test["p"] for test in tests]), strict=True):
        test["holm_p"] = adjusted
    return {"groups": [describe(one, differ, metrics) for one in groups], "differing": differ, "tests": tests}


def describe(one: Compared, differ: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """What the record says of a group."""
    told: dict[str, Any] = {"group": one.letter, "name": one.name}
    told["options"] = {name: one.options[name] for name in differ if name in one.options}
    told["runs"] = [
        {
            "run": str(run.path),
            "seed": seed_of(run),
            "finished": run.summary is not None,
            "epochs": len(run.epochs),
            "best_epoch": (run.summary or {}).get("best_epoch"),
            **{split: (run.summary or {}).get(split) for split in HELD_OUT},
        }
        for run in one.runs
    ]
    for split in HELD_OUT:
        values = {metric: [metric_of(run, split, metric) for run in one.finished] for metric in metrics}
        known = {metric: [value for value in found if value is not None] for metric, found in values.items()}
        told[split] = {metric: group_tests.spread(found) for metric, found in known.items() if found}
    return told


def tables(groups: Sequence[Compared], record: Mapping[str, Any], metrics: Sequence[str]) -> list[Table]:
    """Groups, what differs, metrics, curves, tests, unfinished runs; each within the width of a terminal."""
    count = sum(len(one.runs) for one in groups)
    what = [(one.letter, one.name, pattern(one.runs), _seeds(map(seed_of, one.runs))) for one in groups]
    title = f"{_many(count, 'run')} in {_many(len(groups), 'group')}; those of a group differ in the seed alone"
    found = fitted(Table(title, ("", "group", "runs", "seeds"), what, left=4), apart=False)
    if len(record["differing"]) > 1:
        found += fitted(options_table(groups, record["differing"]))
    counted = [(one, told) for one, told in zip(groups, record["groups"], strict=True) if one.finished]
    for split in HELD_OUT:
        there = [metric for metric in metrics if any(metric in told[split] for _, told in counted)]
        rows = [
            (one.letter, str(len(one.finished)), *(_mean(told[split].get(metric)) for metric in there))
            for one, told in counted
        ]
        if there:
            names = [metric.replace("_", " ") for metric in there]
            found += fitted(Table(f"{split}, mean ± standard deviation over runs", ("", "n", *names), rows))
    metric = metrics[0] if metrics else ""
    if curves := [row for one, _ in counted for row in _curve_row(one, metric)]:
        columns = ("", "", "first", "last", "best epochs")
        found.append(Table(f"val {metric.replace('_', ' ')} by epoch, mean over runs", columns, curves, left=2))
    if record["tests"]:
        found += tests_table(record["tests"])
    unfinished = [
        (one.letter, str(run.path), run.progress.removeprefix("unfinished, "), sparkline(curve_of(run, metric)))
        for one in groups
        for run in one.runs
        if run.summary is None
    ]
    if unfinished:
        title = "unfinished, in none of the numbers above"
        table = Table(title, ("", "run", "state", f"val {metric.replace('_', ' ')}".strip()), unfinished, left=4)
        found += fitted(table, apart=False)
    return found


def options_table(groups: Sequence[Compared], differ: Sequence[str]) -> Table:
    """A row a group; a dash where it does not have an option."""
    rows = [
        (one.letter, *(value_in_words(one.options[name]) if name in one.options else "-" for name in differ))
        for one in groups
    ]
    return Table("options that differ", ("", *differ), rows, left=1 + len(differ))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _seeds(seeds: Iterable[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


def _mean(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" + ("" if found["std"] is None else f" ± {found['std']:.3f}")


def _curve_row(one: Compared, metric: str) -> list[tuple[str, ...]]:
    mean = group_tests.mean_curve(one.curves(metric))
    if not mean:
        return []
    best = " ".join(str((run.summary or {}).get("best_epoch")) for run in one.finished)
    return [(one.letter, sparkline(mean), f"{mean[0]:.3f}", f"{mean[-1]:.3f}", best)]


def tests_table(tests: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A row a pair of groups, a table a metric."""
    found = []
    for metric in dict.fromkeys(test["metric"] for test in tests):
        rows = []
        for test in tests:
            if test["metric"] == metric:
                first, second = test["groups"]
                numbers = ("all equal", "-", "-")
                if test["p"] is not None:
                    low, high = test["interval"]
                    numbers = (f"{low:+.3f} to {high:+.3f}", _p(test["p"]), _p(test["holm_p"]))
                rows.append((f"{second} - {first}", str(len(test["seeds"])), f"{test['difference']:+.4f}", *numbers))
        title = f"paired t-test over shared seeds, {test['split']} {metric.replace('_', ' ')}"
        columns = ("", "seeds", "difference", "95 % interval", "p", "Holm's p")
        found.append(Table(title, columns, rows))
    return found


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def fitted(table: Table, apart: bool = True) -> list[Table]:
    """A table whose longest cells are folded where it would be too wide; `apart`: several, with the same first column.

    However wide the terminal is: the same runs then look the same everywhere.
    """
    cells = [tuple(map(printable, row)) for row in (table.columns, *table.rows)]
    widths = [_widest([row[i] for row in cells]) for i in range(len(table.columns))]
    parts: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if apart and len(parts[-1]) > 1 and _width([widths[j] for j in [*parts[-1], i]]) > WIDTH:
            parts.append([0])
        parts[-1].append(i)
    found = []
    for number, part in enumerate(parts):
        folded = [[row[i] for row in cells] for i in part]
        while _width(widths := list(map(_widest, folded))) > WIDTH:
            longest = widths.index(max(widths))
            folded[longest] = [Folded("\n".join(wrap(row[part[longest]], widths[longest] - 1))) for row in cells]
        columns, *rows = zip(*folded, strict=True)
        found.append(Table(f"{table.title}{', further' if number else ''}", columns, rows, table.left))
    return found


def _widest(cells: Sequence[str]) -> int:
    return max(len(line) for cell in cells for line in cell.split("\n"))


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) - 1  # as the command line draws it


def in_words(record: Mapping[str, Any]) -> str:
    """What the tests are, and where there is none why."""
    groups, tests = record["groups"], record["tests"]
    if len(groups) < 2:
        return ""
    lines = []
    if tests:
        lines.append(f"{_many(len(tests), 'comparison')}: Holm's p takes all of them together into account.")
        if any(test["p"] is None for test in tests):
            lines.append("Where all differences are equal there is no spread that a test could go by.")
    pairs = len(list(combinations(groups, 2))) * len({test["metric"] for test in tests} or [""])
    if len(tests) < pairs:
        which = (
            "No comparison is tested" if not tests else f"{pairs - len(tests)} of {pairs} comparisons are not tested"
        )
        lines.append(f"{which}: that takes {group_tests.FEWEST_PAIRS} seeds that both groups have finished.")
    return "".join(f"{fill(line, WIDTH)}\n" for line in lines)


def as_csv(groups: Sequence[Compared], differ: Sequence[str], metrics: Sequence[str]) -> str:
    """A row a run, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [(split, metric) for split in HELD_OUT for metric in metrics]
    writer.writerow(map(for_sheet, [*BESIDE, *differ, *(f"{split}_{metric}" for split, metric in columns)]))
    for one in groups:
        for run in one.runs:
            state = "finished" if run.summary is not None else "unfinished"
            beside = [one.letter, run.path, seed_of(run), state, len(run.epochs), (run.summary or {}).get("best_epoch")]
            options = [value_in_words(one.options[name]) if name in one.options else "" for name in differ]
            cells = [*beside, *options, *(metric_of(run, *column) for column in columns)]
            writer.writerow(map(for_sheet, cells))
    return text.getvalue()


def as_markdown(groups: Sequence[Compared], record: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Groups with mean and spread, the options that differ, and the tests."""
    columns = [
        (split, metric)
        for split in HELD_OUT
        for metric in metrics
        if any(metric in told[split] for told in record["groups"])
    ]
    rows = [
        (one.letter, one.name, str(len(one.finished)), *(_mean(told[split].get(metric)) for split, metric in columns))
        for one, told in zip(groups, record["groups"], strict=True)
    ]
    names = [f"{split} {metric.replace('_', ' ')}" for split, metric in columns]
    shown = [Table("mean ± standard deviation over n runs", ("", "group", "n", *names), rows, left=2)]
    if record["differing"]:
        shown.append(options_table(groups, record["differing"]))
    shown += tests_table(record["tests"])
    return MARK + "".join(map(_in_markdown, shown)) + (f"\n{words}" if (words := in_words(record)) else "")


def _in_markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    def escaped(cells: Iterable[str]) -> list[str]:
        shown = (printable(" ".join(cell.split())) for cell in cells)
        return [re.sub(r"([\\|*<`\[\]&])", r"\\\1", cell) for cell in shown]

    ruler = ["---" if i < table.left else "---:" for i in range(len(table.columns))]
    body = "".join(line(escaped(row)) for row in table.rows)
    (title,) = escaped([table.title])
    return f"\n{title[0].upper()}{title[1:]}:\n\n{line(escaped(table.columns))}{line(ruler)}{body}"


def write(path: Path, text: str, first: str, option: str, overwrite: bool) -> list[Path]:
    """Write a text, unless it is there.

    Raises:
        OutputError: another file is there.
    """
    with claim(path):
        found = check_ours(path, lambda content: content.startswith(first.encode()), option=option)
        if must_write(path, text.encode(), found, "holds another comparison", option=option, overwrite=overwrite):
            write_text(path, text)
    return [path]


def plot(groups: Sequence[Compared], metrics: Iterable[str], folder: Path, overwrite: bool) -> list[Path]:
    """The curves on val of all finished runs, a figure a metric."""
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
