"""Every balancing method through the command line: trained, killed and resumed, used afterwards; and one's own."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import (
    STORE_OPTIONS,
    Experiment,
    avpt,
    digit_rows,
    done,
    files_of,
    fork,
    fuse,
    lines,
    refused,
    summary,
    write_manifest,
)
from kills import chance
from safetensors.torch import load_file
from torch import Tensor

from avpt.commands.fuse_train import find_balancing
from avpt.errors import ConfigError
from avpt.files import artifacts
from avpt.machine.own_classes import import_class
from avpt.models.checkpoint import load_network
from avpt.options import BALANCING, FuseConfig
from avpt.runs import training_run
from avpt.training import run_state
from avpt.training.balancing.method import Balancing, Joint
from avpt.training.balancing.settings import read_settings
from avpt.training.balancing.uniform import Uniform

PAGE = Path(__file__).parent.parent / "avpt" / "guide" / "balancing.md"
EARLY: dict[str, tuple[str, ...]] = {  # options with which a method acts within the first epochs
    "opm": ("begin=1", "p=1"),
    "smv": ("begin=1",),
    "ogm-ge-late": ("begin=1",),
    "relearning": ("after=1,2",),
    "g-blend": ("every=1",),
}
ALIKE = ("uniform", "opm", "dgl", "g2d", "ogm-ge", "ogm-ge-late")  # a checkpoint holds nothing of theirs
KILLED_ELSEWHERE = ("g-blend", "smv")  # in their own tests
METHODS = {name: import_class(named, Balancing, "--balance") for name, named in BALANCING.items()}


ODD = """
from avpt.balancing import Balancing
class Untyped(Balancing):
    def __init__(self, joint, *, strength=1.0): ...
class Unnamed(Balancing):
    def __init__(self, joint: "Elsewhere", *, strength: float = 1.0): ...
class Positional(Balancing):
    def __init__(self, joint, more, *, strength: float = 1.0): ...
"""


def training(experiment: Experiment, name: str, *options: str) -> tuple[str | Path, ...]:
    given = [word for setting in EARLY.get(name, ()) for word in ("--balance-set", setting)]
    return (*fuse(experiment), "--mask", "none", "--balance", name, *given, *options)


def recorded(run: Path) -> dict[str, Any]:
    header, _ = artifacts.read_header(run / "model.safetensors")
    return dict(header.config)


def kill_after(saves: int, *command: str | Path) -> None:
    """Run a command in a copy of this process, which SIGKILL ends once it has saved so many checkpoints."""

    def body() -> int:
        module: Any = run_state
        save, done_so_far = module.save_checkpoint, 0

        def counting(*arguments: Any) -> None:
            nonlocal done_so_far
            save(*arguments)
            done_so_far += 1
            if done_so_far == saves:
                os.kill(os.getpid(), signal.SIGKILL)

        module.save_checkpoint = counting
        return avpt(*command).code

    _, status = os.waitpid(fork(body), 0)
    assert os.WIFSIGNALED(status)


@pytest.fixture(scope="module")
def unbalanced(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The model that the same training makes without a method."""
    run = tmp_path_factory.mktemp("none") / "run"
    done(*fuse(experiment), "--mask", "none", "--epochs", "3", "--out", run)
    return load_file(run / "last.safetensors")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in (*ALIKE, *KILLED_ELSEWHERE))) for name in BALANCING],
)
def test_killed_and_resumed_comes_to_the_same_bytes(
    experiment: Experiment, unbalanced: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    command = training(experiment, name, "--checkpoint-every", "1", "--epochs", "3")
    whole, run = tmp_path / "whole", tmp_path / "run"
    done(*command, "--out", whole)
    moments = chance()
    between_epochs = METHODS[name].begin_epoch is not Balancing.begin_epoch
    for _ in range(2 if between_epochs else 1):  # a run that goes on is killed too where it begins an epoch otherwise
        kill_after(moments.randrange(1, 5), *command, "--out", run)
    done(*command, "--out", run)
    assert files_of(run) == files_of(whole)

    state = load_file(run / "model.safetensors")
    model = load_network(run, "fused").network
    assert model.state_dict().keys() == {key for key in state if not key.startswith("balance.")}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    last = load_file(run / "last.safetensors")
    changed = {key for key, value in unbalanced.items() if not torch.equal(value, last[key])}
    assert any(key.startswith("audio.") for key in changed)
    assert any(key.startswith("visual.") for key in changed)
    assert recorded(run)["balance"] == name


@pytest.mark.parametrize("name", BALANCING)
def test_every_method_goes_with_the_rest(experiment: Experiment, tmp_path: Path, name: str) -> None:
    """With FusT's masks, absent modalities, batches in parts, the average of the weights, another fusion."""
    masked = ("--confidence", experiment.confidence, "--mask-threshold", "0.1", "--modality-dropout", "0.3")
    rest = ("--accumulate", "2", "--ema", "0.5", "--clip-grad", "5", "--fusion", "film", "--epochs", "2")
    given = [word for setting in EARLY.get(name, ()) for word in ("--balance-set", setting)]
    run = tmp_path / "run"
    done(*fuse(experiment), "--balance", name, *given, *masked, *rest, "--out", run)
    losses = [row["train"]["loss"] for row in lines(run)]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert done("evaluate", run, experiment.store, "--workers", "0", "--json").json()["test"] == summary(run)["test"]


@pytest.mark.parametrize("name", ["umt", "g2d"])
def test_teachers_need_not_be_what_training_starts_at(experiment: Experiment, tmp_path: Path, name: str) -> None:
    fresh = replace(experiment, audio=experiment.audio_init, visual=experiment.visual_init)
    command = (*fuse(fresh), "--mask", "none", "--balance", name, "--out", tmp_path / "run")
    refused(*command, says=f"{experiment.audio_init} is not trained yet")
    both = ("--teacher-audio", experiment.audio, "--teacher-visual", experiment.visual)
    refused(*command, *both[:3], experiment.audio, says="is no visual model; name one with --teacher-visual")
    done(*command, *both)
    header, _ = artifacts.read_header(tmp_path / "run" / "model.safetensors")
    assert header.inputs["teacher_visual"] == artifacts.model_hash(experiment.visual)
    other = (*fuse(fresh), "--mask", "none", *both, "--out", tmp_path / "other")
    refused(*other, says="--balance is none; name the method")
    refused(*other, "--balance", "uniform", says="--balance uniform learns from no stage-1 run")


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.through_encoders])
def test_frozen_encoders_are_refused(experiment: Experiment, tmp_path: Path, name: str) -> None:
    command = (*training(experiment, name), "--freeze-encoders", "--out", tmp_path / "run")
    refused(*command, says=f"--balance {name} changes how the encoders learn")


@pytest.mark.parametrize("name", ["opm", "smv", "relearning", "ogm-ge-late"])
def test_a_method_that_never_begins_is_told(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def stop(*arguments: Any) -> None:
        raise ConfigError("before the first step")

    monkeypatch.setattr(training_run, "train", stop)
    told = avpt(*fuse(experiment), "--mask", "none", "--balance", name, "--epochs", "1", "--out", tmp_path / "run")
    assert re.search(rf"warning: --balance {name} begins with epoch \d+, counted from 0, behind the last", told.stderr)
    assert told.error == "avpt: before the first step"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.one_label])
def test_several_labels_are_refused(name: str) -> None:
    config = FuseConfig(store=Path(), audio=Path(), visual=Path(), out=Path(), mask="none", balance=name)
    store = SimpleNamespace(multi_label=True)
    with pytest.raises(ConfigError, match=f"--balance {name} is made for one label a clip"):
        find_balancing(config, store)  # type: ignore[arg-type]


def test_teachers_are_of_the_store_its_classes_and_the_encoder(
    experiment: Experiment, resnet18: Experiment, tmp_path: Path
) -> None:
    taught = ("--mask", "none", "--balance", "umt", "--out", tmp_path / "run")
    other = tmp_path / "other"
    done("preprocess", write_manifest(tmp_path / "m.csv", digit_rows()[::2]), "--out", other, *STORE_OPTIONS)
    refused(*fuse(replace(experiment, store=other)), *taught, says="was trained on another store")
    two = write_manifest(tmp_path / "two.csv", [row for row in digit_rows() if row["label"] != "2"])
    done("preprocess", two, "--out", tmp_path / "two", *STORE_OPTIONS)
    refused(*fuse(replace(experiment, store=tmp_path / "two")), *taught, says="was trained for other classes")
    wider = ("--teacher-audio", resnet18.audio, "--teacher-visual", resnet18.visual)
    refused(*fuse(replace(experiment, store=resnet18.store)), *wider, *taught, says="has 512 features, the audio")


# --- one's own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with the modules of the page."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        name, _, code = block.partition("\n")
        assert len(code.splitlines()) < 60
        (tmp_path / name.removeprefix("# ")).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in ("behind", "bilinear", "broken", "leaves", "odd"):
        sys.modules.pop(module, None)


def test_the_pages_method_runs_as_it_stands(experiment: Experiment, own: Path) -> None:
    options = ("--mask", "none", "--balance", "behind:Behind", "--balance-set", "strength=2")
    done(*fuse(experiment), *options, "--out", own / "run")
    done(*fuse(experiment), "--mask", "none", "--out", own / "none")
    assert recorded(own / "run")["balance"] == "behind:Behind"
    assert recorded(own / "run")["balance_set"] == ["strength=2"]
    behind = load_file(own / "run" / "model.safetensors")["balance.behind"]
    assert behind.min() == 0 < behind.max() < 1
    assert "behind:Behind" in done("compare", own / "run", own / "none").stdout
    kill_after(2, *fuse(experiment), *options, "--checkpoint-every", "1", "--out", own / "again")
    done(*fuse(experiment), *options, "--out", own / "again")
    assert files_of(own / "again") == files_of(own / "run")


def test_the_pages_fusion_runs_once_it_is_trusted(
    experiment: Experiment, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own / "run"
    done(*fuse(experiment), "--mask", "none", "--fusion", "bilinear:Bilinear", "--out", run)
    sys.modules.pop("bilinear")
    use = ("evaluate", run, experiment.store, "--workers", "0")
    refused(*use, says="set AVPT_FUSION=bilinear:Bilinear")
    assert "bilinear" not in sys.modules
    monkeypatch.setenv("AVPT_FUSION", "bilinear:Bilinear")
    assert done(*use, "--json").json()["test"] == summary(run)["test"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--balance", "unifrom"), "did you mean uniform?"),
        (("--balance", "uniform,ogm-ge"), "is not one of none, "),
        (("--balance", "nowhere:Method"), "can't be imported (ModuleNotFoundError"),
        (("--balance", "broken:Method"), "can't be imported (ZeroDivisionError"),
        (("--balance", "behind:Forwards"), "behind has no Forwards; it has Behind"),
        (("--balance", "behind:nn"), "is not a class that derives from"),
        (("--balance", "behind:Behind", "--balance-set", "power=2"), "has no option power; it has strength (1)"),
        (("--balance", "uniform", "--balance-set", "gamma=much"), "gamma is a number, as in gamma=1"),
        (("--balance", "uniform", "--balance-set", "gamma"), "is not NAME=VALUE"),
        (("--balance", "uniform", "--balance-set", "gamma=2", "--balance-gamma", "2"), "has an option of its own"),
        (("--balance", "ogm-ge", "--balance-gamma", "2"), "--balance ogm-ge has no option gamma"),
        (("--balance-gamma", "2"), "--balance is none; name the method"),
        (("--balance", "ogm-ge", "--balance-set", "alpha=0.8"), "--balance-set alpha has an option of its own"),
        (("--balance", "g-blend", "--balance-set", "every=0"), "every must be 1 to 100000"),
        (("--balance", "agm", "--balance-set", "alpha=100"), "alpha must be 0 to 8"),
        (("--balance", "uniform", "--balance-set", "gamma=-5"), "gamma must be 0 to 1000"),
        (("--balance", "behind:Behind", "--balance-set", "strength=nan"), "strength must be finite"),
        (("--balance", "umt", "--balance-set", "window=9,1"), "the first epoch of a window comes first"),
        (("--balance", "odd:Untyped"), "option strength needs a default"),
        (("--balance", "odd:Unnamed"), "types of its options can't be read"),
        (("--balance", "odd:Positional"), "can't be made of the run and its options"),
        (("--balance", "leaves:Method"), "can't be imported (SystemExit"),
        (("--fusion", "bilinear:Linear"), "bilinear has no Linear; it has Bilinear"),
        (("--fusion", "behind:torch"), "is not a class"),
        (("--fusion", "attention"), "is not one of concat, sum, film, gated"),
    ],
)
def test_what_is_refused(experiment: Experiment, own: Path, options: tuple[str, ...], says: str) -> None:
    (own / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (own / "leaves.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    (own / "odd.py").write_text(ODD, encoding="utf-8")
    refused(*fuse(experiment), "--mask", "none", *options, "--out", own / "run", says=says)
    assert not (own / "run").exists()


def test_two_methods_at_once(experiment: Experiment, tmp_path: Path) -> None:
    result = avpt(*fuse(experiment), "--balance", "uniform", "--balance=ogm-ge", "--out", tmp_path / "run")
    assert result.code == 2
    assert "--balance is given twice; a run takes one" in result.stderr


def test_settings_are_of_the_types_that_a_method_says() -> None:
    class Several(Uniform):
        def __init__(
            self,
            joint: Joint,
            *,
            often: int = 2,
            sure: bool = False,
            word: str = "a",
            window: tuple[int, int] = (0, 5),
            at: tuple[float, ...] = (),
        ) -> None: ...

    typed = ("often=3", "sure=yes", "word=b=c", "window=1,2", "at=1,2.5,3")
    expected = {"often": 3, "sure": True, "word": "b=c", "window": (1, 2), "at": (1.0, 2.5, 3.0)}
    assert read_settings(Several, "several", typed, {}) == expected
    for wrong in ("often=2.5", "sure=perhaps", "window=1", "window=1,2,3", "at=x"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            read_settings(Several, "several", (wrong,), {})
