"""What an output is called: text by its kind, everything else by no other kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Experiment, avpt, done, refused, touch


@pytest.mark.parametrize(
    ("command", "option", "suffix"),
    [
        (("manifest", "folder", "clips"), "--out", ".csv"),
        (("score-confidence", "--audio", "a", "--visual", "v"), "--csv", ".csv"),
        (("compare", "run"), "--csv", ".csv"),
        (("compare", "run"), "--markdown", ".md or .markdown"),
        (("evaluate", "run", "store"), "--out", ".json"),
        (("predict", "run", "a.mp4", "--format", "csv"), "--out", ".csv"),
        (("predict", "run", "a.mp4", "--format", "jsonl"), "--out", ".jsonl"),
        (("report", "run"), "--out", ".html or .htm"),
    ],
)
@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_text_of_another_name_is_refused(
    tmp_path: Path, command: tuple[str, ...], option: str, suffix: str, name: str
) -> None:
    out = tmp_path / name
    refused(*command, option, out, says=f"{option} is {out}; its name must end in {suffix}", unchanged=tmp_path)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("init --modality audio --weights random", "--out"),
        ("score-confidence --audio {0.audio} --visual {0.visual} --audio-patch 6x4 --visual-patch 4", "--out"),
        ("evaluate {0.fused} {0.store}", "--predictions"),
        ("export {0.audio} --format onnx", "--out"),
    ],
)
@pytest.mark.parametrize("name", ["m.csv", "m.html", "m.PNG"])
def test_a_model_is_not_called_text(
    experiment: Experiment, tmp_path: Path, command: str, option: str, name: str
) -> None:
    result = avpt(*command.format(experiment).split(), option, tmp_path / name, "--quiet")
    assert (result.code, name in result.error) == (1, True)
    assert not list(tmp_path.iterdir())


def test_what_an_older_avpt_wrote_is_still_there(tmp_path: Path) -> None:
    """A manifest without a suffix, when it was taken."""
    folder = touch(tmp_path / "clips", "a/1.wav", "b/1.wav")
    done("manifest", "folder", folder, "--out", tmp_path / "m.csv")
    (tmp_path / "m.csv").rename(tmp_path / "m")
    record = (tmp_path / "m.csv.json").read_text().replace("m.csv", "m")
    (tmp_path / "m.json").write_text(record)
    assert done("manifest", "folder", folder, "--out", tmp_path / "m").stdout == f"{tmp_path / 'm'}\n"
