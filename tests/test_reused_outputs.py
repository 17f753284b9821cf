"""One wording for outputs that can't be reused, whichever command meets them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from avpt.errors import OutputError
from avpt.files import artifacts, export_headers
from avpt.files.artifacts import Header
from avpt.files.records import EvaluationRecord
from avpt.files.reuse import check_ours, is_there, must_write, reuse_record

HEADER = Header(kind="export", config={"seed": 0}, inputs={"model": "a" * 64})
PROVENANCE = {"kind": "evaluation", "config": {"seed": 0}, "inputs": {}}


def refusals(path: Path, overwrite: bool) -> list[str]:
    """What is said of a file by all that would write one there."""
    messages = []
    for write in (
        lambda: artifacts.reuse(path, HEADER, {}, overwrite),
        lambda: export_headers.reuse(path, HEADER, {}, overwrite),
        lambda: reuse_record(path, PROVENANCE, {}, overwrite, EvaluationRecord),
        lambda: check_ours(path, lambda content: content.startswith(b"id,"), option="--out"),
    ):
        with pytest.raises(OutputError) as error:
            write()
        messages.append(str(error.value))
    return messages


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_file_is_refused_in_one_wording(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "mine").write_text("dear diary", encoding="utf-8")
    wording = re.compile(
        rf"{tmp_path}/mine was not (written|exported) by (avpt|this command)( \(.*\))?, or is damaged; "
        "remove it or choose another --out"
    )
    messages = refusals(tmp_path / "mine", overwrite)
    assert [line for line in messages if not wording.fullmatch(line)] == []


def test_a_folder_is_refused_where_a_file_goes(tmp_path: Path) -> None:
    messages = refusals(tmp_path, overwrite=True)[:3]
    assert set(messages) == {f"{tmp_path} is a folder; --out must name a file"}


def test_what_is_there_is_replaced_only_where_that_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert not is_there(path)
    needed = partial(must_write, path, b"id,1", other="holds other numbers", option="--csv")
    assert needed(None, overwrite=False)
    assert not needed(b"id,1", overwrite=False)
    assert needed(b"id,2", overwrite=True)
    with pytest.raises(OutputError, match=r"holds other numbers; choose another --csv, or --overwrite to replace it"):
        needed(b"id,2", overwrite=False)
