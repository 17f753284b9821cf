"""Data maps: drawn, selected from, and exported to other tools, whose formulas are written out here."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import STORE_OPTIONS, Experiment, avpt, done, files_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from avpt import options
from avpt.confidence.exports import equivalent_logits
from avpt.confidence.formulas import rank_clips
from avpt.figures.data_map import draw_data_map
from avpt.store.manifest import read_manifest

MODALITIES = ("audio", "visual")


def names(tensors: dict[str, np.ndarray], prefix: str = "") -> list[str]:
    flat, offsets = tensors[f"{prefix}id_bytes"].tobytes(), tensors[f"{prefix}id_offsets"].tolist()
    return [flat[low:high].decode() for low, high in pairwise(offsets)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def score(experiment: Experiment, *options: str | Path) -> tuple[str | Path, ...]:
    return ("score-confidence", "--audio", experiment.audio, "--visual", experiment.visual, *options)


# --- the figure --------------------------------------------------------------------------------------------------


def test_a_panel_for_each_modality_has_every_clip_where_it_belongs() -> None:
    rng = np.random.default_rng(0)
    values = {f"{m}_{name}": rng.random(30) for m in MODALITIES for name in ("confidence", "variability")}
    values |= {f"{m}_correctness": rng.choice([0, 0.5, 1], 30) for m in MODALITIES}
    figure = draw_data_map(values)
    assert [axes.get_title() for axes in figure.axes[:2]] == list(MODALITIES)
    for axes in figure.axes[:2]:
        modality = axes.get_title()
        drawn = np.concatenate([np.asarray(points.get_offsets()) for points in axes.collections])
        colours = np.concatenate([np.asarray(points.get_array()) for points in axes.collections])
        assert len(axes.collections) == 3
        expected = zip(*(values[f"{modality}_{n}"] for n in ("variability", "confidence", "correctness")), strict=True)
        assert sorted((*place, c) for place, c in zip(drawn.tolist(), colours.tolist(), strict=True)) == sorted(
            expected
        )


def test_the_plot_is_written_once_and_replaces_no_other_file(experiment: Experiment, tmp_path: Path) -> None:
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        plot = tmp_path / "maps" / f"map.{suffix}"
        assert done(*score(experiment, "--plot", plot)).stdout == f"{plot}\n"
        assert plot.read_bytes().startswith(start)
    before = files_of(tmp_path)
    done(*score(experiment, "--plot", tmp_path / "maps" / "map.svg"))
    assert files_of(tmp_path) == before
    other = avpt(*score(experiment, "--skip-epochs", "1", "--plot", plot))
    assert (other.code, "is another figure; choose another --plot, or --overwrite" in other.error) == (1, True)
    done(*score(experiment, "--skip-epochs", "1", "--plot", plot, "--overwrite"))
    plot.write_text("mine")
    foreign = avpt(*score(experiment, "--plot", plot, "--overwrite"))
    assert (foreign.code, "was not written by avpt" in foreign.error) == (1, True)
    out = tmp_path / "confidence.safetensors"  # finished, and the plot is still to be drawn
    for _ in range(2):
        assert done(*score(experiment, "--out", out, "--plot", tmp_path / "late.png")).stdout == f"{out}\n"
    assert (tmp_path / "late.png").exists()


# --- selecting ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 0.5])), min_size=1))
def test_clips_are_ranked_by_their_region(clips: list[tuple[float, float]]) -> None:
    confidence, variability = (torch.tensor(values) for values in zip(*clips, strict=True))
    tie = torch.arange(len(clips)).flip(0)
    keys = {"easy": -confidence, "hard": confidence, "ambiguous": -variability}
    for region, key in keys.items():
        ranked = rank_clips(region, confidence, variability, tie).tolist()  # type: ignore[arg-type]
        assert ranked == sorted(range(len(clips)), key=lambda i, key=key: (float(key[i]), -i))  # type: ignore[misc]


@pytest.mark.parametrize("by", ["both", "audio", "visual"])
@pytest.mark.parametrize(("region", "share"), [("easy", 0.5), ("hard", 0.34), ("ambiguous", 0.33), ("hard", 1.0)])
def test_a_manifest_has_the_selected_clips_and_all_others_to_test_on(
    experiment: Experiment, tmp_path: Path, region: str, share: float, by: str
) -> None:
    out = tmp_path / "elsewhere" / "selected.csv"
    chosen = ("--select", region, "--share", str(share), "--select-by", by, "--manifest", out)
    result = done(*score(experiment, *chosen, "--json")).json()
    scored = load_file(experiment.confidence)
    ids, name = names(scored), "variability" if region == "ambiguous" else "confidence"
    sides = MODALITIES if by == "both" else (by,)
    value = np.mean([scored[f"{side}_{name}"].astype(float) for side in sides], axis=0)
    count = max(1, round(share * len(ids)))
    assert result["selected"] == count
    original, selected = read_manifest(experiment.manifest), read_manifest(out)
    train = {clip.id for clip in selected.split("train")}
    assert len(train) == count
    inside, outside = (
        [v for clip_id, v in zip(ids, value, strict=True) if (clip_id in train) is member] for member in (True, False)
    )
    if outside:
        assert min(inside) >= max(outside) if region in ("easy", "ambiguous") else max(inside) <= min(outside)
    for split in ("val", "test"):
        held = [clip.id for clip in original.clips if clip.split == split]
        assert [clip.id for clip in selected.split(split)][: len(held)] == held or split == "val"
    for clip in selected.clips:
        (same,) = [other for other in original.clips if other.id == clip.id]
        for kind in ("video", "audio", "frames"):
            here, there = getattr(clip, kind), getattr(same, kind)
            assert (here and here.resolve()) == (there and there.resolve())


def test_what_was_set_aside_to_choose_the_epoch_by_becomes_val(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    done(*score(experiment, "--select", "easy", "--share", "1", "--manifest", out))
    predictions = load_file(experiment.audio / "predictions.safetensors")
    assert {row["id"] for row in read(out) if row["split"] == "val"} == set(names(predictions, "val_"))


def test_the_manifest_is_reused_refused_or_replaced(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "m.csv"
    command = score(experiment, "--select", "hard", "--manifest", out)
    assert done(*command).stdout == f"{out}\n"
    before = files_of(tmp_path)
    assert "was there already" in done(*command).stderr
    assert files_of(tmp_path) == before
    out.with_name("m.csv.json").unlink()  # as if it had been killed there
    done(*command)
    assert files_of(tmp_path) == before
    other = avpt(*command, "--share", "0.5")
    assert (other.code, "share: 0.33 there, 0.5 now" in other.error) == (1, True)
    assert "choose another --manifest" in other.error
    done(*command, "--share", "0.5", "--overwrite")
    out.unlink()  # then its record is nobody's
    done(*command)
    assert files_of(tmp_path) == before
    out.unlink()
    done(*command, "--share", "0.5")
    out.write_text("mine")
    for overwrite in ((), ("--overwrite",)):
        assert "was not written by this command, or changed since" in avpt(*command, "--share", "0.5", *overwrite).error
    assert out.read_text() == "mine"
    own = avpt(*score(experiment, "--select", "hard", "--manifest", experiment.manifest, "--overwrite"))
    assert (own.code, "is the manifest that the clips come from" in own.error) == (1, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--select", "easy"), "--select does nothing without --manifest"),
        (("--manifest", "m.csv"), "--manifest does nothing without --select"),
        (("--share", "0.5"), "--share and --select-by do nothing without --select"),
        (("--select", "easy", "--manifest", "m.csv", "--share", "0"), "--share is 0; it must be over 0 and at most 1"),
        (("--select", "easy", "--manifest", "m.csv", "--share", "1.1"), "--share is 1.1; it must be 0 to 1"),
        (("--select", "easy", "--manifest", "m.txt"), "its name must end in .csv"),
        (("--select", "easy", "--manifest", "m.csv", "--csv", "m.csv"), "--csv and --manifest are both m.csv"),
        (("--plot", "map.jpg"), "its name must end in one of .png, .pdf, .svg"),
        (("--export", "cleanlab"), "--export does nothing without --export-to"),
        (("--export-to", "x"), "--export-to does nothing without --export"),
    ],
)
def test_what_makes_no_sense_is_one_line(experiment: Experiment, options: tuple[str, ...], says: str) -> None:
    result = avpt(*score(experiment, *options))
    assert result.code == 1
    (line,) = result.stderr.splitlines()
    assert says in line


def test_the_words_that_select_and_export_take() -> None:
    assert options.choices(options.ScoreConfig, "select") == ("easy", "ambiguous", "hard")
    assert options.choices(options.ScoreConfig, "export") == ("cartography", "cleanlab")


# --- exports -----------------------------------------------------------------------------------------------------


def softmax(logits: list[float]) -> np.ndarray:
    """In float32, as cartography's torch does."""
    exact = np.exp(np.array(logits, np.float32) - np.float32(max(logits)))
    return np.asarray(exact / exact.sum(dtype=np.float32))


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**31))
def test_equivalent_logits_have_the_probability_and_the_answer(num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for scale in (0.0, 1e-7, 1.0, 30.0, 150.0):
        true = (rng.normal(size=num_classes) * scale).astype(np.float32)
        label = int(rng.integers(num_classes))
        chance, right = float(softmax(true.tolist())[label]), bool(true.argmax() == label)
        logits = equivalent_logits(chance, right, label, num_classes)
        assert float(softmax(logits)[label]) == pytest.approx(chance, abs=2e-7, rel=1e-5)
        assert (int(np.argmax(logits)) == label) == right
        assert all(map(math.isfinite, logits))


def cartography(folder: Path) -> dict[str, tuple[float, float, float, int]]:
    """Confidence, variability, correctness and forgetfulness as `train_dy_filtering.py` computes them, by guid."""
    epochs = len(list((folder / "training_dynamics").iterdir()))
    trends: dict[str, list[tuple[float, bool]]] = {}
    for epoch in range(epochs):
        path = folder / "training_dynamics" / f"dynamics_epoch_{epoch}.jsonl"
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            logits = record[f"logits_epoch_{epoch}"]
            right = int(np.argmax(logits)) == record["gold"]
            trends.setdefault(record["guid"], []).append((float(softmax(logits)[record["gold"]]), right))
    found = {}
    for guid, trend in trends.items():
        chances, rights = [chance for chance, _ in trend], [right for _, right in trend]
        forgotten = sum(a and not b for a, b in pairwise(rights)) if any(rights) else 1000
        found[guid] = (float(np.mean(chances)), float(np.std(chances)), float(sum(rights)), forgotten)
    return found


def test_cartography_computes_the_same_statistics(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "cartography"
    command = score(experiment, "--export", "cartography", "--export-to", folder)
    assert done(*command).stdout == f"{folder}\n"
    scored = load_file(experiment.confidence)
    labels = {clip.id: clip.labels[0] for clip in read_manifest(experiment.manifest).clips}
    classes = sorted(set(labels.values()))
    for modality in MODALITIES:
        found = cartography(folder / modality)
        assert list(found) == names(scored)
        epochs = len(load_file(getattr(experiment, modality) / "dynamics.safetensors")["probability"])
        for i, values in enumerate(found.values()):
            assert values[0] == pytest.approx(float(scored[f"{modality}_confidence"][i]), abs=1e-6)
            assert values[1] == pytest.approx(float(scored[f"{modality}_variability"][i]), abs=1e-6)
            assert values[2] == pytest.approx(float(scored[f"{modality}_correctness"][i]) * epochs, abs=1e-6)
            assert values[3] == (scored[f"{modality}_forgetting"][i] if values[2] else 1000)
        lines = (folder / modality / "training_dynamics" / "dynamics_epoch_0.jsonl").read_text().splitlines()
        for record in map(json.loads, lines):
            assert classes[record["gold"]] == labels[record["guid"]]
            assert len(record["logits_epoch_0"]) == len(classes)

    before = files_of(folder)
    assert "was there already" in done(*command).stderr
    (folder / "audio" / "training_dynamics" / "dynamics_epoch_1.jsonl").unlink()  # as if it had been killed there
    done(*command)
    assert files_of(folder) == before
    fewer = avpt(*command, "--skip-epochs", "1")
    assert (fewer.code, "holds another export" in fewer.error) == (1, True)
    done(*command, "--skip-epochs", "1", "--overwrite")  # that tool counts the files: none may be left over
    assert len(files_of(folder)) == len(before) - 2
    (folder / "mine.txt").write_text("mine")
    assert "holds files that avpt did not write (mine.txt)" in avpt(*command, "--overwrite").error


def test_cleanlab_gets_labels_and_probabilities_of_clips_not_trained_on(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "cleanlab"
    done(*score(experiment, "--export", "cleanlab", "--export-to", folder))
    first = files_of(folder)
    assert set(first) == {"audio.npz", "visual.npz"}
    for modality in MODALITIES:
        arrays = np.load(folder / f"{modality}.npz")  # without pickles
        predictions = load_file(getattr(experiment, modality) / "predictions.safetensors")
        assert arrays["ids"].tolist() == names(predictions, "val_") + names(predictions, "test_")
        counts = [len(predictions[f"{split}_labels"]) for split in ("val", "test")]
        assert arrays["split"].tolist() == ["val"] * counts[0] + ["test"] * counts[1]
        logits = np.concatenate([predictions[f"{split}_logits"] for split in ("val", "test")]).astype(float)
        exact = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(arrays["pred_probs"], exact / exact.sum(axis=1, keepdims=True), rtol=1e-12)
        known = {clip.id: clip.labels[0] for clip in read_manifest(experiment.manifest).clips}
        assert [arrays["classes"][label] for label in arrays["labels"]] == [known[i] for i in arrays["ids"].tolist()]
    done(*score(experiment, "--export", "cleanlab", "--export-to", folder, "--overwrite"))
    assert files_of(folder) == first
    done(*score(experiment, "--export", "cartography", "--export-to", folder, "--overwrite"))
    assert not (folder / "audio.npz").exists()


def test_a_store_that_is_gone_is_named(experiment: Experiment, tmp_path: Path) -> None:
    import shutil

    runs = {side: shutil.copytree(getattr(experiment, side), tmp_path / "a" / "b" / "c" / side) for side in MODALITIES}
    for run in runs.values():
        (run / "paths.json").unlink()
    command = ("score-confidence", *(x for side, run in runs.items() for x in (f"--{side}", run)))
    chosen = ("--select", "easy", "--manifest", tmp_path / "m.csv")
    lost = avpt(*command, *chosen)
    assert lost.code == 1
    assert "the store that" in lost.error
    assert "--search" in lost.error
    done(*command, *chosen, "--search", experiment.folder)


def test_classes_that_were_not_chosen_are_not_called_misspelt(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "one.csv"
    said = done(*score(experiment, "--select", "easy", "--share", "0.01", "--manifest", out)).stderr
    assert "which val and test have: training will refuse that; raise --share" in said
    told = avpt("preprocess", out, "--out", tmp_path / "store", "--workers", "1", *STORE_OPTIONS).stderr
    assert "`avpt score-confidence --select` chose none of them; raise its --share" in " ".join(told.split())
    assert "misspelt" not in told
    out.with_name("one.csv.json").unlink()
    assert "misspelt" in avpt("preprocess", out, "--out", tmp_path / "other", "--workers", "1", *STORE_OPTIONS).stderr


@pytest.mark.parametrize(
    "outputs",
    [("--select", "easy", "--manifest", "m.csv"), ("--export", "cartography", "--export-to", "e"), ("--csv", "c.csv")],
)
def test_nothing_is_said_of_patches_where_nothing_is_masked(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...]
) -> None:
    """The clips' spectrograms are 48 x 32, their pictures 32 x 32."""
    monkeypatch.chdir(tmp_path)
    few = ("--audio-patch", "48x32", "--visual-patch", "32")
    assert "warning" in done(*score(experiment, *few)).stderr
    for patches in (few, ("--audio-patch", "64x64"), ()):
        said = done(*score(experiment, *patches, *outputs, "--overwrite")).stderr
        assert "patch" not in said
    assert "warning" in done(*score(experiment, *few, *outputs, "--overwrite", "--out", "c.safetensors")).stderr
