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

from avpt.errors import AvptError, OutputError
from avpt.files import artifacts
from avpt.files.outputs import sha256
from avpt.files.typed_paths import read_paths, write_paths
from avpt.runs.lineage import Lineage, Node, read_node

WITHOUT_PATHS = shutil.ignore_patterns("paths.json")  # a copy that must be followed by checksums


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
    made = [node.path for node in lineage.made_from(audio, "fused")]  # other tests' runs lie beside this folder
    assert [path for path in made if path.is_relative_to(experiment.folder)] == [experiment.fused]
    assert lineage.made_from(fused, "fused", "confidence", "encoder", "classifier") == []


def test_renamed_and_moved_files_are_found_and_changed_ones_are_not(experiment: Experiment, tmp_path: Path) -> None:
    shutil.copytree(experiment.fused, tmp_path / "runs" / "of mine", ignore=WITHOUT_PATHS)
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
    shutil.copytree(experiment.fused, run, ignore=WITHOUT_PATHS)
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
    shutil.copytree(experiment.fused, run, ignore=WITHOUT_PATHS)
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

    shutil.copytree(experiment.fused, tmp_path / "one" / "two" / "fused", ignore=WITHOUT_PATHS)
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


def write_made_from(path: Path, name: str, file: Path) -> Node:
    """An encoder whose record says that it was made from a file."""
    artifacts.save(path, artifacts.Header(kind="encoder", inputs={name: sha256(file)}), {"x": torch.zeros(1)})
    return node_of(path)


@pytest.mark.parametrize(
    ("name", "file"), [("weights", "moco.pth.tar"), ("weights", "plain.BIN"), ("manifest", "m.csv")]
)
def test_files_that_avpt_did_not_write_are_found_by_their_checksums(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / "given").mkdir()
    for other in ("a.pth", "b.csv", "c.bin", "d.jpg"):
        (tmp_path / other).write_bytes(b"another")
    (tmp_path / "given" / file).write_bytes(b"of others")
    node = write_made_from(tmp_path / "e.safetensors", name, tmp_path / "given" / file)
    lineage = Lineage([node.path])
    assert lineage.origins(node) == {name: None}
    assert lineage.find_file(name, node.inputs[name]) == tmp_path / "given" / file
    assert lineage.find_file("store", node.inputs[name]) is None  # which avpt writes
    assert lineage.find_file(name, "0" * 64) is None
    assert lineage.whole_config({}, node.inputs)[name] == f"{file} ({node.inputs[name][:12]})"
    (tmp_path / "given" / file).write_bytes(b"of OTHERS")
    assert Lineage([node.path]).find_file(name, node.inputs[name]) is None


def test_a_size_on_record_spares_the_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file, content in (("large.pth", b"of others, larger"), ("w.pth", b"of others")):
        Path(file).write_bytes(content)
    node = write_made_from(tmp_path / "e.safetensors", "weights", Path("w.pth"))
    write_paths(node.path, node.inputs, {"weights": Path("w.pth"), "none": None})
    Path("w.pth").rename("x.pth")
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return sha256(path)

    monkeypatch.setattr("avpt.runs.lineage.sha256_if_there", noted)
    lineage = Lineage([node.path])
    lineage.follow(node.path)
    assert lineage.find_file("weights", node.inputs["weights"]) == tmp_path / "x.pth"
    assert read == ["x.pth"]


def test_a_path_on_record_comes_before_copies_and_reaches_anywhere(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = node_of(experiment.fused)
    typed = {name: recorded.typed for name, recorded in read_paths(fused.path).items()}
    assert typed == {name: str(getattr(experiment, name)) for name in ("store", "audio", "visual", "confidence")}
    shutil.copytree(experiment.fused, tmp_path / "one" / "two" / "fused")
    shutil.copy(experiment.confidence, tmp_path / "one" / "two" / "a copy.safetensors")
    moved = node_of(tmp_path / "one" / "two" / "fused")
    assert paths(Lineage([moved.path]).origins(moved)) == paths(Lineage([fused.path]).origins(fused))
    monkeypatch.chdir(tmp_path)  # relative ones start from where they were typed
    shutil.copy(experiment.confidence, "c.safetensors")
    write_paths(moved.path, moved.inputs, {"confidence": Path("c.safetensors")})
    monkeypatch.chdir("/")
    found = Lineage([moved.path]).origins(moved)
    assert paths(found) == {
        "store": None,
        "audio": None,
        "visual": None,
        "confidence": tmp_path / "c.safetensors",
    }
    (moved.path / "paths.json").write_text("{}", encoding="utf-8")
    assert paths(Lineage([moved.path]).origins(moved))["confidence"] == tmp_path / "one" / "two" / "a copy.safetensors"


def test_paths_never_replace_a_file_of_others(tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"of others")
    (tmp_path / "e.safetensors.json").write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(OutputError, match=r"e\.safetensors\.json was not written by avpt"):
        write_paths(tmp_path / "e.safetensors", {"weights": "0" * 64}, {"weights": weights})
    assert (tmp_path / "e.safetensors.json").read_text(encoding="utf-8") == '{"mine": 1}'
