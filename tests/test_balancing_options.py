"""Options of balancing methods and classes of one's own: what is recorded, what it is called, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import STORE_OPTIONS, Experiment, digit_rows, done, fuse, refused, write_manifest
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.files import artifacts
from avpt.models.fusion import recorded_fusion, try_fusion
from avpt.options import BALANCING, FuseConfig
from avpt.options.fuse import OGM_GE, TAUGHT
from avpt.runs.groups import differing_options, name_groups
from avpt.training.balancing.method import Balancing, PlainClips, Step, further_clips, modulated
from avpt.training.balancing.ogm_ge import OgmGe
from avpt.training.balancing.settings import as_recorded, read_settings
from avpt.training.balancing.uniform import Uniform

OWN = """
import torch
from torch import nn
from avpt.balancing import Balancing
class Misnamed(Balancing):
    def modulate(self, step):
        return {"sound": 0.5}
class Plainly(Balancing):
    def __init__(self, joint, strength: float = 1.0):
        super().__init__(joint)
class Narrow(nn.Module):
    def __init__(self, audio, visual, classes):
        super().__init__()
        self.head = nn.Linear(audio + visual, 2)
    def forward(self, audio, visual):
        return self.head(torch.cat([audio, visual], 1))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with a module of one's own."""
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def config(**options: Any) -> FuseConfig:
    paths: dict[str, Any] = {name: Path() for name in ("store", "audio", "visual", "out")}
    return FuseConfig(**paths, mask="none", **options)


@pytest.mark.parametrize("name", ["none", *BALANCING])
def test_options_of_another_method_are_refused(name: str) -> None:
    for option, value in (*OGM_GE.items(), ("teacher_audio", Path("a")), ("teacher_visual", Path("v"))):
        fits = name == "ogm-ge" if option in OGM_GE else name in TAUGHT
        if fits:
            config(balance=name, **{option: value})
        else:
            with pytest.raises(ConfigError, match=f"--balance (is )?{name}|not with {name}"):
                config(balance=name, **{option: value})


def test_what_is_known_without_torch_is_as_the_classes_say() -> None:
    from avpt.machine.own_classes import import_class

    methods = {name: import_class(named, Balancing, "--balance") for name, named in BALANCING.items()}
    assert {*TAUGHT} == {name for name, method in methods.items() if method.taught}
    given = config(balance="ogm-ge").given_to_balance
    assert given == OgmGe.__init__.__kwdefaults__


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--balance", "uniform", "--ogm-alpha", "0.1"), "--ogm-alpha goes with --balance ogm-ge alone, not with unif"),
        (("--balance", "ogm-ge-late", "--ogm-window", "0", "50"), "--ogm-window goes with --balance ogm-ge alone"),
        (("--balance", "mine:"), "'mine:' is not one of none, "),
        (("--fusion", ":Narrow"), "':Narrow' is not one of concat, "),
        (("--balance", "uniform", "--balance-set", "=2"), "--balance-set =2 is not NAME=VALUE"),
        (("--ogm-alpha", "0.8"), "--ogm-alpha is given, but --balance is none; name the method"),
        (("--balance", "mine:Misnamed", "--teacher-audio", "AUDIO"), "mine:Misnamed learns from no stage-1 run"),
        (("--balance", "ogm-ge-late", "--balance-set", "begin=60"), "begins with epoch 60 and ends with 50; set end"),
        (("--balance", "ogm-ge-late", "--balance-set", "end=-1"), "end must be 0 to 100000"),
        (("--balance", "mine:Plainly", "--balance-set", "strength=2"), "strength is no option, not being behind the *"),
        (("--balance", "relearning", "--balance-set", "after="), "after is several values with commas between them"),
        (("--fusion", "mine:Narrow"), "--fusion mine:Narrow makes float32 (2, 2) of the features of two clips"),
    ],
)
def test_what_is_refused(experiment: Experiment, own: Path, options: tuple[str, ...], says: str) -> None:
    given = [str(experiment.audio) if word == "AUDIO" else word for word in options]
    refused(*fuse(experiment), "--mask", "none", *given, "--out", own / "run", says=says)
    assert not (own / "run").exists()


def test_a_store_with_several_labels_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    rows = [row | {"label": f"{row['label']};more"} for row in digit_rows()]
    store = tmp_path / "store"
    done("preprocess", write_manifest(tmp_path / "m.csv", rows), "--multi-label", "--out", store, *STORE_OPTIONS)
    command = [store if word == experiment.store else word for word in fuse(experiment)]
    refused(
        *(*command, "--mask", "none", "--balance", "agm", "--out", tmp_path / "run"),
        says=f"--balance agm is made for one label a clip, {store} has several",
    )


def test_factors_are_of_encoders(experiment: Experiment, own: Path) -> None:
    says = "Misnamed.modulate returned {'sound': 0.5}; it may return factors of audio and visual"
    command = (*fuse(experiment), "--mask", "none", "--balance", "mine:Misnamed", "--epochs", "1")
    refused(*command, "--out", own / "run", says=says)

    class Given(Balancing):
        def __init__(self, factors: Any) -> None:
            nn.Module.__init__(self)
            self.given = factors

        def modulate(self, step: Step) -> dict[str, float]:
            return self.given  # type: ignore[no-any-return]

    step = Step(0, 0, {})
    assert modulated(Given(None), step) == {}
    assert modulated(Given({"visual": torch.tensor(0.5)}), step) == {"visual": 0.5}
    for wrong in ({"audio": "much"}, [1.0, 0.5], 0.5):
        with pytest.raises(ConfigError, match="it may return factors of audio and visual"):
            modulated(Given(wrong), step)


def test_further_clips_are_of_train() -> None:
    class Given(Balancing):
        def __init__(self, further: Any) -> None:
            nn.Module.__init__(self)
            self.given = [further]

        def begin_epoch(self, epoch: int, clips: PlainClips) -> Tensor | None:
            return self.given[0]  # type: ignore[no-any-return]

    clips = PlainClips(lambda split: {})
    assert further_clips(Given(None), 0, clips, 9) is None
    assert further_clips(Given(torch.zeros(0, 3, dtype=torch.int64)), 0, clips, 9) is None
    right = torch.tensor([[8, 1, 0], [0, 0, 1]])
    assert torch.equal(further_clips(Given(right), 0, clips, 9), right)  # type: ignore[arg-type]
    for wrong in ([[9, 1, 0]], [[-1, 1, 0]], [[0, 2, 0]], [[0.0, 1.0, 0.0]], [0, 1, 2], [[0, 1]]):
        with pytest.raises(ConfigError, match=r"Given.begin_epoch returned tensor\(.*it may return clips \(n, 3\)"):
            further_clips(Given(torch.tensor(wrong)), 0, clips, 9)
    with pytest.raises(ConfigError, match=r"Given.begin_epoch returned \[1\];"):
        further_clips(Given([1]), 0, clips, 9)


# --- what is recorded, and what it is called ---------------------------------------------------------------------


def test_a_setting_is_recorded_in_one_spelling(experiment: Experiment, tmp_path: Path) -> None:
    command = (*fuse(experiment), "--mask", "none", "--balance", "uniform", "--epochs", "1", "--out", tmp_path / "run")
    done(*command, "--balance-set", "gamma=1.50")
    header, _ = artifacts.read_header(tmp_path / "run" / "model.safetensors")
    assert header.config["balance_set"] == ["gamma=1.5"]
    assert "was there already" in done(*command, "--balance-set", "gamma=15e-1").stderr
    refused(*command, says="made with other options or inputs (balance_set: ['gamma=1.5'] there, nothing now)")


def test_every_type_has_one_spelling() -> None:
    class Several(Uniform):
        def __init__(
            self,
            joint: Any,
            *,
            often: int = 2,
            share: float = 1.0,
            sure: bool = False,
            word: str = "a",
            at: tuple[float, ...] = (),
        ) -> None: ...

    for typed in (
        ("often=03", "share=2.0", "sure=YES", "word=1.50=B", "at=1, 2.50"),
        ("often=3", "share=2", "sure=1", "word=1.50=B", "at=1.0,2.5"),
    ):
        values = read_settings(Several, "several", typed, {})
        recorded = as_recorded(values, typed)
        assert recorded == ("often=3", "share=2", "sure=true", "word=1.50=B", "at=1,2.5")
        assert read_settings(Several, "several", recorded, {}) == values


def test_groups_are_named_by_the_method_and_its_settings() -> None:
    uniform = {"balance": "uniform", "lr": 0.1}
    options: list[dict[str, Any]] = [
        uniform | {"balance_set": ["head=1"]},
        uniform | {"balance_set": ["head=2", "tail=3"]},
        uniform | {"balance_set": ["head=2", "tail=3"], "lr": 0.2},
        uniform | {"balance_gamma": 1.5},
    ]
    assert name_groups(options) == [
        "uniform(head=1)",
        "uniform(head=2, tail=3), lr=0.1",
        "lr=0.2",
        "uniform(gamma=1.5)",
    ]
    assert name_groups([uniform, uniform | {"balance_set": ["head=2"]}]) == ["balance=uniform", "uniform(head=2)"]
    assert differing_options([{"balance": "none"}, uniform | {"balance_set": ["head=2"]}]) == ["balance"]
    both = [{"balance": name, "balance_set": [value]} for name in ("opm", "smv") for value in ("begin=1", "begin=2")]
    assert name_groups(both) == ["opm(begin=1)", "opm(begin=2)", "smv(begin=1)", "smv(begin=2)"]
    assert name_groups([{"balance": "opm"}, {"balance": "smv"}]) == ["balance=opm", "balance=smv"]
    above = [{"model.balance": "opm", "model.balance_set": [f"begin={number}"]} for number in (1, 2)]
    assert name_groups(above) == ["model.opm(begin=1)", "model.opm(begin=2)"]


# --- fusions of one's own ----------------------------------------------------------------------------------------


def test_several_fusions_are_trusted(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVPT_FUSION", raising=False)
    with pytest.raises(ConfigError, match=r"set AVPT_FUSION=mine:Narrow$"):
        recorded_fusion("mine:Narrow")
    monkeypatch.setenv("AVPT_FUSION", "other.module:Fusion")
    with pytest.raises(ConfigError, match=r"set AVPT_FUSION=other\.module:Fusion:mine:Narrow$"):
        recorded_fusion("mine:Narrow")
    for trusted in ("mine:Narrow", "other.module:Fusion:mine:Narrow", "mine:Narrow:other.module:Fusion"):
        monkeypatch.setenv("AVPT_FUSION", trusted)
        assert recorded_fusion("mine:Narrow").__name__ == "Narrow"
    for other in ("mine", "Narrow", "more.mine:Narrow", "more:mine:Narrow:more", ""):
        monkeypatch.setenv("AVPT_FUSION", other)
        with pytest.raises(ConfigError, match="using it runs that code"):
            recorded_fusion("mine:Narrow")


class Wrong(nn.Module):
    """A fusion that is right but for what a test changes about it."""

    answer: Any = None

    def __init__(self, audio: int, visual: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(audio)
        self.classes = classes

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        logits = self.norm(audio)[:, : self.classes] + torch.rand(1)
        return logits if self.answer is None else self.answer(logits)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda logits: logits[:1], r"mine makes float32 \(1, 3\) of the features of two clips, not logits \(2, 3\)"),
        (lambda logits: logits.argmax(1), r"makes int64 \(2,\)"),
        (lambda logits: (logits, logits), "makes tuple"),
        (lambda logits: logits @ logits, r"can't be used on features of 4 and 5 numbers and 3 classes \(RuntimeError"),
    ],
)
def test_a_fusion_is_tried(answer: Any, says: str) -> None:
    class Mine(Wrong):
        pass

    Mine.answer = staticmethod(answer)
    with pytest.raises(ConfigError, match=says):
        try_fusion(Mine, (4, 5, 3), "mine")


def test_trying_a_fusion_draws_nothing_and_takes_one_that_fits() -> None:
    before = torch.get_rng_state()
    try_fusion(Wrong, (4, 5, 3), "mine")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match=r"can't be used .*\(TypeError"):
        try_fusion(nn.Bilinear, ("4", 5, 3), "mine")  # type: ignore[arg-type]
