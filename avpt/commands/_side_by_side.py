"""How a comparison of groups of runs looks: tables that fit a terminal, CSV, Markdown, and the tests in words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from textwrap import fill, wrap
from typing import Any

from avpt.diagnosis import group_tests
from avpt.runs.groups import NamedGroup, pattern, seed_of, value_in_words
from avpt.runs.scores import TEST_FIRST, curve_of, metric_of
from avpt.text import for_sheet, format_count, printable, sparkline
from avpt.types import Folded, Table

WIDTH = 80  # columns of a table, whatever the terminal's width
MARK = "<!-- avpt compare -->\n"  # begins the Markdown; only a file that begins so is replaced
BESIDE = ("group", "run", "seed", "state", "epochs_done", "best_epoch")  # columns of the CSV before the options


def tables(groups: Sequence[NamedGroup], record: Mapping[str, Any], metrics: Sequence[str]) -> list[Table]:
    """Groups, what differs, metrics, curves, tests, unfinished runs; each within WIDTH columns."""
    count = sum(len(one.runs) for one in groups)
    what = [(one.letter, one.name, pattern(one.runs), _seeds(map(seed_of, one.runs))) for one in groups]
    both = f"{format_count(count, 'run')} in {format_count(len(groups), 'group')}"
    title = f"{both}; those of a group differ in the seed alone"
    shown = fit_width(Table(title, ("", "group", "runs", "seeds"), what, left=4), split=False)
    if len(record["differing"]) > 1:
        shown += fit_width(options_table(groups, record["differing"]))
    counted = [(one, entry) for one, entry in zip(groups, record["groups"], strict=True) if one.finished]
    for split in TEST_FIRST:
        there = [metric for metric in metrics if any(metric in entry[split] for _, entry in counted)]
        rows = [
            (one.letter, str(len(one.finished)), *(_mean(entry[split].get(metric)) for metric in there))
            for one, entry in counted
        ]
        if there:
            names = [metric.replace("_", " ") for metric in there]
            shown += fit_width(Table(f"{split}, mean ± standard deviation over runs", ("", "n", *names), rows))
    metric = metrics[0] if metrics else ""
    if curves := [row for one, _ in counted for row in _curve_row(one, metric)]:
        columns = ("", "", "first", "last", "best epochs")
        shown.append(Table(f"val {metric.replace('_', ' ')} by epoch, mean over runs", columns, curves, left=2))
    if record["tests"]:
        shown += tests_table(record["tests"])
    unfinished = [
        (one.letter, str(run.path), run.progress.removeprefix("unfinished, "), sparkline(curve_of(run, metric)))
        for one in groups
        for run in one.runs
        if run.summary is None
    ]
    if unfinished:
        title = "unfinished, in none of the numbers above"
        table = Table(title, ("", "run", "state", f"val {metric.replace('_', ' ')}".strip()), unfinished, left=4)
        shown += fit_width(table, split=False)
    return shown


def options_table(groups: Sequence[NamedGroup], differ: Sequence[str]) -> Table:
    """One row per group, with a dash where it lacks an option."""
    rows = [
        (one.letter, *(value_in_words(one.options[name]) if name in one.options else "-" for name in differ))
        for one in groups
    ]
    return Table("options that differ", ("", *differ), rows, left=1 + len(differ))


def _seeds(seeds: Iterable[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


def _mean(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['mean']:.3f}" + ("" if spread["std"] is None else f" ± {spread['std']:.3f}")


def _curve_row(one: NamedGroup, metric: str) -> list[tuple[str, ...]]:
    mean = group_tests.mean_curve(one.curves(metric))
    if not mean:
        return []
    best = " ".join(str((run.summary or {}).get("best_epoch")) for run in one.finished)
    return [(one.letter, sparkline(mean), f"{mean[0]:.3f}", f"{mean[-1]:.3f}", best)]


def tests_table(tests: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table per metric, with one row per pair of groups."""
    shown = []
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
        shown.append(Table(title, columns, rows))
    return shown


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def fit_width(table: Table, split: bool = True) -> list[Table]:
    """Fold the longest cells of a table that is too wide; with `split` first make several with the same first column.

    The terminal's own width is not asked, so that the same runs look the same everywhere.
    """
    cells = [tuple(map(printable, row)) for row in (table.columns, *table.rows)]
    widths = [_widest([row[i] for row in cells]) for i in range(len(table.columns))]
    parts: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if split and len(parts[-1]) > 1 and _width([widths[j] for j in [*parts[-1], i]]) > WIDTH:
            parts.append([0])
        parts[-1].append(i)
    fitted = []
    for number, part in enumerate(parts):
        folded = [[row[i] for row in cells] for i in part]
        while _width(widths := list(map(_widest, folded))) > WIDTH:
            longest = widths.index(max(widths))
            folded[longest] = [Folded("\n".join(wrap(row[part[longest]], widths[longest] - 1))) for row in cells]
        columns, *rows = zip(*folded, strict=True)
        fitted.append(Table(f"{table.title}{', further' if number else ''}", columns, rows, table.left))
    return fitted


def _widest(cells: Sequence[str]) -> int:
    return max(len(line) for cell in cells for line in cell.split("\n"))


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) - 1  # as the command line draws it


def in_words(record: Mapping[str, Any]) -> str:
    """How many comparisons were tested, and why others were not."""
    groups, tests = record["groups"], record["tests"]
    if len(groups) < 2:
        return ""
    lines = []
    if tests:
        lines.append(f"{format_count(len(tests), 'comparison')}: Holm's p takes all of them together into account.")
        if any(test["p"] is None for test in tests):
            lines.append("Where all differences are equal there is no spread that a test could go by.")
    pairs = len(list(combinations(groups, 2))) * len({test["metric"] for test in tests} or [""])
    if len(tests) < pairs:
        which = (
            "No comparison is tested" if not tests else f"{pairs - len(tests)} of {pairs} comparisons are not tested"
        )
        lines.append(f"{which}: that takes {group_tests.FEWEST_PAIRS} seeds that both groups have finished.")
    return "\n".join(lines)


def as_csv(groups: Sequence[NamedGroup], differ: Sequence[str], metrics: Sequence[str]) -> str:
    """One row per run, with numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [(split, metric) for split in TEST_FIRST for metric in metrics]
    writer.writerow(map(for_sheet, [*BESIDE, *differ, *(f"{split}_{metric}" for split, metric in columns)]))
    for one in groups:
        for run in one.runs:
            state = "finished" if run.summary is not None else "unfinished"
            beside = [one.letter, run.path, seed_of(run), state, len(run.epochs), (run.summary or {}).get("best_epoch")]
            options = [value_in_words(one.options[name]) if name in one.options else "" for name in differ]
            cells = [*beside, *options, *(metric_of(run, *column) for column in columns)]
            writer.writerow(map(for_sheet, cells))
    return text.getvalue()


def as_markdown(groups: Sequence[NamedGroup], record: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Groups with mean and spread, the options that differ, and the tests."""
    columns = [
        (split, metric)
        for split in TEST_FIRST
        for metric in metrics
        if any(metric in entry[split] for entry in record["groups"])
    ]
    rows = [
        (one.letter, one.name, str(len(one.finished)), *(_mean(entry[split].get(metric)) for split, metric in columns))
        for one, entry in zip(groups, record["groups"], strict=True)
    ]
    names = [f"{split} {metric.replace('_', ' ')}" for split, metric in columns]
    shown = [Table("mean ± standard deviation over n runs", ("", "group", "n", *names), rows, left=2)]
    if record["differing"]:
        shown.append(options_table(groups, record["differing"]))
    shown += tests_table(record["tests"])
    words = "".join(f"{fill(line, WIDTH)}\n" for line in in_words(record).splitlines())
    return MARK + "".join(map(_in_markdown, shown)) + (f"\n{words}" if words else "")


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
