"""The training methods through the commands: each has its effect, is recorded, and is refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    ARCH,
    PATCHES,
    STORE_OPTIONS,
    TRAIN_OPTIONS,
    Experiment,
    assert_consistent,
    avpt,
    digit_rows,
    done,
    files_of,
    finetune,
    fuse,
    input_of,
    job,
    lines,
    near,
    write_manifest,
)
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from avpt.loading.dataset import ClipDataset
from avpt.loading.loader import Loader
from avpt.models.checkpoint import load_encoder
from avpt.models.encoder import Classifier
from avpt.options import FuseConfig
from avpt.store.store import Store

State = dict[str, Tensor]
Options = tuple[str, ...]


def recorded(run: Path) -> dict[str, Any]:
    """Options that the model's header names."""
    with safe_open(run / "model.safetensors", "pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()["avpt"])["config"]
    return config


def equal(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def unimodal(experiment: Experiment, *options: str, modality: str = "visual") -> tuple[str | Path, ...]:
    init = experiment.visual_init if modality == "visual" else experiment.audio_init
    return (*finetune(experiment, modality, init), "--epochs", "1", *options)


def masked(experiment: Experiment, *options: str) -> tuple[str | Path, ...]:
    return (
        *(*fuse(experiment), "--confidence", experiment.confidence, "--mask-threshold", "0.1"),
        *("--epochs", "1", *options),
    )


@pytest.fixture(scope="module")
def plain_runs(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One epoch without any of the methods."""
    folder = tmp_path_factory.mktemp("plain")
    commands = {"visual": unimodal(experiment), "fused": masked(experiment)}
    for name, command in commands.items():
        done(*command, "--out", folder / name)
    return {name: folder / name for name in commands}


@pytest.fixture(scope="module")
def plain(plain_runs: dict[str, Path]) -> dict[str, State]:
    """Tensors after that epoch."""
    return {name: load_file(run / "last.safetensors") for name, run in plain_runs.items()}


# --- each has its effect -----------------------------------------------------------------------------------------

EVAL: Options = ("--dynamics", "eval")
UNIMODAL: dict[str, tuple[Options, dict[str, Any]]] = {
    "ema": (("--ema", "0.5"), {"ema": 0.5}),
    "smoothing": (("--label-smoothing", "0.2"), {"label_smoothing": 0.2}),
    "mixup": (("--mixup", "0.4", *EVAL), {"mixup": 0.4, "dynamics": "eval"}),
    "scale": (("--encoder-lr-scale", "0.1"), {"encoder_lr_scale": 0.1}),
    "frozen": (("--freeze-encoders", "--ema", "0.9"), {"freeze_encoders": True, "ema": 0.9}),
    "balanced": (("--balanced-sampling", *EVAL), {"balanced_sampling": True}),
}


@pytest.mark.parametrize("name", UNIMODAL)
def test_a_method_changes_the_result_and_is_recorded(
    experiment: Experiment, plain: dict[str, State], tmp_path: Path, name: str
) -> None:
    options, config = UNIMODAL[name]
    run = tmp_path / "run"
    command = (*unimodal(experiment, *options), "--out", run)
    done(*command)
    found = load_file(run / "last.safetensors")
    assert found.keys() == plain["visual"].keys()
    assert not equal(found, plain["visual"])
    assert recorded(run).items() >= config.items()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert done(*command).stdout == f"{run}\n"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    refused = avpt(*unimodal(experiment, *(EVAL if "eval" in options else ())), "--out", run)
    assert refused.code == 1
    assert next(iter(config)) in refused.error
    if name == "frozen":
        start = load_file(experiment.visual_init)
        for key, value in found.items():
            if key.startswith("encoder."):  # running statistics too
                assert value.numpy().tobytes() == start[key.removeprefix("encoder.")].numpy().tobytes(), key
            else:
                assert not torch.equal(value, plain["visual"][key])
        assert lines(run)[0]["gradient_norm"] == {"encoder": 0.0}


FUSED: dict[str, tuple[Options, dict[str, Any]]] = {
    "ogm": (
        ("--balance", "ogm-ge", "--ogm-alpha", "0.8", "--ogm-window", "0", "7"),
        {"balance": "ogm-ge", "ogm_alpha": 0.8, "ogm_window": [0, 7]},
    ),
    "dropout": (("--modality-dropout", "0.5"), {"modality_dropout": 0.5}),
    "frozen": (("--freeze-encoders",), {"freeze_encoders": True}),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_method_of_joint_training_changes_the_result_and_is_recorded(
    experiment: Experiment, plain: dict[str, State], tmp_path: Path, name: str
) -> None:
    options, config = FUSED[name]
    run = tmp_path / "run"
    command = (*masked(experiment, *options), "--out", run)
    done(*command)
    found = load_file(run / "last.safetensors")
    assert not equal(found, plain["fused"])
    assert recorded(run).items() >= config.items()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert done(*command, "--workers", "2").stdout == f"{run}\n"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    refused = avpt(*masked(experiment), "--out", run)
    assert refused.code == 1
    assert next(iter(config)) in refused.error
    if name == "frozen":
        for modality in ("audio", "visual"):
            stage1 = load_file(getattr(experiment, modality) / "model.safetensors")
            kept = {key.removeprefix(f"{modality}."): value for key, value in found.items() if key.startswith(modality)}
            wanted = {key.removeprefix("encoder."): v for key, v in stage1.items() if key.startswith("encoder.")}
            assert equal(kept, wanted)
    if name == "ogm":
        factors = lines(run)[0]["gradient_factor"]
        assert factors.keys() == {"audio", "visual"}
        assert 0 <= min(factors.values()) < 1  # 0 where the other is far behind
        assert max(factors.values()) <= 1
        other = tmp_path / "later"  # outside the window nothing is changed, and the factor is 1
        done(*masked(experiment, "--balance", "ogm-ge", "--ogm-window", "1", "1"), "--out", other)
        assert equal(load_file(other / "last.safetensors"), plain["fused"])
        assert lines(other)[0]["gradient_factor"] == {"audio": 1.0, "visual": 1.0}
    else:
        assert "gradient_factor" not in lines(run)[0]


@pytest.mark.parametrize(
    "fusion", ["gated", *(pytest.param(one, marks=pytest.mark.slow) for one in ("concat", "sum", "film"))]
)
def test_masking_goes_with_every_fusion_balance_and_dropout(
    experiment: Experiment, tmp_path: Path, fusion: str
) -> None:
    run = tmp_path / "run"
    methods = ("--balance", "ogm-ge", "--modality-dropout", "0.5", "--accumulate", "2", "--clip-grad", "5")
    done(*masked(experiment, "--fusion", fusion, *methods), "--out", run)
    assert_consistent(run)
    assert load_file(run / "mask.safetensors")["visual_ratio"].any()
    assert min(lines(run)[0]["gradient_factor"].values()) < 1


def test_a_run_that_gets_no_better_stops_and_stays_stopped(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = unimodal(experiment, "--freeze-encoders", "--lr", "0", "--epochs", "9", "--patience", "2")
    told = done(*command, "--out", run)
    assert "no better epoch in 2: the run ends here (--patience)" in told.stderr
    assert len(lines(run)) == 3
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["epochs"], summary["best_epoch"]) == (3, 1)
    before = files_of(run)
    assert "finished, stopped early after 3 of 9 epochs" in " ".join(done("info", run).stdout.split())
    again = done(*command, "--out", run)
    assert again.stdout == f"{run}\n"
    assert "no better" not in again.stderr
    longer = done(*command, "--epochs", "12", "--out", run)  # there is nothing that more of them would add
    assert "epoch 4" not in longer.stderr
    assert files_of(run)["metrics.jsonl"] == before["metrics.jsonl"]


@pytest.mark.slow  # tests/test_training.py has it for a plain run
def test_workers_change_nothing(experiment: Experiment, tmp_path: Path) -> None:
    alike: tuple[tuple[str, tuple[str | Path, ...]], ...] = (
        ("mixed", unimodal(experiment, "--mixup", "0.4", "--balanced-sampling", *EVAL, "--flip")),
        ("fused", masked(experiment, "--balance", "ogm-ge", "--modality-dropout", "0.4", "--ema", "0.8")),
    )
    for name, command in alike:
        found = []
        for workers in ("0", "2"):
            run = tmp_path / f"{name}-{workers}"
            done(*command, "--workers", workers, "--out", run)
            found.append(files_of(run))
        assert found[0] == found[1]


def test_several_processes_keep_the_average_of_the_first(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = job(tmp_path, *unimodal(experiment, "--ema", "0.6", modality="audio"), "--out", run)
    assert [result.code for result in results] == [0, 0], results[0].stderr
    model = Classifier(load_encoder(run, "audio").encoder, 3)
    model.load_state_dict(load_file(run / "model.safetensors"))
    store = Store(experiment.store)
    spec = store.input_spec(image_size=32, num_frames=1)
    clips = ClipDataset(store.indices["val"], ["audio"], spec, "jpeg")
    (batch,) = Loader(clips, 64, device=torch.device("cpu"), workers=0).epoch(0)
    with torch.inference_mode():
        logits = model.eval()(*batch.inputs)
    found = load_file(run / "predictions.safetensors")["val_logits"]
    near(found, logits, 1e-4)
    assert lines(run)[0]["val"]["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-3
    )


def test_several_processes_balance_and_withhold(experiment: Experiment, tmp_path: Path) -> None:
    methods = ("--balance", "ogm-ge", "--ogm-alpha", "0.5", "--modality-dropout", "0.3", "--ema", "0.5")
    results = job(tmp_path, *masked(experiment, *methods), "--json", "--out", tmp_path / "run")
    assert [result.code for result in results] == [0, 0], results[0].stderr
    assert min(lines(tmp_path / "run")[0]["gradient_factor"].values()) < 1


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mixup", "0.4"), "--mixup shows the model no clip as it is"),
        (("--balanced-sampling",), "--balanced-sampling repeats and skips clips"),
        (("--mixup", "0", *EVAL), "--mixup is 0; it must be over 0"),
        (("--mixup", "nan", *EVAL), "--mixup is nan"),
        (("--ema", "1"), "--ema is 1; the average would never move"),
        (("--ema", "-0.1"), "--ema is -0.1; it must be 0 to 1"),
        (("--patience", "0"), "--patience is 0; it must be 1 to 100000"),
        (("--label-smoothing", "1"), "--label-smoothing is 1; it must be 0 to 0.99"),
        (("--encoder-lr-scale", "-1"), "--encoder-lr-scale is -1; it must be 0 to 1000"),
    ],
)
def test_nonsense_is_refused_in_a_line(experiment: Experiment, tmp_path: Path, options: Options, says: str) -> None:
    result = avpt(*unimodal(experiment, *options), "--out", tmp_path / "run")
    assert (result.code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert says in line
    if "train" in says or "clip" in says:
        assert line.endswith("add --dynamics eval")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--balance", "ogm-ge", "--freeze-encoders"), "with --freeze-encoders they do not"),
        (("--balance", "ogm-ge", "--ogm-window", "5", "2"), "--ogm-window is 5 2; the first epoch comes first"),
        (("--balance", "ogm-ge", "--ogm-window", "-1", "2"), "--ogm-window is -1; it must be 0 to 100000"),
        (("--balance", "ogm-ge", "--ogm-alpha", "-1"), "--ogm-alpha is -1; it must be 0 to 1000"),
        (("--modality-dropout", "1.5"), "--modality-dropout is 1.5; it must be 0 to 1"),
        (("--freeze-encoders", "--encoder-lr-scale", "0.1"), "--encoder-lr-scale does nothing beside"),
        (("--balanced-sampling",), "add --dynamics eval"),
    ],
)
def test_nonsense_in_joint_training_is_refused_in_a_line(
    experiment: Experiment, tmp_path: Path, options: Options, says: str
) -> None:
    result = avpt(*masked(experiment, *options), "--out", tmp_path / "run")
    assert (result.code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert says in line
    assert not (tmp_path / "run").exists()


def test_a_branch_that_has_seen_nothing_is_not_frozen(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    commands = (
        unimodal(experiment, "--freeze-encoders", modality="audio"),
        (*masked(experiment, "--freeze-encoders"), "--audio", experiment.audio_init),
    )
    for command in commands:
        result = avpt(*command, "--out", run)
        assert result.code == 1
        (line,) = result.stderr.splitlines()
        assert f"{experiment.audio_init} is fresh from `avpt init --bn abri`" in line
        assert not run.exists()
    blend = tmp_path / "blend.safetensors"  # a plain BatchNorm that keeps the pre-trained statistics
    done("init", "--modality", "audio", "--arch", ARCH, "--weights", experiment.visual, "--bn", "blend", "--out", blend)
    result = done(
        *finetune(experiment, "audio", blend), "--epochs", "1", "--freeze-encoders", "--out", tmp_path / "blend"
    )
    assert str(blend) not in result.stderr
    reset = tmp_path / "reset.safetensors"
    done("init", "--modality", "audio", "--arch", ARCH, "--weights", experiment.visual, "--bn", "reset", "--out", reset)
    result = done(
        *finetune(experiment, "audio", reset), "--epochs", "1", "--freeze-encoders", "--out", tmp_path / "reset"
    )
    assert f"warning: {reset} has BatchNorm statistics that no data has moved yet" in result.stderr
    done(*finetune(experiment, "audio", experiment.audio), "--epochs", "1", "--freeze-encoders", "--out", run)


def test_ogm_ges_own_options_are_recorded_with_it_alone(plain_runs: dict[str, Path]) -> None:
    assert not {"ogm_alpha", "ogm_window"} & recorded(plain_runs["fused"]).keys()
    config = FuseConfig(store=Path(), audio=Path(), visual=Path(), out=Path(), mask="none", balance="ogm-ge")
    assert config.record().items() >= {"ogm_alpha": 0.1, "ogm_window": (0, 50)}.items()


# --- several labels a clip, through all five steps ---------------------------------------------------------------


@pytest.fixture(scope="module")
def several(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and runs on clips with one or two labels."""
    folder = tmp_path_factory.mktemp("several")
    rows = digit_rows()
    for number, row in enumerate(rows):
        row["label"] = f"digit {row['label']}" + (";even" if row["label"] in "02" and number % 2 else "")
    manifest = write_manifest(folder / "manifest.csv", rows)
    store = folder / "store"
    done("preprocess", manifest, *STORE_OPTIONS, "--multi-label", "--out", store)
    extra: dict[str, Options] = {
        "audio": ("--label-smoothing", "0.1", "--ema", "0.3", *EVAL),
        "visual": ("--mixup", "0.4", "--balanced-sampling", *EVAL),
    }
    for modality, options in extra.items():
        init = experiment.audio_init if modality == "audio" else experiment.visual_init
        chosen = ("--modality", modality, "--init", init, "--out", folder / modality)
        done("finetune-unimodal", store, *chosen, *TRAIN_OPTIONS, *options)
    runs = ("--audio", folder / "audio", "--visual", folder / "visual")
    done("score-confidence", *runs, *PATCHES, "--out", folder / "confidence.safetensors")
    fusing = ("fuse-train", store, *runs, "--confidence", folder / "confidence.safetensors", "--mask-threshold", "0.05")
    done(*fusing, *PATCHES, *TRAIN_OPTIONS, "--modality-dropout", "0.3", "--out", folder / "fused")
    return folder


def test_metrics_of_several_labels_are_scikit_learns(several: Path) -> None:
    for name in ("audio", "visual", "fused"):
        record = json.loads((several / name / "summary.json").read_text(encoding="utf-8"))
        tensors = load_file(several / name / "predictions.safetensors")
        for split in ("val", "test"):
            labels, logits = (tensors[f"{split}_{what}"].double().numpy() for what in ("labels", "logits"))
            assert labels.shape == logits.shape == (9, 4)
            assert labels.any(0).all()
            # from logits: chances of a model that is sure of itself are all 0 or 1
            assert record[split]["map"] == pytest.approx(average_precision_score(labels, logits, average="macro"))
            assert record[split]["auc"] == pytest.approx(roc_auc_score(labels, logits, average="macro"))
            loss = (np.logaddexp(0, logits) - labels * logits).mean()
            assert record[split]["loss"] == pytest.approx(loss, rel=1e-5)
            top = logits.argmax(1)
            assert record[split]["accuracy"] == pytest.approx(labels[range(9), top].mean())
            if name == "fused":
                total = tensors[f"{split}_audio_logits"] + tensors[f"{split}_visual_logits"]
                near(total, tensors[f"{split}_logits"], 1e-4)
                for modality in ("audio", "visual"):
                    top = tensors[f"{split}_{modality}_logits"].argmax(1)
                    assert record[split][f"{modality}_accuracy"] == pytest.approx(labels[range(9), top].mean())


def test_confidence_in_several_labels_and_its_masks(several: Path) -> None:
    store = Store(several / "store")
    confidence = load_file(several / "confidence.safetensors")
    dynamics = {name: load_file(several / name / "dynamics.safetensors") for name in ("audio", "visual")}
    for name, recorded_dynamics in dynamics.items():
        assert recorded_dynamics["probability"].shape == (2, 18)
        torch.testing.assert_close(confidence[f"{name}_confidence"], recorded_dynamics["probability"].mean(0))
    c = {name: confidence[f"{name}_confidence"].double() for name in dynamics}
    mask = load_file(several / "fused" / "mask.safetensors")
    for name, other in (("audio", "visual"), ("visual", "audio")):
        expected = [
            0.5 * float(torch.tanh(mine - its)) if mine > its and mine >= 0.05 else 0.0
            for mine, its in zip(c[name], c[other], strict=True)
        ]
        assert mask[f"{name}_ratio"].tolist() == pytest.approx(expected, abs=1e-6)
    assert any(mask[f"{name}_ratio"].any() for name in dynamics)

    # the clean pass after the last epoch, by hand: the mean probability of a clip's own labels
    clips = ClipDataset(store.indices["train"], ["visual"], input_of(store), "jpeg")
    (batch,) = Loader(clips, 64, device=torch.device("cpu"), workers=0).epoch(0)
    model = Classifier(load_encoder(several / "visual", "visual").encoder, 4)
    model.load_state_dict(load_file(several / "visual" / "last.safetensors"))
    with torch.inference_mode():
        logits = model.eval()(*batch.inputs)
        chances = logits.sigmoid()
    mean = [chances[i][batch.labels[i] > 0].mean().item() for i in range(18)]
    torch.testing.assert_close(dynamics["visual"]["probability"][1], torch.tensor(mean), rtol=1e-4, atol=1e-5)
    right = [bool(batch.labels[i][logits[i].argmax()]) for i in range(18)]
    assert dynamics["visual"]["correct"][1].tolist() == right


def test_ogm_ge_needs_one_label_a_clip(several: Path) -> None:
    command = ("fuse-train", several / "store", "--audio", several / "audio", "--visual", several / "visual")
    options = ("--mask", "none", "--balance", "ogm-ge", *TRAIN_OPTIONS, "--out", several / "balanced")
    result = avpt(*command, *options)
    assert result.code == 1
    (line,) = result.stderr.splitlines()
    assert "--balance ogm-ge is made for one label a clip" in line
    assert not (several / "balanced").exists()
