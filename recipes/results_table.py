"""Print the test accuracy of finished runs side by side: `results_table.py "audio alone=RUN" "both=RUN RUN RUN" ...`.

Several runs in one row are seeds: their mean and standard deviation. A file that `avpt evaluate` or `avpt probe` wrote
can stand in the place of a run. `--against "both"` also compares each row with that one, seed by seed in the order they
stand in. Rows `"name/this=..."` and `"name/that=..."` are one, by that of them whose mean accuracy on val is best.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avpt.diagnosis.group_tests import holm, paired_test
from avpt.files import artifacts

Runs = list[dict[str, Any]]  # the results of a row, in the order of its seeds

COLUMNS = {"test accuracy": "accuracy", "audio share": "audio_accuracy", "visual share": "visual_accuracy"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--against", action="append", default=[])
    arguments = parser.parse_args()
    rows = choose({name: read(paths.split()) for name, _, paths in (row.partition("=") for row in arguments.rows)})
    shown = {head: key for head, key in COLUMNS.items() if any(key in run for _, runs in rows.values() for run in runs)}
    table = [["", *shown]]
    for name, (which, runs) in rows.items():
        numbers = (cell([run[key] for run in runs if key in run]) for key in shown.values())
        table.append([name + (f" ({which})" if which else ""), *numbers])
    if arguments.against:
        accuracies = {name: [run["accuracy"] for run in runs] for name, (_, runs) in rows.items()}
        table[0] += [f"minus {baseline}" for baseline in arguments.against]
        for line, more in zip(table[1:], differences(accuracies, arguments.against), strict=True):
            line += more
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        right = (value.rjust(width) for value, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *right]).rstrip())
    if arguments.against:
        print("[95 % interval], p of the paired t-test over three seeds or more (adjusted for all of the table, Holm)")


def read(paths: Sequence[str]) -> Runs:
    """The test results of runs, of records of `avpt evaluate`, or of linear probes."""
    results: Runs = []
    for path in map(Path, paths):
        if path.suffix == ".safetensors":
            header, _ = artifacts.read_header(path)
            results.append({"accuracy": header.metrics["accuracy"]["test"]})
        else:
            file = path / "summary.json" if path.is_dir() else path
            summary = json.loads(file.read_text(encoding="utf-8"))
            results.append(summary["test"] | {"val": summary.get("val", {}).get("accuracy")})
    return results


def choose(rows: Mapping[str, Runs]) -> dict[str, tuple[str, Runs]]:
    """Each row's name, with what stands behind its slash and the runs of that of its candidates that is best on val."""
    chosen: dict[str, tuple[str, Runs]] = {}
    for row, runs in rows.items():
        name, _, which = row.partition("/")
        if name not in chosen or mean_on_val(runs) > mean_on_val(chosen[name][1]):
            chosen[name] = which, runs
    return chosen


def mean_on_val(runs: Runs) -> float:
    values: list[float] = [run["val"] for run in runs]
    return statistics.mean(values)


def cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def differences(accuracies: Mapping[str, Sequence[float]], baselines: Sequence[str]) -> list[list[str]]:
    """Each row's difference from each baseline, and its p; two baselines are compared once."""
    tests: dict[tuple[str, str], dict[str, Any] | None] = {}
    for baseline in baselines:
        before = dict(enumerate(accuracies[baseline]))
        for name, values in accuracies.items():
            if name != baseline and (baseline, name) not in tests:
                tests[name, baseline] = paired_test(before, dict(enumerate(values)))
    adjusted = dict(zip(tests, holm([test["p"] if test else None for test in tests.values()]), strict=True))

    def difference(name: str, baseline: str) -> str:
        if (name, baseline) not in tests:
            return ""
        test = tests[name, baseline]
        gain = statistics.mean(accuracies[name]) - statistics.mean(accuracies[baseline])
        if test is None or test["p"] is None:
            return f"{gain:+.3f}"
        low, high = test["interval"]
        return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] p {test['p']:.3f} ({adjusted[name, baseline]:.3f})"

    return [[difference(name, baseline) for baseline in baselines] for name in accuracies]


if __name__ == "__main__":
    main()
