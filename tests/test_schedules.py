"""Schedules say themselves whether a finished run can go on: every choice of --schedule is held to its own curve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from avpt.errors import OutputError
from avpt.options import FinetuneConfig, type_hints
from avpt.runs.folder import find_summary
from avpt.training.schedules import SCHEDULES, learning_rate
from avpt.types import ScheduleName

CHOICES: tuple[ScheduleName, ...] = get_args(get_args(type_hints(FinetuneConfig)["schedule"])[0])


def config_of(schedule: ScheduleName, epochs: int, **options: Any) -> FinetuneConfig:
    nowhere: dict[str, Any] = dict.fromkeys(("store", "out", "init"), Path())
    return FinetuneConfig(**nowhere, modality="audio", epochs=epochs, schedule=schedule, **options)


def rates(config: FinetuneConfig, epochs: int) -> list[float]:
    rate = learning_rate(
        lr=config.lr,
        schedule=config.schedule,
        epochs=config.epochs,
        milestones=config.milestone_epochs,
        factor=config.lr_factor,
        warmup_epochs=config.warmup_epochs,
    )
    return [rate(epoch, step, 2) for epoch in range(epochs) for step in range(2)]


def test_every_choice_is_a_schedule() -> None:
    assert len(CHOICES) >= 3
    assert set(CHOICES) == SCHEDULES.keys()


@pytest.mark.parametrize("schedule", CHOICES)
@pytest.mark.parametrize("warmup", [0, 1])
def test_a_run_is_continued_where_its_rates_do_not_depend_on_its_length(
    tmp_path: Path, schedule: ScheduleName, warmup: int
) -> None:
    short, long = (config_of(schedule, epochs, warmup_epochs=warmup, milestones="2,4") for epochs in (3, 6))
    same = rates(short, 3) == rates(long, 3)
    assert SCHEDULES[schedule].continues == same

    (tmp_path / "checkpoint").mkdir()
    record = {"config": short.record(), "inputs": {}}
    (tmp_path / "checkpoint" / "settings.json").write_text(json.dumps(record), encoding="utf-8")
    for name in ("checkpoint/last.pt", "metrics.jsonl", "model.safetensors", "summary.json"):
        (tmp_path / name).touch()
    wanted = {"config": long.record(), "inputs": {}}
    if same:
        assert find_summary(tmp_path, wanted, long.defaults(), overwrite=False) is None
    else:
        with pytest.raises(OutputError, match="epochs: 3 there, 6 now"):
            find_summary(tmp_path, wanted, long.defaults(), overwrite=False)


@pytest.mark.parametrize("schedule", CHOICES)
@pytest.mark.parametrize(("option", "value"), [("milestones", "2"), ("lr_factor", 0.5)])
def test_an_option_is_idle_where_the_schedule_does_not_look_at_it(
    schedule: ScheduleName, option: str, value: Any
) -> None:
    plain, changed = (
        config_of(schedule, 6, **{"milestones": "3"}),
        config_of(schedule, 6, **{"milestones": "3", option: value}),
    )
    assert (option in plain.idle()) == (rates(plain, 6) == rates(changed, 6))


def test_a_run_folder_is_looked_at_without_torch() -> None:
    code = "import sys, avpt.runs.folder, avpt.training.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
