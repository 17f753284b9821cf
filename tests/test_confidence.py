"""Dynamics, confidence and mask ratios against the formulas of the method, written out here."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from helpers import PATCHES, Experiment, avpt, done
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from avpt.confidence.files import check_scored_from, read_confidence
from avpt.confidence.formulas import mask_ratios, spread, statistics
from avpt.errors import ArtifactError
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.loading.masking import patches_to_mask
from avpt.types import MODALITIES, Modality

STATISTICS = ("confidence", "variability", "correctness", "forgetting")
TINY = 1e-6

chances = st.floats(0, 1, width=32)
shares = st.floats(0, 1)


def names(tensors: dict[str, np.ndarray]) -> list[str]:
    flat, offsets = tensors["id_bytes"].tobytes(), tensors["id_offsets"].tolist()
    return [flat[low:high].decode() for low, high in pairwise(offsets)]


def packed(ids: list[str]) -> dict[str, np.ndarray]:
    encoded = [name.encode() for name in ids]
    offsets = np.array([sum(map(len, encoded[:i])) for i in range(len(ids) + 1)], np.int64)
    return {"id_bytes": np.frombuffer(b"".join(encoded), np.uint8), "id_offsets": offsets}


def by_hand(
    audio: list[float],
    visual: list[float],
    mask: str,
    rule: str,
    rho: dict[Modality, float],
    eta: float,
    tau: float,
) -> dict[str, list[float]]:
    """Section 3 of the method, clip by clip."""
    ratios: dict[str, list[float]] = {"audio": [], "visual": []}
    for c_a, c_v in zip(audio, visual, strict=True):
        r_a = r_v = 0.0
        if rule == "dominant":
            if c_a - c_v > 0 and c_a >= tau:
                r_a = rho["audio"] * math.tanh(eta * (c_a - c_v))
            if c_v - c_a > 0 and c_v >= tau:
                r_v = rho["visual"] * math.tanh(eta * (c_v - c_a))
        elif c_v >= tau:
            r_a = rho["audio"] * math.tanh(eta * (c_a - c_v))
        elif c_a >= tau:
            r_v = rho["visual"] * math.tanh(eta * (c_v - c_a))
        ratios["audio"].append(r_a)
        ratios["visual"].append(r_v)
    if mask == "uniform":
        ratios = {name: [sum(values) / len(values)] * len(values) for name, values in ratios.items()}
    if mask == "none":
        ratios = {name: [0.0] * len(values) for name, values in ratios.items()}
    return {name: [max(0.0, value) for value in values] for name, values in ratios.items()}


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**31))
def test_statistics_are_numpys(epochs: int, clips: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probability = random.random((epochs, clips), np.float32)
    correct = random.random((epochs, clips)) < 0.5
    found = statistics(torch.from_numpy(probability), torch.from_numpy(correct))
    assert tuple(found) == STATISTICS
    for clip in range(clips):
        mean = math.fsum(probability[:, clip].tolist()) / epochs
        spread = math.sqrt(math.fsum((p - mean) ** 2 for p in probability[:, clip].tolist()) / epochs)
        assert float(found["confidence"][clip]) == pytest.approx(mean, abs=1e-7)
        assert float(found["variability"][clip]) == pytest.approx(spread, abs=1e-7)
        assert float(found["correctness"][clip]) == pytest.approx(correct[:, clip].sum() / epochs, abs=1e-7)
        forgotten = sum(before and not after for before, after in pairwise(correct[:, clip].tolist()))
        assert float(found["forgetting"][clip]) == forgotten
    assert all(column.dtype == torch.float32 for column in found.values())


def test_constant_dynamics_have_no_variability() -> None:
    found = statistics(torch.full((5, 2), 0.1), torch.ones(5, 2, dtype=torch.bool))
    assert found["variability"].tolist() == [0.0, 0.0]
    assert found["confidence"].tolist() == torch.full((2,), 0.1).tolist()
    assert found["correctness"].tolist() == [1.0, 1.0]


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(chances, chances) | chances.map(lambda c: (c, c)), min_size=1, max_size=8),
    rho=st.tuples(shares, shares),
    eta=st.floats(0, 50),
    tau=shares,
    pick=st.none() | st.tuples(st.integers(0, 7), st.integers(0, 1)),
    mask=st.sampled_from(["adaptive", "uniform", "none"]),
    rule=st.sampled_from(["dominant", "released"]),
)
def test_ratios_are_the_methods(
    pairs: list[tuple[float, float]],
    rho: tuple[float, float],
    eta: float,
    tau: float,
    pick: tuple[int, int] | None,
    mask: str,
    rule: str,
) -> None:
    if pick is not None:  # exactly the confidence of one clip
        tau = pairs[pick[0] % len(pairs)][pick[1]]
    audio, visual = [a for a, _ in pairs], [v for _, v in pairs]
    ratio: dict[Modality, float] = {"audio": rho[0], "visual": rho[1]}
    found = mask_ratios(
        {"audio": torch.tensor(audio), "visual": torch.tensor(visual)},
        mask=mask,  # type: ignore[arg-type]
        rule=rule,  # type: ignore[arg-type]
        ratio=ratio,
        eta=eta,
        threshold=tau,
    )
    expected = by_hand(audio, visual, mask, rule, ratio, eta, tau)
    assert found.keys() == expected.keys()
    for modality, values in found.items():
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx(expected[modality], abs=TINY)
        if mask == "adaptive":
            for value, exact in zip(values.tolist(), expected[modality], strict=True):
                assert (value > 0) == (exact > 0)
    if rule == "released" and mask == "adaptive":
        assert not found["visual"].any()
    if eta <= 1:
        assert all(float(found[m].max()) <= ratio[m] * math.tanh(1) + TINY for m in ratio)


@given(st.lists(st.tuples(chances, chances), min_size=1, max_size=20), shares, st.floats(0, 100), shares)
def test_the_released_rule_never_masks_the_visual_side(
    pairs: list[tuple[float, float]], rho: float, eta: float, tau: float
) -> None:
    confidence: dict[Modality, torch.Tensor] = {
        "audio": torch.tensor([a for a, _ in pairs]),
        "visual": torch.tensor([v for _, v in pairs]),
    }
    both: dict[Modality, float] = {"audio": rho, "visual": rho}
    masks: tuple[Literal["adaptive", "uniform"], ...] = ("adaptive", "uniform")
    for mask in masks:
        ratios = mask_ratios(
            confidence,
            mask=mask,
            rule="released",
            ratio=both,
            eta=eta,
            threshold=tau,
        )
        assert not ratios["visual"].any()


def test_a_clip_easy_by_sound_has_its_sound_masked() -> None:
    confidence: dict[Modality, torch.Tensor] = {
        "audio": torch.tensor([0.9, 0.1, 0.5, 0.49, 0.6]),
        "visual": torch.tensor([0.1, 0.9, 0.25, 0.0, 0.6]),
    }
    ratio: dict[Modality, float] = {"audio": 0.5, "visual": 1.0}
    ratios = mask_ratios(confidence, mask="adaptive", rule="dominant", ratio=ratio, eta=1.0, threshold=0.5)
    expected = [0.5 * math.tanh(0.8), 0, 0.5 * math.tanh(0.25), 0, 0]
    assert ratios["audio"].tolist() == pytest.approx(expected, abs=TINY)
    assert ratios["visual"].tolist() == pytest.approx([0, math.tanh(0.8), 0, 0, 0], abs=TINY)


@pytest.mark.parametrize(("rho", "patches", "masked"), [(0.7, 100, 70), (0.29, 100, 29), (0.57, 100, 57), (0.3, 10, 3)])
def test_a_ratio_is_the_number_that_was_given(rho: float, patches: int, masked: int) -> None:
    """Not the one next to it in float32 (0.7 of 100 was 69), nor the product that float64 rounds down."""
    sure: dict[Modality, torch.Tensor] = {"audio": torch.ones(3), "visual": torch.zeros(3)}
    both: dict[Modality, float] = {"audio": rho, "visual": rho}
    masks: tuple[Literal["adaptive", "uniform"], ...] = ("adaptive", "uniform")
    for mask in masks:
        ratios = mask_ratios(sure, mask=mask, rule="dominant", ratio=both, eta=100.0, threshold=0.5)
        assert patches_to_mask(ratios["audio"], patches).tolist() == [masked] * 3
        assert patches_to_mask(ratios["audio"].float(), patches).tolist() == [masked] * 3  # as mask.safetensors has it
    below = torch.tensor([math.nextafter(rho - 1e-9, 0)], dtype=torch.float64)
    assert patches_to_mask(below, patches).tolist() == [masked - 1]


# --- two runs that can't be compared, or are not the right ones ----------------------------------------------------


def run(path: Path, modality: Modality, epochs: int = 3, **differing: object) -> Path:
    """A finished stage-1 run as far as `score-confidence` looks at it."""
    spec = {"modality": modality, "multi_label": differing.pop("multi_label", False)}
    spec["input"] = {
        **{"sample_rate": 16000, "mel_bins": 32, "spectrogram_frames": 48, "pad": "zero", "fps": 1.0, "max_frames": 1},
        **{"frame_size": 28, "mean": 0.0, "std": 1.0, "image_size": 32, "num_frames": 1},
    }
    header = Header(
        kind="dynamics",
        spec=spec,
        classes=list(differing.pop("classes", ("a", "b"))),  # type: ignore[call-overload]
        inputs={"store": str(differing.pop("store", "one")), "init": modality},
        config={"modality": modality, "dynamics": "train", **differing},
    )
    (path / "checkpoint").mkdir(parents=True)
    (path / "summary.json").write_text("{}")
    probability = torch.full((epochs, 2), 0.25 if modality == "audio" else 0.5)
    rows = {"probability": probability, "correct": probability > 0.3}
    artifacts.save(path / "dynamics.safetensors", header, rows | artifacts.pack_ids(["x", "y"]))
    return path


def scoring(folder: Path, **differing: object) -> tuple[str | Path, ...]:
    return (
        *("score-confidence", "--audio", run(folder / "audio", "audio")),
        *("--visual", run(folder / "visual", "visual", **differing)),  # type: ignore[arg-type]
        *(*PATCHES, "--out", folder / "confidence.safetensors"),
    )


@pytest.mark.parametrize(
    ("differing", "says"),
    [
        ({"dynamics": "eval"}, "audio recorded with --dynamics train, "),
        ({"classes": ("a", "c", "d")}, "learnt different classes (only one knows b, c, d)"),
        ({"multi_label": True}, "audio has one label a clip"),
    ],
)
def test_runs_whose_confidence_means_another_thing_are_refused(
    tmp_path: Path, differing: dict[str, object], says: str
) -> None:
    refused = avpt(*scoring(tmp_path, **differing))
    assert refused.code == 1
    assert says in refused.error
    assert f"{tmp_path / 'visual'} " in refused.error
    assert not (tmp_path / "confidence.safetensors").exists()


@pytest.mark.parametrize(
    ("differing", "says"),
    [
        ({"epochs": 5}, "audio recorded over 3 epochs, "),
        ({"store": "two"}, "were trained on different stores"),
        ({"label_smoothing": 0.1}, "audio was trained with --label-smoothing none, "),
        ({"mixup": 0.4}, "audio was trained with --mixup none, "),
    ],
)
def test_runs_of_which_one_may_be_surer_for_another_reason_are_told(
    tmp_path: Path, differing: dict[str, object], says: str
) -> None:
    told = done(*scoring(tmp_path, **differing)).stderr
    (line,) = [line for line in told.splitlines() if line.startswith("warning: ") and "patch" not in line]
    assert says in line
    assert str(tmp_path / "visual") in line


def test_runs_alike_are_scored_without_a_word(tmp_path: Path) -> None:
    told = done(*scoring(tmp_path, classes=("b", "a"), label_smoothing=0.0)).stderr
    assert not [line for line in told.splitlines() if line.startswith("warning: ") and "patch" not in line]


def test_confidence_belongs_to_its_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done(*scoring(tmp_path))
    confidence, audio, visual = (tmp_path / name for name in ("confidence.safetensors", "audio", "visual"))
    check_scored_from(confidence, {"audio": audio, "visual": visual / "model.safetensors"})
    assert not caplog.messages
    check_scored_from(confidence, {"audio": tmp_path / "init.safetensors", "visual": visual})
    assert "init.safetensors can't be checked: there are no dynamics beside it" in caplog.text
    other = run(tmp_path / "longer", "visual", epochs=4)
    for wrong in (other, other / "last.safetensors"):
        with pytest.raises(ArtifactError, match=r"was not scored from --visual .*longer.* as it is now"):
            check_scored_from(confidence, {"audio": audio, "visual": wrong})


def joined(audio: Path, visual: Path, skip: int = 0) -> tuple[list[str], dict[str, np.ndarray]]:
    """Numpy's statistics of two runs, joined by clip id in the audio run's order."""
    tensors = {"audio": load_file(audio / "dynamics.safetensors"), "visual": load_file(visual / "dynamics.safetensors")}
    ids = {modality: names(values) for modality, values in tensors.items()}
    both = [name for name in ids["audio"] if name in ids["visual"]]
    columns = {}
    for modality, values in tensors.items():
        order = [ids[modality].index(name) for name in both]
        probability = values["probability"].astype(np.float64)[skip:, order]
        columns[f"{modality}_confidence"] = probability.mean(0)
        columns[f"{modality}_variability"] = probability.std(0)
        columns[f"{modality}_correctness"] = values["correct"][skip:, order].mean(0)
        columns[f"{modality}_forgetting"] = (np.diff(values["correct"][skip:, order].astype(int), axis=0) < 0).sum(0)
    return both, columns


def assert_artifact(path: Path, ids: list[str], columns: dict[str, np.ndarray]) -> None:
    tensors = load_file(path)
    assert tensors.keys() == columns.keys() | {"id_bytes", "id_offsets"}
    assert names(tensors) == ids
    for name, expected in columns.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_allclose(tensors[name], expected, rtol=0, atol=1e-7, err_msg=name)


def shuffled_copy(run: Path, copy: Path, drop: int, add: tuple[str, ...] = ()) -> Path:
    """A run on other clips: the dynamics reversed, without the first clips, and with clips of its own."""
    shutil.copytree(run / "checkpoint", copy / "checkpoint", ignore=shutil.ignore_patterns("*.pt"))
    shutil.copy(run / "summary.json", copy)
    with safe_open(run / "dynamics.safetensors", "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(run / "dynamics.safetensors")
    ids = names(tensors)[drop:][::-1] + list(add)
    rows = {name: tensors[name][:, drop:][:, ::-1] for name in ("probability", "correct")}
    wide = {name: np.concatenate([value, tensors[name][:, : len(add)]], axis=1) for name, value in rows.items()}
    save_file(wide | packed(ids), copy / "dynamics.safetensors", metadata)
    return copy


def test_artifact_is_the_dynamics_joined_by_id(experiment: Experiment) -> None:
    ids, columns = joined(experiment.audio, experiment.visual)
    assert len(ids) == 18
    assert_artifact(experiment.confidence, ids, columns)


def test_order_of_clips_does_not_matter(experiment: Experiment, tmp_path: Path) -> None:
    visual = shuffled_copy(experiment.visual, tmp_path / "visual", 0)
    out = tmp_path / "confidence.safetensors"
    done("score-confidence", "--audio", experiment.audio, "--visual", visual, "--out", out)
    assert_artifact(out, *joined(experiment.audio, experiment.visual))


def test_skip_epochs_and_csv(experiment: Experiment, tmp_path: Path) -> None:
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    out, table = tmp_path / "confidence.safetensors", tmp_path / "tables" / "confidence.csv"
    assert done("score-confidence", *runs, "--skip-epochs", "1", "--csv", table, "--out", out).stdout == f"{out}\n"
    ids, columns = joined(experiment.audio, experiment.visual, skip=1)
    assert_artifact(out, ids, columns)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", *(f"{m}_{name}" for m in ("audio", "visual") for name in STATISTICS)]
    assert [row["id"] for row in rows] == ids
    stored = load_file(out)
    for name in columns:
        assert np.array_equal(np.array([row[name] for row in rows]).astype(np.float32), stored[name])

    refused = avpt("score-confidence", *runs, "--skip-epochs", "2")
    assert refused.code == 1
    assert "--skip-epochs is 2" in refused.error


def test_missing_clips(experiment: Experiment, tmp_path: Path) -> None:
    visual = shuffled_copy(experiment.visual, tmp_path / "visual", 3, ("other/clip-é",))
    runs = ("score-confidence", "--audio", experiment.audio, "--visual", visual)
    lost = names(load_file(experiment.visual / "dynamics.safetensors"))[:3]
    out = tmp_path / "confidence.safetensors"
    refused = avpt(*runs, "--out", out)
    assert refused.code == 1
    assert not out.exists()
    for told in (*lost, "other/clip-é", "--missing skip"):
        assert told in refused.error

    done(*runs, "--missing", "skip", "--out", out)
    ids, columns = joined(experiment.audio, visual)
    assert len(ids) == 15
    assert_artifact(out, ids, columns)

    strangers = shuffled_copy(experiment.visual, tmp_path / "strangers", 18, ("a", "b"))
    nothing = avpt("score-confidence", "--audio", experiment.audio, "--visual", strangers, "--missing", "skip")
    assert nothing.code == 1
    assert "no clip in common" in nothing.error


def test_summary_means_and_shares(experiment: Experiment) -> None:
    found = done("score-confidence", "--audio", experiment.audio, "--visual", experiment.visual, "--json").json()
    ids, columns = joined(experiment.audio, experiment.visual)
    audio, visual = columns["audio_confidence"], columns["visual_confidence"]
    expected = {name: float(column.mean()) for name, column in columns.items()}
    expected |= {"audio_dominates": float((audio > visual).mean()), "visual_dominates": float((visual > audio).mean())}
    assert found.pop("clips") == len(ids)
    assert found == pytest.approx(expected, abs=TINY)


@pytest.mark.parametrize("rule", ["dominant", "released"])
def test_preview_tells_what_would_be_masked(experiment: Experiment, rule: str) -> None:
    runs = ("--audio", experiment.audio, "--visual", experiment.visual)
    options = ("--mask-ratio-audio", "1", "--mask-ratio-visual", "0.1", "--mask-threshold", "0.2", "--mask-rule", rule)
    shown = done("score-confidence", *runs, *options, *PATCHES).stdout
    title, table = next(
        (line, shown[shown.index(line) :]) for line in io.StringIO(shown) if line.startswith("what --mask adaptive")
    )
    assert rule in title
    _, columns = joined(experiment.audio, experiment.visual)
    audio, visual = columns["audio_confidence"].tolist(), columns["visual_confidence"].tolist()
    ratios = by_hand(audio, visual, "adaptive", rule, {"audio": 1.0, "visual": 0.1}, 1.0, 0.2)
    assert any(ratios["audio"])
    for modality, patches in (("audio", 8 * 8), ("visual", 8 * 8)):
        some = [ratio for ratio in ratios[modality] if ratio > 0]
        (row,) = (line.split() for line in table.splitlines() if line.split()[:1] == [modality])
        floored = sum(int(ratio * patches) == 0 for ratio in some)
        mean = f"{sum(some) / len(some):.3f}" if some else "-"
        expected = [str(len(some)), f"({len(some) / 18:.1%})", mean, f"{max(ratios[modality]):.3f}", str(patches)]
        assert row == [modality, *expected, str(floored)]


def test_the_fused_run_masks_by_the_rule(experiment: Experiment) -> None:
    scored, masked = load_file(experiment.confidence), load_file(experiment.fused / "mask.safetensors")
    assert names(masked) == names(load_file(experiment.fused / "dynamics.safetensors"))
    order = [names(scored).index(name) for name in names(masked)]
    audio, visual = (scored[f"{modality}_confidence"][order].tolist() for modality in ("audio", "visual"))
    expected = by_hand(audio, visual, "adaptive", "dominant", {"audio": 0.5, "visual": 0.5}, 1.0, 0.1)
    assert any(expected["audio"])
    assert any(expected["visual"])
    for modality, values in expected.items():
        assert masked[f"{modality}_ratio"].dtype == np.float32
        assert masked[f"{modality}_ratio"].tolist() == pytest.approx(values, abs=TINY)


def test_a_csv_that_is_not_ours_is_left_alone(experiment: Experiment, tmp_path: Path) -> None:
    runs = ("score-confidence", "--audio", experiment.audio, "--visual", experiment.visual)
    (tmp_path / "mine.csv").write_text("precious\n")
    for overwrite in ((), ("--overwrite",)):
        result = avpt(*runs, "--csv", tmp_path / "mine.csv", *overwrite)
        assert result.code == 1
        assert "mine.csv was not written by avpt" in result.error
    assert (tmp_path / "mine.csv").read_text() == "precious\n"
    done(*runs, "--csv", tmp_path / "ours.csv")
    done(*runs, "--csv", tmp_path / "ours.csv")
    result = avpt(*runs, "--csv", tmp_path / "ours.csv", "--skip-epochs", "1")
    assert (result.code, "--overwrite to replace it" in result.error) == (1, True)
    done(*runs, "--csv", tmp_path / "ours.csv", "--skip-epochs", "1", "--overwrite")


def test_uniform_leaves_clips_without_confidence_unmasked(experiment: Experiment, tmp_path: Path) -> None:
    tensors = load_file(experiment.confidence)
    with safe_open(experiment.confidence, "np") as file:
        record = json.loads(file.metadata()["avpt"])
    ids = names(tensors)
    kept = {name: values[: len(ids) - 4] for name, values in tensors.items() if not name.startswith("id_")}
    record["config"]["missing"] = "skip"
    save_file(kept | packed(ids[:-4]), tmp_path / "c.safetensors", {"avpt": json.dumps(record)})
    certain, known = read_confidence(tmp_path / "c.safetensors", ids)
    ratios = mask_ratios(
        certain, mask="uniform", rule="dominant", ratio=dict.fromkeys(MODALITIES, 1.0), eta=1.0, threshold=0.0
    )
    for modality, values in spread(ratios, known, len(ids)).items():
        other = "visual" if modality == "audio" else "audio"
        gap = kept[f"{modality}_confidence"].astype(float) - kept[f"{other}_confidence"]
        expected = float(np.where(gap > 0, np.tanh(gap), 0).mean())
        assert values[:-4].tolist() == pytest.approx([expected] * (len(ids) - 4), rel=1e-5)
        assert values[-4:].tolist() == [0.0] * 4
