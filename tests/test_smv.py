"""Sample-level valuation against its formula, written out here, and epochs that have further clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from balancing import State, alike, run_of
from helpers import ARCH, Experiment
from joint import CLIPS, LABELS, augmented_clips, joint_inputs, joint_model
from torch import Tensor
from torch.nn import functional
from toy import AfterStep, Stop

from avpt.loading.loader import Loader
from avpt.loading.sampling import EpochSampler
from avpt.models.fusion import FusedModel, FusionName
from avpt.training.balancing.method import PlainClips
from avpt.training.balancing.smv import Smv, copies
from avpt.training.loop import Clips, Plan, fit
from avpt.training.passes import Stepping
from avpt.training.state import EpochState, Progress
from avpt.training.watch import Watcher
from avpt.training.world import World
from avpt.types import Batch, Split

FUSIONS: tuple[FusionName, ...] = ("concat", "gated")
BATCH = 4


def copies_by_hand(both: list[bool], audio: list[bool], visual: list[bool]) -> Counter[tuple[int, int, int]]:
    actual: Counter[tuple[int, int, int]] = Counter()
    for clip, right in enumerate(zip(both, audio, visual, strict=True)):
        v, v_a, v_v = 2 * right[0], int(right[1]), int(right[2])
        times = {0.5: 1, 0: 2, -0.5: 3}
        actual[clip, 1, 0] += times.get((v_a + v - v_v) / 2, 0)
        actual[clip, 0, 1] += times.get((v_v + v - v_a) / 2, 0)
    return +actual


def counted(further: Tensor) -> Counter[tuple[int, int, int]]:
    return Counter((position, audio, visual) for position, audio, visual in further.tolist())


def test_copies_are_those_of_the_formula() -> None:
    both, audio, visual = (list(values) for values in zip(*product([False, True], repeat=3), strict=True))
    assert counted(copies(*map(torch.tensor, (both, audio, visual)))) == copies_by_hand(both, audio, visual)
    certain = torch.ones(4, dtype=torch.bool)
    assert copies(certain, certain, certain).shape == (0, 3)


class Drawn:
    """The clips of tests/joint.py in batches, as `Loader` has them."""

    def __init__(self, further: Tensor | None = None, seed: int | None = 3) -> None:
        self.sampler, self.further = EpochSampler(CLIPS, BATCH, seed, further=further), further

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        self.sampler.epoch, self.sampler.start = number, start
        for keys in self.sampler:
            _, positions, rows = (torch.tensor(values) for values in zip(*keys, strict=True))
            inputs = tuple(values[positions] for values in joint_inputs())
            if self.further is not None:
                inputs = (*inputs, present_of(rows, self.further))
            yield Batch(inputs, LABELS[positions], positions, draws=None if self.further is None else rows)


def present_of(rows: Tensor, further: Tensor) -> Tensor:
    return torch.cat([torch.ones(CLIPS, 2), further[:, 1:].float()])[rows]


def plain_clips(model: FusedModel, split: Split) -> dict[str, Tensor]:
    model.eval()
    sound, pictures = joint_inputs()
    with torch.no_grad():
        a, v = model.audio(sound), model.visual(pictures[:, 0])
        return {"audio": a, "visual": v, "logits": model.fusion(a, v), "labels": LABELS}


def further_by_hand(model: FusedModel) -> Counter[tuple[int, int, int]]:
    outputs = plain_clips(model, "train")
    a, v = outputs["audio"], outputs["visual"]
    with torch.no_grad():
        logits = [model.fusion(a, v), model.fusion(a, 0 * v), model.fusion(0 * a, v)]
    return copies_by_hand(*((values.argmax(dim=1) == LABELS).tolist() for values in logits))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_copies_of_a_model(fusion: FusionName) -> None:
    model = joint_model(fusion, ARCH)
    method = Smv(run_of(model), begin=5)
    assert all(method.begin_epoch(epoch, PlainClips(partial(plain_clips, model))) is None for epoch in (0, 4))
    actual = method.begin_epoch(5, PlainClips(partial(plain_clips, model)))
    assert actual is not None
    assert counted(actual) == further_by_hand(model)
    assert len(actual)


def measure(outputs: dict[str, Tensor]) -> dict[str, float | None]:
    return {"accuracy": float(outputs["logits"].sum()), "loss": 0.5}


def smv_run(folder: Path, watcher: Watcher, fusion: FusionName = "concat") -> tuple[FusedModel, Progress]:
    """Two epochs, of which the second has copies; every step is saved."""
    model = joint_model(fusion, ARCH)
    method = model.balance = Smv(run_of(model), begin=1)
    folder.mkdir(exist_ok=True)
    in_order = Drawn(seed=None)
    progress = fit(
        model,
        Clips(
            train=Drawn(),
            val=in_order,
            clean_train=None,
            ids=[f"clip {i}" for i in range(CLIPS)],
            num_val=CLIPS,
            plain=lambda split: in_order,
            extended=Drawn,
        ),
        Plan(
            epochs=2,
            rate=lambda epoch, step, steps: 0.1 / (1 + epoch + step / steps),
            stepping=Stepping(balance=method, checkpoint_every=1),
            measure=measure,
            watched={"audio": list(model.audio.parameters())},
        ),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        checkpoint=folder / "last.pt",
        watcher=watcher,
        world=World(),
    )
    return model, progress


def smv_by_hand(fusion: FusionName) -> tuple[State, int, Tensor]:
    """Parameters after two epochs, the steps of the second, and the probabilities that it saw of the plain clips."""
    model = joint_model(fusion, ARCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sound, pictures = joint_inputs()
    steps, seen = 0, torch.zeros(CLIPS)
    for epoch in range(2):
        further = None
        if epoch == 1:
            further = torch.tensor(sorted(further_by_hand(model).elements(), key=lambda one: (one[2], one[0])))
        sampler = EpochSampler(CLIPS, BATCH, 3, further=further)
        sampler.epoch, steps = epoch, len(sampler)
        model.train()
        for step, keys in enumerate(sampler):
            losses = []
            a, v = (model.audio(sound), model.visual(pictures[:, 0]))  # BatchNorm is frozen
            for _, position, row in keys:
                _, there_a, there_v = (0, 1, 1) if row < CLIPS else further[row - CLIPS].tolist()  # type: ignore[index]
                logits = model.fusion(a[position : position + 1] * there_a, v[position : position + 1] * there_v)
                losses.append(functional.cross_entropy(logits, LABELS[position : position + 1]))
                if row < CLIPS:
                    assert row == position
                    seen[position] = logits.detach().softmax(dim=1)[0, LABELS[position]]
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + epoch + step / steps)
            optimizer.zero_grad()
            (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
            optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}, steps, seen


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_epoch_with_copies_is_its_formula(fusion: FusionName, tmp_path: Path) -> None:
    expected, steps, seen = smv_by_hand(fusion)
    model, progress = smv_run(tmp_path, Watcher(), fusion)
    alike({name: p.detach() for name, p in model.named_parameters()}, expected)
    first, second = progress.records
    assert "steps" not in first
    assert second["steps"] == steps > len(Drawn())
    torch.testing.assert_close(progress.probability[1], seen, rtol=1e-4, atol=1e-5)
    assert [len(values) for values in progress.correct] == [CLIPS, CLIPS]


@pytest.mark.parametrize("stop", [(0, 1), (1, 1), (1, 3)])
def test_a_run_that_stops_among_copies_goes_on_with_them(stop: tuple[int, int], tmp_path: Path) -> None:
    model, progress = smv_run(tmp_path / "undisturbed", Watcher())

    def after_step(epoch: int, state: EpochState) -> None:
        if (epoch, state.step) == stop:
            raise Stop

    with pytest.raises(Stop):
        smv_run(tmp_path / "stopped", AfterStep(after_step))
    again, same = smv_run(tmp_path / "stopped", Watcher())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert same.records == progress.records
    assert all(map(torch.equal, same.probability, progress.probability))


def test_further_clips_lie_among_the_others() -> None:
    further = torch.tensor([[2, 1, 0], [2, 0, 1], [5, 0, 1]])
    plain = [key for keys in EpochSampler(CLIPS, BATCH, 3) for key in keys]
    keys = [key for keys in EpochSampler(CLIPS, BATCH, 3, further=further) for key in keys]
    assert sorted((position, row) for _, position, row in keys) == sorted(
        [(i, i) for i in range(CLIPS)] + [(2, CLIPS), (2, CLIPS + 1), (5, CLIPS + 2)]
    )
    assert sorted(position for _, position, _ in plain) == list(range(CLIPS))
    of_two = [list(EpochSampler(CLIPS, BATCH, 3, process, 2, further=further)) for process in range(2)]
    together = [key for first, second in zip(*of_two, strict=True) for key in (*first, *second)]
    assert together == keys
    weights = torch.tensor([1.0, 0, 0, 0, 0, 0, 1])
    drawn = [key for keys in EpochSampler(CLIPS, BATCH, 3, weights=weights, further=further) for key in keys]
    assert sorted(row for _, _, row in drawn) == list(range(CLIPS + 3))
    assert {position for _, position, row in drawn if row < CLIPS} <= {0, 6}


def test_a_loader_says_which_features_are_there(experiment: Experiment) -> None:
    clips = augmented_clips(experiment, modality_dropout=1.0)
    further = torch.tensor([[2, 1, 0], [2, 0, 1], [5, 0, 1]])
    loader = Loader(clips, BATCH, device=torch.device("cpu"), workers=0, shuffle_seed=1, further=further)
    seen = {}
    for batch in loader.epoch(3):
        audio, visual, present = (values.clone() for values in batch.inputs)
        for i, row in enumerate(batch.rows.tolist()):
            seen[row] = int(batch.positions[i]), present[i].tolist(), audio[i], visual[i]
    assert sorted(seen) == list(range(len(clips) + 3))
    last = len(clips)
    assert [seen[last + i][:2] for i in range(3)] == [(2, [1, 0]), (2, [0, 1]), (5, [0, 1])]
    assert all(sum(seen[row][1]) == 1 for row in range(last))  # the plain ones lose a modality by chance
    assert not torch.equal(seen[last][3], seen[last + 1][3])  # each copy is augmented on its own
