"""Records that come from a file: whatever stands in them, a command does right or says in one line what is wrong."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from helpers import avpt, done
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import CLASSES, SPEC, write_confidence, write_dynamics, write_tiny_run, write_tiny_store

from avpt.confidence.files import read_confidence, read_dynamics
from avpt.errors import ArtifactError, AvptError, OutputError, StoreError
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.checking import DEEPEST, RecordError, check, parse, read_text
from avpt.files.model_headers import read_input
from avpt.files.outputs import read_record
from avpt.files.records import InputSpec, Options, RunSummary
from avpt.models.checkpoint import load_encoder, load_network
from avpt.options import PreprocessConfig, TrainConfig, parameter, type_hints
from avpt.runs.folder import read_run
from avpt.runs.lineage import Lineage
from avpt.store.store import Store
from avpt.store.verification.store_files import read_contents

FEW = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD: tuple[Any, ...] = (
    2**63,
    2**70,
    -1,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "\ud800",
    "\x1b]0;x\x07",
    "../x",
    "1",
    True,
    [],
    {},
    None,
)
VALUES = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
NESTED = "[" * 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a run and what is made of runs, in folders so deep that nothing else is around them."""
    deep = tmp_path_factory.mktemp("records") / "one" / "two"
    write_tiny_store(deep / "store")
    for seed in range(2):
        write_tiny_run(deep / "runs" / str(seed), seed)
    write_confidence(deep / "confidence.safetensors")
    return deep


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a record."""
    yield before
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*before, key))


@st.composite
def spoilt(draw: st.DrawFn, record: Any) -> Any:
    """A record in which one thing is another, or is gone."""
    *way, last = draw(st.sampled_from([place for place in places(record) if place]))
    changed = place = copy.deepcopy(record)
    for key in way:
        place = place[key]
    if draw(st.integers(0, 4)):
        place[last] = draw(VALUES)
    else:
        del place[last]
    return changed


def one_line(*command: str | Path) -> None:
    """The command works, or fails in one line."""
    result = avpt(*command, "--quiet", "--json")
    assert result.code in (0, 1)
    assert len(result.stderr.splitlines()) == result.code, result.stderr


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "it is not JSON"),
        (NESTED, "it is nested too deeply"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "it is nested too deeply"),
        ('{"seed": 1' + "0" * 30 + "}", "a number out of range"),
        ('{"seed": 1' + "0" * 5000 + "}", "it is not JSON"),
        ('{"mask": "\\ud800"}', "half a character"),
        ('{"\\udc80": 1}', "half a character"),
        ('{"epochs": "2"}', "epochs: expected int, got str"),
        ('{"epochs": -2}', "epochs: expected int >= 0"),
        ('{"modality": "smell"}', "modality: invalid enum value 'smell'"),
        ('{"alpha": NaN}', "alpha: expected float >= -1e+38"),
        ("[]", "expected object, got array"),
    ],
)
def test_what_is_no_record_is_named_by_its_field(text: str, says: str) -> None:
    with pytest.raises(RecordError, match=r"^.{1,150}$") as error:
        check(parse(text), Options)
    assert says in str(error.value)


def test_what_a_record_holds_beside_what_is_known_stays_in_it() -> None:
    assert check(parse('{"epochs": 3, "of a newer avpt": [1.5, null]}'), Options) == {
        "epochs": 3,
        "of a newer avpt": [1.5, None],
    }


def test_only_plain_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordError, match="it is not a file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(RecordError, match="it is not a file"):
        read_text(Path("/dev/zero"))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OutputError, match=r"huge is damaged \(it has 1048576 MiB, more than any record\); do this"):
        read_record(tmp_path / "huge", "do this", RunSummary)
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(RecordError, match="not UTF-8"):
        read_text(tmp_path / "bytes")


# --- whatever stands in them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store.json", "settings.json", "train-00001.json"])
@FEW
@given(data=st.data())
def test_any_file_of_a_store(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / "store" / name
    whole = path.read_text()
    try:
        path.write_text(json.dumps(data.draw(spoilt(json.loads(whole)))))
        one_line("info", folder / "store")
        with suppress(StoreError):
            read_contents(folder / "store")
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("name", ["checkpoint/settings.json", "metrics.jsonl", "summary.json"])
@FEW
@given(data=st.data())
def test_any_file_of_a_run(folder: Path, name: str, data: st.DataObject) -> None:
    run = folder / "runs" / "0"
    whole = (run / name).read_text()
    rows = [json.loads(line) for line in whole.splitlines()] if name.endswith("l") else json.loads(whole)
    try:
        changed = data.draw(spoilt(rows))
        lines = changed if name.endswith("l") else [changed]
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        one_line("info", run)
        result = avpt("compare", run, folder / "runs" / "1", "--json")
        assert result.code in (0, 1)
    finally:
        (run / name).write_text(whole)


def header_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(artifacts.format_header(artifacts.read_header(path)[0]))
    return values


READERS: list[Callable[[Path], object]] = [
    lambda path: artifacts.load(path, "encoder", "classifier", "fused", "dynamics", "confidence"),
    lambda path: load_network(path, "encoder", "classifier", "fused"),
    lambda path: load_encoder(path, "audio"),
    lambda path: read_input(path, artifacts.read_header(path)[0]),
    lambda path: read_confidence(path, ["train-0", "train-1", "train-2", "train-3"]),
    lambda path: read_dynamics(path.parent, "audio"),
]


@pytest.mark.parametrize("name", ["runs/0/model.safetensors", "runs/0/dynamics.safetensors", "confidence.safetensors"])
@FEW
@given(data=st.data())
def test_any_header(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    whole = path.read_bytes()
    header = header_of(path)
    header["metrics"] |= {"layers": [{"name": "bn1", "channels": 64, "abnormal": 3}], "abnormal_share": 0.1}
    try:
        save_file(load_file(path), path, {"avpt": json.dumps(data.draw(spoilt(header)))})
        one_line("info", path)
        for reader in READERS:
            with suppress(AvptError):
                reader(path)
    finally:
        path.write_bytes(whole)


@FEW
@given(data=st.data())
def test_any_file_near_a_run_is_passed_over(folder: Path, data: st.DataObject) -> None:
    near = folder / "runs" / "near.json"
    checksum = "2" * 64  # of what the runs were made from
    record = {"kind": "evaluation", "config": {"snr": 3.0, "drop": None}, "inputs": {"model": checksum}, "val": {}}
    try:
        near.write_text(json.dumps(data.draw(spoilt(record))))
        found = done("compare", folder / "runs" / "0", folder / "runs" / "1", "--json").json()
        assert [one["runs"][0]["seed"] for one in found["groups"]] == [0]
    finally:
        near.unlink()


@pytest.mark.parametrize("content", [NESTED, '{"kind": "evaluation", "config": ' + "[" * 900 + "]" * 900 + "}", "\x00"])
def test_a_deeply_nested_file_near_a_run_is_passed_over(folder: Path, content: str) -> None:
    near = folder / "runs"
    (near / "nested.json").write_text(content)
    (near / "ring.json").symlink_to("ring.json")
    os.mkfifo(near / "pipe.json")
    os.mkfifo(near / "pipe.safetensors")
    shutil.copytree(near / "1", near / "2")
    (near / "2" / "dynamics.safetensors").unlink()
    os.mkfifo(near / "2" / "dynamics.safetensors")
    try:
        assert len(done("compare", near / "0", near / "1", "--json").json()["groups"]) == 1
        assert Lineage([near / "0"]).find("f" * 64) is None
    finally:
        for name in ("nested.json", "ring.json", "pipe.json", "pipe.safetensors"):
            (near / name).unlink()
        shutil.rmtree(near / "2")


def test_a_store_that_names_itself_as_its_origin_ends_no_report(folder: Path, tmp_path: Path) -> None:
    from avpt.report.experiment import gather

    deep = shutil.copytree(folder, tmp_path / "one" / "two" / "three")
    for name, values in (
        ("store.json", {"fingerprint": "1" * 64}),
        ("settings.json", {"inputs": {"manifest": "1" * 64}}),
    ):
        path = deep / "store" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    experiment = gather([deep / "runs" / "0"], None)
    assert [node.kind for node in experiment.nodes] == ["store", "classifier"]


# --- tensors -------------------------------------------------------------------------------------------------------

NAN = torch.tensor([0.5, math.nan, 0.5, 0.5])
TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "rank": ({"probability": torch.zeros(8)}, "probability is 8, not epochs x clips"),
    "one short": ({"correct": torch.ones(2, 3, dtype=torch.bool)}, "correct is 2 x 3, not 2 x 4"),
    "an epoch less": ({"correct": torch.ones(1, 4, dtype=torch.bool)}, "correct is 1 x 4, not 2 x 4"),
    "type": ({"correct": torch.ones(2, 4)}, "correct is F32, not BOOL"),
    "exact": ({"probability": torch.zeros(2, 4, dtype=torch.float64)}, "probability is F64, not F32"),
    "NaN": ({"probability": torch.full((2, 4), math.nan)}, "probability is not from 0 to 1 everywhere"),
    "too sure": ({"probability": torch.full((2, 4), 1.5)}, "probability is not from 0 to 1"),
    "ids of others": (artifacts.pack_ids(["a", "b"]), "id_offsets is 3, not 5"),
    "an id twice": (artifacts.pack_ids(["a", "b", "a", "c"]), "id_bytes has an id twice"),
    "not UTF-8": ({"id_bytes": torch.full((28,), 255, dtype=torch.uint8)}, "id_bytes is not UTF-8"),
    "half a letter": (
        artifacts.pack_ids(["é", "b", "c", "d"]) | {"id_offsets": torch.tensor([0, 1, 3, 4, 5])},
        "id_bytes is not UTF-8",
    ),
    "ids end": ({"id_offsets": torch.tensor([0, 7, 14, 21, 27])}, "id_offsets does not lead from 0 to the 28 bytes"),
    "ids go back": ({"id_offsets": torch.tensor([0, 14, 7, 21, 28])}, "id_offsets does not lead from 0"),
    "no offsets": ({"id_offsets": torch.zeros(0, dtype=torch.int64)}, "id_offsets is 0, not 5"),
    "offsets' type": ({"id_offsets": torch.zeros(5, dtype=torch.int32)}, "id_offsets is I32, not I64"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_dynamics_are_looked_at(tmp_path: Path, name: str) -> None:
    changes, says = TENSORS[name]
    path = write_dynamics(tmp_path / "dynamics.safetensors", **changes)
    with pytest.raises(ArtifactError) as error:
        artifacts.load(path, "dynamics")
    assert f"{path} is damaged: {says}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio_confidence": NAN}, "audio_confidence is not from 0 to 1 everywhere"),
        ({"visual_confidence": torch.zeros(3)}, "visual_confidence is 3, not 4"),
        ({"visual_confidence": torch.zeros(4, 1)}, "visual_confidence is 4 x 1, not 4"),
        ({"visual_confidence": torch.tensor(0.5)}, "visual_confidence is a number, not 4"),
        ({"visual_confidence": torch.zeros(4, dtype=torch.int64)}, "visual_confidence is I64, not F32"),
    ],
)
def test_tensors_of_a_confidence_are_looked_at(tmp_path: Path, changes: dict[str, torch.Tensor], says: str) -> None:
    path = write_confidence(tmp_path / "confidence.safetensors", **changes)
    with pytest.raises(ArtifactError) as error:
        read_confidence(path, ["train-0"])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_labels": torch.tensor([0, 2])}, "test_labels names classes beyond the 2 of the logits"),
        ({"test_logits": torch.zeros(3, 2)}, "test_labels is 2, not 3"),
        ({"audio_logits": torch.zeros(2, 2), "test_audio_logits": torch.zeros(2, 3)}, "test_audio_logits is 2 x 3"),
        ({"test_labels": torch.zeros(2, 3)}, "test_labels is 2 x 3, not 2 x 2"),
        ({"val_logits": torch.zeros(2, 2)}, "val_id_bytes is missing"),
    ],
)
def test_tensors_of_predictions_are_looked_at(tmp_path: Path, changes: dict[str, torch.Tensor], says: str) -> None:
    tensors = {"test_logits": torch.zeros(2, 2), "test_labels": torch.tensor([0, 1])}
    tensors |= artifacts.pack_ids(["a", "b"], "test_") | changes
    path = tmp_path / "predictions.safetensors"
    artifacts.save(path, Header(kind="predictions", classes=list(CLASSES)), tensors)
    with pytest.raises(ArtifactError) as error:
        artifacts.load(path, "predictions")
    assert says in str(error.value)


def test_an_encoder_that_is_no_numbers_is_refused_by_name(tmp_path: Path) -> None:
    from avpt.models.encoder import EncoderSpec, build_encoder

    encoder = build_encoder(EncoderSpec("resnet18", "audio", "batchnorm"))
    encoder.state_dict()["bn1.running_var"][3] = math.inf
    path = tmp_path / "encoder.safetensors"
    spec = {"encoder": SPEC["encoder"], "input": None}
    artifacts.save(path, Header(kind="encoder", spec=spec), encoder.state_dict())
    for reader in (lambda: load_encoder(path, "audio"), lambda: load_network(path, "encoder")):
        with pytest.raises(ArtifactError, match=r"holds values that are not numbers \(bn1\.running_var\)"):
            reader()
    artifacts.save(path, Header(kind="encoder", spec=spec), {"conv1.weight": torch.zeros(64, 1, 7, 7)})
    with pytest.raises(ArtifactError, match=r"does not fit its own spec \(bn1\.weight is missing, .* and \d+ more\)"):
        load_encoder(path, "audio")


def test_the_tiny_run_is_whole(folder: Path) -> None:
    run = read_run(folder / "runs" / "0")
    assert run.progress == "finished"
    assert read_dynamics(folder / "runs" / "0", "audio").ids == [f"train-{row}" for row in range(4)]
    assert len(Store(folder / "store").indices["test"]) == 4


def test_the_ranges_of_an_input_pipeline_are_those_of_the_options() -> None:
    kinds = get_type_hints(InputSpec, include_extras=True)
    compared = []
    for owner in (PreprocessConfig, TrainConfig):
        for name in kinds.keys() & owner.__dataclass_fields__.keys():
            told = repr(kinds[name])
            option = parameter(owner, name)
            if option.min is not None:
                assert f"ge={option.min}," in told or f"ge={option.min:g}," in told, name
                assert f"le={option.max})" in told or f"le={option.max:g})" in told, name
                compared.append(name)
            else:
                assert kinds[name] == type_hints(owner)[name].__args__[0], name
    assert len(compared) == 9
