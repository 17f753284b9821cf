"""`avpt compare` on run folders whose records are written by hand: every number is worked out again here."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Experiment, done, refused
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import tstd, ttest_rel

from avpt.diagnosis import group_tests
from avpt.files import artifacts
from avpt.files.outputs import sha256
from avpt.report.experiment import gather
from avpt.runs.folder import read_run
from avpt.runs.groups import group_runs, name_groups

CURVE = (0.4, 0.6)  # val accuracy by epoch


def write_run(
    source: Path,
    path: Path,
    *,
    seed: int = 0,
    test: float | None = 0.5,
    curve: Sequence[float] = CURVE,
    finished: bool = True,
    classes: Sequence[str] | None = None,
    inputs: dict[str, str] | None = None,
    without: Sequence[str] = (),
    **options: Any,
) -> Path:
    """The records of a real run with other words in them, and next to no weights."""
    model = read_run(source)
    assert model.header is not None
    assert model.summary is not None
    config = {name: value for name, value in model.config.items() if name not in without}
    config |= {"seed": seed, "epochs": len(curve), **options}
    inputs = model.inputs | (inputs or {})
    (path / "checkpoint").mkdir(parents=True)
    (path / "checkpoint" / "settings.json").write_text(json.dumps({"config": config, "inputs": inputs}))
    rows = [
        row | {"epoch": i, "val": row["val"] | {"accuracy": value}}
        for i, (row, value) in enumerate(zip(model.epochs * 9, curve, strict=False), 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        summary = model.summary | {"epochs": len(curve), "val": model.summary["val"] | {"accuracy": curve[-1]}}
        summary["test"] = None if test is None else model.summary["test"] | {"accuracy": test}
        (path / "summary.json").write_text(json.dumps(summary))
        header = replace(model.header, config=config, inputs=inputs, classes=list(classes or model.header.classes))
        artifacts.save(path / "model.safetensors", header, {"seed": torch.tensor([seed])})
    return path


def write_runs(source: Path, folder: Path, tests: Sequence[float], **options: Any) -> list[Path]:
    """One run for each value of test accuracy, of seeds from 0."""
    return [write_run(source, folder / str(seed), seed=seed, test=test, **options) for seed, test in enumerate(tests)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """So deep that nothing of other tests is around the runs in it."""
    deep = tmp_path / "one" / "two"
    deep.mkdir(parents=True)
    return deep


def compare(*arguments: str | Path) -> dict[str, Any]:
    return done("compare", "--json", *arguments).json()


def markdown_tables(path: Path) -> list[list[list[str]]]:
    """The cells of each table of a file, without the rulers."""
    blocks = [block.splitlines() for block in path.read_text(encoding="utf-8").split("\n\n") if block[0] == "|"]
    tables = [[line.strip().strip("|").split(" | ") for line in block] for block in blocks]
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    assert all(set(cell.strip()) <= {"-", ":"} for table in tables for cell in table[1])
    return [[[cell.strip() for cell in row] for i, row in enumerate(table) if i != 1] for table in tables]


def by_hand(first: Sequence[float], second: Sequence[float]) -> tuple[float, list[float], float]:
    """Mean difference, 95 % interval and p of Student's paired test."""
    d = np.array(second) - np.array(first)
    error = math.sqrt(sum((d - d.mean()) ** 2) / (len(d) - 1)) / math.sqrt(len(d))
    reach = float(student.ppf(0.975, len(d) - 1)) * error
    return (
        float(d.mean()),
        [d.mean() - reach, d.mean() + reach],
        float(2 * student.sf(abs(d.mean()) / error, len(d) - 1)),
    )


# --- groups, means and tests -------------------------------------------------------------------------------------


def test_means_spread_and_paired_tests(experiment: Experiment, folder: Path) -> None:
    values = {"a": [0.60, 0.62, 0.70], "b": [0.66, 0.70, 0.75], "c": [0.61, 0.60, 0.77]}
    paths = [
        path
        for (name, tests), scale in zip(values.items(), (1.0, 0.5, 0.1), strict=True)
        for path in write_runs(experiment.fused, folder / name, tests, encoder_lr_scale=scale)
    ]
    record = compare(*paths[::-1], "--metric", "accuracy")  # groups go by their first runs
    assert [(one["group"], one["name"]) for one in record["groups"]] == [
        ("A", "encoder_lr_scale=0.1"),
        ("B", "encoder_lr_scale=0.5"),
        ("C", "encoder_lr_scale=1"),
    ]
    for one, tests in zip(record["groups"], [values["c"], values["b"], values["a"]], strict=True):
        assert sorted(run["seed"] for run in one["runs"]) == [0, 1, 2]
        mean = sum(tests) / 3
        std = math.sqrt(sum((value - mean) ** 2 for value in tests) / 2)
        assert one["test"] == {"accuracy": {"mean": pytest.approx(mean), "std": pytest.approx(std), "n": 3}}
    assert record["differing"] == ["encoder_lr_scale"]

    pairs = {("A", "B"): ("c", "b"), ("A", "C"): ("c", "a"), ("B", "C"): ("b", "a")}
    expected = {pair: by_hand(values[first], values[second]) for pair, (first, second) in pairs.items()}
    assert len(record["tests"]) == 3
    for test in record["tests"]:
        difference, interval, p = expected[tuple(test["groups"])]
        assert (test["metric"], test["split"], test["seeds"]) == ("accuracy", "test", [0, 1, 2])
        assert test["difference"] == pytest.approx(difference)
        assert test["interval"] == pytest.approx(interval)
        assert test["p"] == pytest.approx(p)
    lowest, middle, highest = sorted(record["tests"], key=lambda test: float(test["p"]))
    assert lowest["holm_p"] == pytest.approx(min(1, 3 * lowest["p"]))
    assert middle["holm_p"] == pytest.approx(max(lowest["holm_p"], min(1, 2 * middle["p"])))
    assert highest["holm_p"] == pytest.approx(max(middle["holm_p"], highest["p"]))
    told = done("compare", *paths).stdout
    assert "3 comparisons" in told
    assert "C - A" in told


def test_groups_are_tested_against_a_baseline_alone(experiment: Experiment, folder: Path) -> None:
    values = {"a": [0.60, 0.62, 0.70], "b": [0.66, 0.70, 0.75], "c": [0.61, 0.60, 0.77]}
    paths = [
        path
        for (name, tests), scale in zip(values.items(), (0.1, 0.5, 1.0), strict=True)
        for path in write_runs(experiment.fused, folder / name, tests, encoder_lr_scale=scale)
    ]
    record = compare(*paths, "--metric", "accuracy", "--against", paths[4])  # any run of b stands for it
    assert [test["groups"] for test in record["tests"]] == [["B", "A"], ["B", "C"]]
    for test, other in zip(record["tests"], ("a", "c"), strict=True):
        difference, interval, p = by_hand(values["b"], values[other])
        assert test["difference"] == pytest.approx(difference)
        assert test["interval"] == pytest.approx(interval)
        assert test["p"] == pytest.approx(p)
    assert max(test["holm_p"] for test in record["tests"]) <= min(1, 2 * max(test["p"] for test in record["tests"]))
    two = compare(*paths, "--metric", "accuracy", "--against", paths[0], "--against", paths[3])
    assert [test["groups"] for test in two["tests"]] == [["A", "B"], ["A", "C"], ["B", "C"]]
    refused("compare", *paths, "--against", experiment.fused, says="is none of the runs that are compared")


def test_only_shared_seeds_are_paired(experiment: Experiment, folder: Path) -> None:
    first = write_runs(experiment.fused, folder / "a", [0.5, 0.6, 0.4, 0.9])
    second = write_runs(experiment.fused, folder / "b", [0.55, 0.7, 0.42], lr=0.5)
    (test,) = compare(*first, *second)["tests"]
    assert test["seeds"] == [0, 1, 2]
    assert test["p"] == pytest.approx(by_hand([0.5, 0.6, 0.4], [0.55, 0.7, 0.42])[2])
    result = done("compare", *first, *second[:2])
    assert "paired t-test" not in result.stdout
    assert "No comparison is tested: that takes 3 seeds" in result.stdout


def test_differences_that_are_all_equal_have_no_p(experiment: Experiment, folder: Path) -> None:
    first = write_runs(experiment.fused, folder / "a", [0.5, 0.6, 0.7])
    second = write_runs(experiment.fused, folder / "b", [0.51, 0.61, 0.71], lr=0.5)
    (test,) = compare(*first, *second)["tests"]
    assert (test["p"], test["interval"], test["holm_p"]) == (None, None, None)
    assert test["difference"] == pytest.approx(0.01)
    assert "all equal" in done("compare", *first, *second).stdout


def test_without_a_test_split_val_is_tested(experiment: Experiment, folder: Path) -> None:
    paths = [
        write_run(experiment.fused, folder / f"{lr}-{seed}", seed=seed, lr=lr, test=None, curve=(0.1, value))
        for lr, values in ((0.1, (0.3, 0.4, 0.5)), (0.2, (0.35, 0.4, 0.6)))
        for seed, value in enumerate(values)
    ]
    (test,) = compare(*paths)["tests"]
    assert test["split"] == "val"
    assert test["p"] == pytest.approx(by_hand((0.3, 0.4, 0.5), (0.35, 0.4, 0.6))[2])
    assert "test, mean" not in done("compare", *paths).stdout


def test_options_that_are_younger_or_idle_make_no_group(experiment: Experiment, folder: Path) -> None:
    old = write_run(experiment.fused, folder / "old", seed=1, without=["ema", "modality_dropout", "patience"])
    new = write_run(experiment.fused, folder / "new")
    (one,) = compare(old, new)["groups"]
    assert len(one["runs"]) == 2
    other = write_run(experiment.fused, folder / "other", ema=0.9)
    record = compare(old, new, other)
    assert record["differing"] == ["ema"]
    assert [one["options"] for one in record["groups"]] == [{"ema": None}, {"ema": 0.9}]
    # without masking, what a mask would look like is no difference
    assert {"mask_threshold", "audio_patch"} <= read_run(new).config.keys()
    mask = ("mask_rule", "mask_ratio", "mask_threshold", "audio_patch", "visual_patch")
    plain = write_run(experiment.fused, folder / "plain", without=mask, mask="none")
    assert compare(new, plain)["differing"] == ["mask"]


def test_a_seed_twice_and_a_run_twice(experiment: Experiment, folder: Path) -> None:
    first = write_runs(experiment.fused, folder / "a", [0.5, 0.6, 0.7])
    second = write_runs(experiment.fused, folder / "b", [0.5, 0.7, 0.9], lr=0.5)
    again = write_run(experiment.fused, folder / "again", seed=0, test=0.6, lr=0.5)
    result = done("compare", *first, *second, again, second[0], "--json")
    assert "group B has several runs of seed 0" in result.stderr
    record = result.json()
    assert len(record["groups"][1]["runs"]) == 4  # that one was named twice is no matter
    assert record["tests"][0]["p"] == pytest.approx(by_hand([0.5, 0.6, 0.7], [0.55, 0.7, 0.9])[2])


# --- what runs were made from ------------------------------------------------------------------------------------


def test_inputs_are_compared_by_what_they_were_made_with(experiment: Experiment, folder: Path) -> None:
    """Stage-1 runs of other seeds are repeats, of another rate they are not; nothing is told twice."""
    paths = []
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            made = folder / f"{lr}-{seed}"
            audio = write_run(experiment.audio, made / "audio", seed=seed, lr=lr)
            (made / "audio" / "dynamics.safetensors").write_bytes(f"{lr} {seed}".encode())
            header = artifacts.Header(
                kind="confidence",
                config={"skip_epochs": 0, "missing": "error"},
                inputs={"audio": sha256(audio / "dynamics.safetensors")},
            )
            artifacts.save(made / "confidence.safetensors", header, {})
            inputs = {"audio": sha256(audio / "model.safetensors")}
            inputs["confidence"] = sha256(made / "confidence.safetensors")
            paths.append(write_run(experiment.fused, made / "fused", seed=seed, inputs=inputs))
    result = done("compare", *paths, "--json")
    assert "warning" not in result.stderr
    record = result.json()
    assert record["differing"] == ["audio.lr"]
    assert [one["name"] for one in record["groups"]] == ["audio.lr=0.1", "audio.lr=0.2"]
    assert [[run["run"] for run in one["runs"]] for one in record["groups"]] == [
        [str(path) for path in paths[:2]],
        [str(path) for path in paths[2:]],
    ]


def test_inputs_that_are_gone(experiment: Experiment, folder: Path) -> None:
    def lost(name: str, seed: int, letter: str) -> Path:
        return write_run(experiment.fused, folder / name, seed=seed, inputs={"audio": letter * 64})

    runs = [lost("a", 0, "a"), lost("b", 1, "b"), lost("c", 2, "c")]
    result = done("compare", *runs, "--json")
    assert "what 3 of the runs were made from was not found" in result.stderr
    assert "--search" in result.stderr
    assert len(result.json()["groups"]) == 1
    # one seed with two inputs can't be repeats
    result = done("compare", *runs, lost("d", 0, "d"), "--json")
    assert "known by their checksums alone (audio)" in result.stderr
    assert len(result.json()["groups"]) == 4
    assert result.json()["differing"] == ["audio"]
    # the same input everywhere is no difference, found or not
    result = done("compare", runs[0], lost("e", 1, "a"), "--json")
    assert result.stderr == ""
    assert len(result.json()["groups"]) == 1


def test_search_finds_what_is_not_around(experiment: Experiment, folder: Path) -> None:
    away = folder / "here" / "there" / "away"
    audios = [write_run(experiment.audio, folder / "stage1" / str(seed), seed=seed) for seed in (0, 1)]
    sums = [{"audio": sha256(audio / "model.safetensors")} for audio in audios]
    runs = [write_run(experiment.fused, away / str(seed), seed=seed, inputs=sums[seed]) for seed in (0, 1)]
    assert "made from was not found" in done("compare", *runs).stderr
    result = done("compare", *runs, "--search", folder / "stage1")
    assert "made from was not found" not in result.stderr
    refused("compare", *runs, "--search", folder / "nowhere", says="is not a folder")


# --- one answer for both commands --------------------------------------------------------------------------------


def grouped(runs: Sequence[Path], folder: Path) -> list[list[Path]]:
    """How `compare` groups some runs; the page of a report and its verdicts see the same groups."""
    groups = [[Path(run["run"]) for run in one["runs"]] for one in compare(*runs)["groups"]]
    found = [[node.path for node in nodes if node.path in runs] for nodes in gather(runs, None).groups.values()]
    assert sorted(map(sorted, filter(None, found))) == sorted(map(sorted, groups))
    done("report", *runs, "--out", folder / "page.html", "--clips", "0", "--overwrite")
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert ("over seeds; deviation of single runs" in page) == any(len(group) > 1 for group in groups)
    return groups


def test_both_commands_group_runs_of_an_older_avpt_with_newer_ones(experiment: Experiment, folder: Path) -> None:
    """Older are the run itself, or what it was made from; another value than the default is another group."""
    young = ["ema", "patience", "label_smoothing"]
    old = write_run(experiment.audio, folder / "old", seed=1, without=young)
    new = write_run(experiment.audio, folder / "new")
    other = write_run(experiment.audio, folder / "other", seed=2, ema=0.9)
    assert grouped([old, new, other], folder) == [[old, new], [other]]
    made_of = [{"audio": sha256(run / "model.safetensors")} for run in (old, new, other)]
    fused = [write_run(experiment.fused, folder / f"fused-{i}", seed=i, inputs=made_of[i]) for i in range(3)]
    assert grouped(fused, folder) == [fused[:2], fused[2:]]


def test_both_commands_group_runs_whose_inputs_are_gone(experiment: Experiment, folder: Path) -> None:
    def lost(name: str, seed: int, letter: str) -> Path:
        return write_run(experiment.fused, folder / name, seed=seed, inputs={"audio": letter * 64})

    runs = [lost("a", 0, "a"), lost("b", 1, "b")]
    assert grouped(runs, folder) == [runs]
    result = done("report", *runs, "--out", folder / "page.html", "--clips", "0", "--overwrite")
    assert "what 2 of the runs were made from was not found" in result.stderr
    assert "count as repeats, whatever their inputs" in (folder / "page.html").read_text(encoding="utf-8")
    runs.append(lost("c", 0, "c"))  # one seed with two inputs can't be repeats
    assert grouped(runs, folder) == [[run] for run in runs]


# --- what does not fit ---------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_shown_and_does_not_count(experiment: Experiment, folder: Path) -> None:
    runs = write_runs(experiment.fused, folder / "a", [0.5, 0.7])
    begun = write_run(experiment.fused, folder / "begun", seed=2, epochs=2, curve=[0.9], finished=False)
    settings = json.loads((begun / "checkpoint" / "settings.json").read_text())
    settings["config"]["epochs"] = 2
    (begun / "checkpoint" / "settings.json").write_text(json.dumps(settings))
    record = compare(*runs, begun)
    (one,) = record["groups"]
    assert one["test"]["accuracy"]["mean"] == pytest.approx(0.6)
    assert one["test"]["accuracy"]["n"] == 2
    assert [run["finished"] for run in one["runs"]] == [True, True, False]
    told = done("compare", *runs, begun).stdout
    assert "1 of 2 epochs done" in told
    assert "unfinished, in none of the numbers above" in told
    alone = done("compare", begun)
    assert "1 of 2 epochs done" in alone.stdout
    assert "mean" not in alone.stdout


def test_runs_on_other_classes_or_clips(experiment: Experiment, folder: Path) -> None:
    run = write_run(experiment.fused, folder / "a")
    other = write_run(experiment.fused, folder / "b", classes=["0", "1", "seven"])
    refused("compare", run, other, says=f"only 2 in {run}, only seven in {other}")
    moved = write_run(experiment.fused, folder / "c", seed=1, inputs={"store": "e" * 64})
    result = done("compare", run, moved, "--json")
    assert "2 different stores" in result.stderr
    assert result.json()["differing"] == ["store"]


def test_what_is_no_run_is_refused(experiment: Experiment, folder: Path) -> None:
    run = write_run(experiment.fused, folder / "a")
    refused("compare", folder / "nothing", says="does not exist")
    refused("compare", experiment.store, says="is not a run folder")
    refused("compare", run, experiment.confidence, says="is not a run folder")
    refused("compare", run, "--metric", "top1", says="--metric top1 is in none of the runs; they have accuracy,")
    (run / "metrics.jsonl").write_text("{")
    refused("compare", run, says="metrics.jsonl is damaged")
    for name, text, says in (
        ("summary.json", '{"best_epoch": 1, "epochs": 1, "val": 3, "test": null}', "(val: expected object, got int)"),
        ("metrics.jsonl", '{"epoch": 1, "lr": 0.1, "train": [], "val": {}}', "(line 1: train: expected object, got"),
    ):
        broken = write_run(experiment.fused, folder / name)
        (broken / name).write_text(text)
        refused("compare", broken, says=f"{name} is damaged {says}")


def test_real_runs_of_both_kinds(experiment: Experiment) -> None:
    result = done("compare", experiment.audio, experiment.visual, experiment.fused)
    record = compare(experiment.audio, experiment.visual, experiment.fused)
    assert [one["name"] for one in record["groups"]] == ["model=audio", "model=visual", "model=joint"]
    summary = json.loads((experiment.fused / "summary.json").read_text())
    fused = record["groups"][2]
    assert fused["test"]["audio_accuracy"]["mean"] == summary["test"]["audio_accuracy"]
    assert fused["runs"][0]["best_epoch"] == summary["best_epoch"]
    assert "audio_accuracy" not in record["groups"][0]["test"]
    row = next(line for line in result.stdout.split("test, mean")[1].splitlines() if line.startswith(" A "))
    assert row.split()[3:5] == ["-", "-"]
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


# --- files ---------------------------------------------------------------------------------------------------------


def test_csv_and_markdown(experiment: Experiment, folder: Path) -> None:
    runs = write_runs(experiment.fused, folder / "a", [0.5, 0.6], fusion="sum")
    runs += write_runs(experiment.fused, folder / "b", [0.7], fusion="gated")
    files = ("--csv", folder / "t.csv", "--markdown", folder / "t.md")
    result = done("compare", *runs, *files)
    assert result.stdout.split() == [str(folder / "t.csv"), str(folder / "t.md")]
    with (folder / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["seed"], row["fusion"], float(row["test_accuracy"])) for row in rows] == [
        ("A", "0", "sum", 0.5),
        ("A", "1", "sum", 0.6),
        ("B", "0", "gated", 0.7),
    ]
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert float(rows[0]["val_loss"]) == summary["val"]["loss"]
    assert (folder / "t.md").read_text().startswith("<!-- avpt compare -->\n")
    means, differing = markdown_tables(folder / "t.md")
    assert means[0][:4] == ["", "group", "n", "test accuracy"]
    assert [row[:4] for row in means[1:]] == [
        ["A", "fusion=sum", "2", "0.550 ± 0.071"],
        ["B", "fusion=gated", "1", "0.700"],
    ]
    assert differing == [["", "fusion"], ["A", "sum"], ["B", "gated"]]
    assert "No comparison is tested: that takes 3 seeds" in (folder / "t.md").read_text()

    before = {path: path.read_bytes() for path in folder.glob("t.*")}
    done("compare", *runs, *files)
    assert {path: path.read_bytes() for path in folder.glob("t.*")} == before
    refused("compare", *runs[:2], *files, says="holds another comparison")
    done("compare", *runs[:2], *files, "--overwrite")
    assert (folder / "t.csv").read_bytes() != before[folder / "t.csv"]
    (folder / "mine.csv").write_text("dear diary")
    refused("compare", *runs, "--csv", folder / "mine.csv", "--overwrite", says="was not written by avpt")
    refused("compare", *runs, "--markdown", folder / "mine.csv", says="was not written by avpt")
    (folder / "mine.md").write_text("| group | of mine |\n")
    refused("compare", *runs, "--markdown", folder / "mine.md", "--overwrite", says="was not written by avpt")
    refused("compare", *runs, "--csv", folder, says="was not written by avpt")


def test_a_whole_comparison_in_markdown(experiment: Experiment, folder: Path) -> None:
    """Two groups of three seeds, one metric: means, spread, what differs and the test, worked out by scipy."""
    plain, other = [0.61, 0.64, 0.58], [0.71, 0.69, 0.66]
    runs = write_runs(experiment.fused, folder / "a", plain, curve=(0.2, 0.5))
    runs += write_runs(experiment.fused, folder / "b", other, curve=(0.2, 0.7), fusion="sum", lr=0.25)
    out = folder / "t.md"
    done("compare", *runs, "--metric", "accuracy", "--markdown", out)
    means, differing, tests = markdown_tables(out)
    shown = [f"{np.mean(values):.3f} ± {tstd(values):.3f}" for values in (plain, other)]
    own = read_run(experiment.fused).config
    assert means == [
        ["", "group", "n", "test accuracy", "val accuracy"],
        ["A", f"fusion={own['fusion']}", "3", shown[0], "0.500 ± 0.000"],
        ["B", "fusion=sum", "3", shown[1], "0.700 ± 0.000"],
    ]
    assert differing == [["", "fusion", "lr"], ["A", own["fusion"], f"{own['lr']:g}"], ["B", "sum", "0.25"]]
    found = ttest_rel(other, plain)
    low, high = found.confidence_interval(0.95)
    difference = f"{np.mean(other) - np.mean(plain):+.4f}"
    assert 0.001 < found.pvalue < 0.05
    assert tests == [
        ["", "seeds", "difference", "95 % interval", "p", "Holm's p"],
        ["B - A", "3", difference, f"{low:+.3f} to {high:+.3f}", *[f"{found.pvalue:.3f}"] * 2],
    ]
    assert out.read_text(encoding="utf-8").endswith("1 comparison: Holm's p takes all of them together into account.\n")


def test_a_metric_that_is_not_defined(experiment: Experiment, folder: Path) -> None:
    """The area under the curve of classes that no clip has, or all: None everywhere, or in one run."""
    runs = write_runs(experiment.fused, folder / "a", [0.5, 0.6, 0.7])
    runs += write_runs(experiment.fused, folder / "b", [0.6, 0.6, 0.9], lr=0.5)
    for number, run in enumerate(runs):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((run / "summary.json").read_text())
        for values in (*(row["val"] for row in rows), summary["val"], summary["test"]):
            values |= {"auc": None, "map": None if number == 0 else 0.25 * number}
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "summary.json").write_text(json.dumps(summary))
    metrics = ("--metric", "map", "--metric", "auc")
    files = ("--csv", folder / "t.csv", "--markdown", folder / "t.md", "--plot", folder / "plots")
    first, second = compare(*runs, *metrics)["groups"]
    assert first["test"] == {"map": {"mean": pytest.approx(0.375), "std": pytest.approx(tstd([0.25, 0.5])), "n": 2}}
    assert second["val"]["map"]["n"] == 3
    told = done("compare", *runs, *metrics).stdout
    assert "0.375 ± 0.177" in told
    assert "No comparison is tested" in told  # two seeds are left
    assert [line for line in told.splitlines() if "auc" in line] == []
    done("compare", *runs, *metrics, *files)
    with (folder / "t.csv").open(newline="") as file:
        assert [row["test_auc"] for row in csv.DictReader(file)] == [""] * 6
    columns, row, _ = markdown_tables(folder / "t.md")[0]
    assert columns[3:] == ["test map", "val map"]
    assert row[2:] == ["3", "0.375 ± 0.177", "0.375 ± 0.177"]
    done("compare", *runs)  # all metrics


def test_names_that_mean_something_in_markdown(experiment: Experiment, folder: Path) -> None:
    """A group alone is called by its folder, which may hold anything."""
    run = write_run(experiment.fused, folder / "a|b" / "`<i>*")
    done("compare", run, "--markdown", folder / "t.md")
    name = markdown_tables(folder / "t.md")[0][1][1]
    assert re.search(r"(?<!\\)[|<*`]", name) is None
    assert re.sub(r"\\(.)", r"\1", name) == str(run)


def test_curves_are_drawn_once(experiment: Experiment, folder: Path) -> None:
    runs = write_runs(experiment.fused, folder / "a", [0.5, 0.6])
    result = done("compare", *runs, "--plot", folder / "plots")
    names = [Path(line).name for line in result.stdout.split()]
    assert names == ["val-accuracy.png", "val-accuracy.pdf", "val-loss.png", "val-loss.pdf"]
    before = {path: path.read_bytes() for path in (folder / "plots").iterdir()}
    done("compare", *runs, "--plot", folder / "plots")
    assert {path: path.read_bytes() for path in (folder / "plots").iterdir()} == before
    other = write_run(experiment.fused, folder / "b", lr=0.5, curve=(0.9, 0.1))
    refused("compare", *runs, other, "--plot", folder / "plots", says="is another figure")


def test_many_options_stay_within_the_terminal(experiment: Experiment, folder: Path) -> None:
    """Nothing is cut off: every name and value is there, in as many tables as it takes."""
    changes: dict[str, Any] = {
        "encoder_lr_scale": 0.25,
        "label_smoothing": 0.125,
        "modality_dropout": 0.375,
        "balanced_sampling": True,
        "warmup_epochs": 7,
        "weight_decay": 0.0625,
    }
    runs = [write_run(experiment.fused, folder / "a"), write_run(experiment.fused, folder / "b", **changes)]
    told = done("compare", *runs).stdout
    assert all(len(line) <= 80 for line in told.splitlines())
    table = told.split("options that differ", 1)[1]
    for name, value in changes.items():
        assert name in table
        assert {True: "yes"}.get(value, str(value)) in table


@pytest.mark.parametrize("columns", ["200", "60"])
def test_a_width_that_is_set(
    experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """COLUMNS makes no line longer than 80 characters, and where it is less nothing is lost."""
    monkeypatch.setenv("COLUMNS", columns)
    deep = folder / ("long" * 12)
    groups = [(fusion, scale) for fusion in ("sum", "gated") for scale in (0.1234567, 0.7654321)]
    runs = [
        write_run(
            experiment.fused,
            deep / f"{fusion}-{scale}-{seed}",
            seed=seed,
            test=test,
            fusion=fusion,
            encoder_lr_scale=scale,
        )
        for fusion, scale in groups
        for seed, test in enumerate((0.1 + scale, 0.111, 0.1222 + scale / 9))
        if (fusion, seed) != ("sum", 2)  # so that there is more to say than fits into a line
    ]
    begun = write_run(experiment.fused, deep / "begun", seed=7, epochs=2, curve=[0.9], finished=False)
    told = done("compare", *runs, begun).stdout
    assert [line for line in told.splitlines() if len(line) > 80] == []
    squeezed = "".join(told.split())
    for value in (
        "9 of 10 comparisons are not tested",
        "encoder_lr_scale",
        "0.123457",
        "0.765432",
        "gated",
        "unfinished",
    ):
        assert value.replace(" ", "") in squeezed
    for line in done("compare", *runs, begun, "--json").json()["groups"]:
        for split in ("test", "val"):
            for metric, found in line[split].items():
                assert metric == "top5" or f"{found['mean']:.3f}" in told  # which says nothing of three classes


# --- properties ------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_by_its_definition(p_values: list[float | None]) -> None:
    adjusted = group_tests.holm(p_values)
    known = [p for p in p_values if p is not None]
    for p, found in zip(p_values, adjusted, strict=True):
        if p is None:
            assert found is None
            continue
        # the highest, over those that are not above it, of p times the number of those that are not below it
        expected = max(min(1.0, q * (len(known) - sum(r < q for r in known))) for q in known if q <= p)
        assert found == pytest.approx(expected)


RECORDS = st.fixed_dictionaries(
    {"lr": st.sampled_from([0.1, 0.2])}, optional={"audio": st.sampled_from(["a" * 64, "b" * 64, "as visual"])}
)


@given(st.lists(st.tuples(RECORDS, st.integers(0, 3)), min_size=1, max_size=7))
def test_every_run_is_in_one_group_with_its_own_options(runs: list[tuple[dict[str, Any], int]]) -> None:
    options, seeds = [run[0] for run in runs], [run[1] for run in runs]
    groups = group_runs(options, seeds)
    assert sorted(i for group in groups for i in group.members) == list(range(len(runs)))
    for group in groups:
        assert len({json.dumps(options[i].get("lr")) for i in group.members}) == 1
        if group.pooled:
            assert len({seeds[i] for i in group.members}) == len(group.members)
        else:
            assert all(options[i] == group.options for i in group.members)
    names = name_groups([group.options for group in groups])
    told = [name for name in names if name]
    assert len(set(told)) == len(told)


def test_a_curve_of_runs_of_other_lengths() -> None:
    assert group_tests.mean_curve([[1.0, 2.0, 3.0], [3.0]]) == [2.0, 2.0, 3.0]
    assert group_tests.mean_curve([]) == []
