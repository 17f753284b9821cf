"""What was made from what, found again by checksums alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import Experiment

from avpt.errors import AvptError
from avpt.files import artifacts
from avpt.files.outputs import sha256
from avpt.runs.lineage import Lineage, Node, read_node


def node_of(path: Path) -> Node:
    node = read_node(path)
    assert node is not None
    return node


def paths(nodes: dict[str, Node | None]) -> dict[str, Path | None]:
    return {name: None if node is None else node.path for name, node in nodes.items()}


def test_a_fused_run_is_followed_to_its_store(experiment: Experiment) -> None:
    lineage = Lineage([experiment.fused])
    fused = node_of(experiment.fused)
    assert fused.kind == "fused"
    assert paths(lineage.origins(fused)) == {
        "store": experiment.store,
        "audio": experiment.audio,
        "visual": experiment.visual,
        "confidence": experiment.confidence,
    }
    assert paths(lineage.origins(node_of(experiment.confidence))) == {
        "audio": experiment.audio,
        "visual": experiment.visual,
    }
    audio = node_of(experiment.audio)
    assert paths(lineage.origins(audio)) == {"store": experiment.store, "init": experiment.audio_init}
    assert paths(lineage.origins(node_of(experiment.audio_init))) == {"weights": experiment.visual}
    assert [node.path for node in lineage.made_from(audio, "fused")] == [experiment.fused]
    assert lineage.made_from(fused, "fused", "confidence", "encoder", "classifier") == []


def test_renamed_and_moved_files_are_found_and_changed_ones_are_not(experiment: Experiment, tmp_path: Path) -> None:
    shutil.copytree(experiment.fused, tmp_path / "runs" / "of mine")
    shutil.copytree(experiment.audio, tmp_path / "elsewhere" / "ünder" / "another name")
    fused = node_of(tmp_path / "runs" / "of mine")
    found = paths(Lineage([fused.path], [tmp_path]).origins(fused))
    assert found == {
        "store": None,
        "audio": tmp_path / "elsewhere" / "ünder" / "another name",
        "visual": None,
        "confidence": None,
    }
    model = tmp_path / "elsewhere" / "ünder" / "another name" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert Lineage([fused.path], [tmp_path]).origins(fused)["audio"] is None


def test_folders_come_before_what_is_around_and_do_not_replace_it(experiment: Experiment, tmp_path: Path) -> None:
    """One input lies in a folder that is named, the others around the run, one of them in both."""
    named, run = tmp_path / "named", tmp_path / "one" / "two" / "three" / "fused"
    shutil.copytree(experiment.fused, run)
    shutil.copytree(experiment.audio, named / "audio")
    shutil.copy(experiment.confidence, named / "c.safetensors")
    shutil.copytree(experiment.visual, run.parent / "visual")
    shutil.copy(experiment.confidence, run.parent / "c.safetensors")
    fused = node_of(run)
    around = {"store": None, "audio": None, "visual": run.parent / "visual", "confidence": run.parent / "c.safetensors"}
    assert paths(Lineage([run]).origins(fused)) == around
    added = {"audio": named / "audio", "confidence": named / "c.safetensors"}
    assert paths(Lineage([run], [named]).origins(fused)) == around | added
    assert paths(Lineage([run], [named / "audio"]).origins(fused)) == around | {"audio": named / "audio"}


def test_a_crowded_place_does_not_stop_a_search_in_folders(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "avpt")  # which a command with --quiet has raised
    monkeypatch.setattr("avpt.runs.lineage.MOST_ENTRIES", 5)
    run, named = tmp_path / "one" / "two" / "fused", tmp_path / "named"
    shutil.copytree(experiment.fused, run)
    shutil.copytree(experiment.audio, named / "deep" / "down")
    for number in range(9):
        (run.parent / f"{number}.txt").touch()
    fused = node_of(run)
    lineage = Lineage([run], [named])
    assert lineage.find(fused.inputs["audio"]) == node_of(named / "deep" / "down")
    assert caplog.messages == []  # nothing around was needed
    assert lineage.find(fused.inputs["visual"]) is None
    assert ["too many files" in message and "--search" in message for message in caplog.messages] == [True]


def test_options_of_all_that_a_run_was_made_from_but_seeds(experiment: Experiment, tmp_path: Path) -> None:
    fused = node_of(experiment.fused)
    whole = Lineage([experiment.fused]).whole_config(fused.config, fused.inputs)
    assert whole["fusion"] == "concat"
    assert whole["audio.epochs"] == 2
    assert whole["audio.init.bn"] == "abri"
    assert whole["audio.init.weights"] == "as visual"  # told once
    assert whole["visual.init.weights"] == "random"
    assert (whole["store"], whole["audio.store"]) == (fused.inputs["store"], "as store")
    assert not any(name.rpartition(".")[2] == "seed" for name in whole)

    shutil.copytree(experiment.fused, tmp_path / "one" / "two" / "fused")
    alone = Lineage([tmp_path / "one" / "two" / "fused"]).whole_config(fused.config, fused.inputs)
    recorded = hashlib.sha256((experiment.audio / "model.safetensors").read_bytes()).hexdigest()
    assert alone["audio"] == recorded  # what is not to be found is told apart by its checksum


def test_other_peoples_files_do_not_disturb_a_search(experiment: Experiment, tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"no"), ("b.json", b"[1]"), ("c.json", b"{"), ("d.json", b'{"kind": 1}')):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    shutil.copy(experiment.confidence, tmp_path / "z.safetensors")
    lineage = Lineage([], [tmp_path])
    assert [node.path for node in lineage.nodes()] == [tmp_path / "z.safetensors"]
    assert lineage.find("0" * 64) is None


def test_a_folder_to_search_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(AvptError, match=r"nowhere is not a folder; --search"):
        Lineage([], [tmp_path / "nowhere"])


def test_a_file_that_goes_away_while_it_is_looked_for_is_passed_over(tmp_path: Path) -> None:
    for name in ("kept.json", "gone.json"):
        record = {"kind": "evaluation", "config": {"name": name}, "inputs": {"model": name}}
        (tmp_path / name).write_text(json.dumps(record), encoding="utf-8")
    header = artifacts.Header(kind="encoder", config={}, inputs={})
    artifacts.save(tmp_path / "gone.safetensors", header, {"x": torch.zeros(1)})
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "ring.json").symlink_to("ring.json")
    os.mkfifo(tmp_path / "pipe.json")
    lineage = Lineage([], [tmp_path])
    assert {node.path.name for node in lineage.nodes()} == {"kept.json", "gone.json", "gone.safetensors"}
    checksum = sha256(tmp_path / "gone.safetensors")
    (tmp_path / "gone.safetensors").unlink()
    assert lineage.find("0" * 64) is None
    assert lineage.find(checksum) is None
