"""What reaches a terminal, a log, a page or a spreadsheet, and streams of every sort under a command."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers import CONFIGS, avpt, done, touch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from avpt import options
from avpt.engines import local
from avpt.errors import AvptError, ConfigError, ManifestError, listed, wants_memory
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.locks import claim
from avpt.files.outputs import sha256, write_json
from avpt.machine.processes import place_in_job
from avpt.machine.progress import alive, alone
from avpt.machine.terminal import LONGEST, Formatter, _print_table, show, words_of
from avpt.options import CompareConfig, FinetuneConfig, InitConfig, PredictConfig, PreprocessConfig, ScoreConfig
from avpt.report.page.blocks import Block, Card, Cards, Grid, Page, Section, Text
from avpt.report.page.html import read_provenance, render
from avpt.text import as_json, for_sheet, printable
from avpt.types import FilePath, Report, Table

EVIL = "\x1b]0;owned\x07\navpt: all is well\u202e\x9b31m"
SHOWN = r"\x1b]0;owned\x07\navpt: all is well\u202e\x9b31m"

texts = st.text(st.characters()) | st.text(st.sampled_from("a\n\t\x1b\x7f\x9b\u200b\u202e\u2028\udcff=é 猫\U000e0001"))


# --- words -------------------------------------------------------------------------------------------------------


def test_what_steers_a_terminal_is_spelled_out() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("Café 猫\u00a0🐕 naïve") == "Café 猫\u00a0🐕 naïve"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


@given(texts)
def test_any_text_is_one_line_that_can_be_shown(text: str) -> None:
    shown = printable(text)
    assert shown.replace("\u3000", "").isprintable() or all(c.isprintable() or c.isspace() for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert printable(shown) == shown


@given(st.dictionaries(texts, st.lists(texts | st.integers() | st.none(), max_size=5), max_size=5))
def test_json_comes_back_and_can_be_shown(value: Any) -> None:
    line = as_json(value)
    assert json.loads(line) == value
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    line.encode()


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-abc_000010", "'-abc_000010"),
        ("@SUM(1)", "'@SUM(1)"),
        ("＝1+1", "'＝1+1"),
        ("-0.5", "-0.5"),
        (-1e-7, "-1e-07"),
        ("+3", "+3"),
        (None, ""),
        ("a=b", "a=b"),
        ("a\nb\x1b", r"a\nb\x1b"),
    ],
)
def test_no_cell_of_a_sheet_is_a_formula(cell: object, shown: str) -> None:
    assert for_sheet(cell) == shown


def test_messages_are_lines_of_bounded_length_that_keep_the_next_step() -> None:
    error = ManifestError(f"{'x' * 5000}: 2 bad rows", f"line 2: {EVIL}", "line 3: y; rename it")
    first, *others = words_of(error)
    assert len(first) == LONGEST
    assert first.endswith("xx: 2 bad rows")
    assert others == [f"line 2: {SHOWN}", "line 3: y; rename it"]
    assert str(error).count("\n  line ") == 2
    record = logging.makeLogRecord({"msg": "%s", "args": (EVIL * 1000,), "levelno": logging.WARNING})
    shown = Formatter().format(record)
    assert shown.startswith(r"warning: \x1b]0;owned\x07\navpt")
    assert len(shown) == LONGEST + len("warning: ")
    assert listed(["a" * 1000, "b"]) == f"{'a' * 50}…{'a' * 49}, b"


@pytest.mark.parametrize("asked", [(), ("--json",)])
def test_names_in_a_foreign_artifact_are_shown_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    path = tmp_path / f"m{EVIL.replace('/', '')}.safetensors"
    header = Header(kind="classifier", config={f"a{EVIL}": EVIL}, inputs={}, classes=[EVIL, "[bold]café[/bold]"])
    artifacts.save(path, header, {f"t{EVIL}": torch.zeros(2)})
    monkeypatch.chdir(tmp_path)
    result = done("info", path.name, *asked)  # of one length everywhere, so that lines are cut where they are
    for odd in ("\x1b", "\x07", "\x9b", "\u202e", "\navpt"):
        assert odd not in result.stdout
    assert "[bold]café[/bold]" in result.stdout
    if asked:
        assert result.json()["classes"] == [EVIL, "[bold]café[/bold]"]
        assert f"t{EVIL}" in result.json()["tensors"]
    else:
        assert r"\x1b]0;owned" in result.stdout


@pytest.mark.parametrize("words", [("info", EVIL), ("verify", "a", EVIL), (EVIL,), ("info", "--debug", EVIL)])
def test_words_of_the_command_line_are_told_spelled_out(words: tuple[str, ...]) -> None:
    result = avpt(*words)
    assert result.code == (1 if words[0] == "info" else 2)
    assert r"\x1b]0;owned" in result.stderr
    for odd in ("\x1b", "\x07", "\u202e", "\navpt: all is well"):
        assert odd not in result.stderr


def test_a_page_holds_words_as_text_and_nothing_that_can_not_be_seen() -> None:
    nasty = f"<script>{EVIL}</script>"
    blocks: list[Block] = [
        Text(nasty),
        Grid(Table(nasty, (nasty,), [(nasty,)])),
        Cards(nasty, [Card(nasty, [], [nasty])]),
    ]
    provenance = {"config": {"title": EVIL}, "inputs": {EVIL: "x"}}
    html = render(Page(nasty, [nasty], [], [Section("s", nasty, blocks)], provenance), "#000000")
    assert html.count("&lt;script&gt;" + SHOWN.replace(r"\n", "\n")) >= 10
    assert "<script" not in html
    assert all(character.isprintable() or character == "\n" for character in html)


def test_the_provenance_of_a_page_comes_back(tmp_path: Path) -> None:
    provenance = {"kind": "report", "config": {"title": EVIL}, "inputs": {EVIL: "\udcff<é"}}
    (tmp_path / "page.html").write_text(render(Page("x", [], [], [], provenance), "#000000"), encoding="utf-8")
    assert read_provenance(tmp_path / "page.html") == provenance


# --- streams -----------------------------------------------------------------------------------------------------


def shell(folder: Path, redirected: str, *arguments: str, **changed: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a shell of its own, in a folder, with streams led elsewhere."""
    line = f'"$@" {redirected}'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "avpt", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**changed), capture_output=True, timeout=60, check=False)


def environment(**changed: str) -> dict[str, str]:
    """The one that there is, in which any folder finds the package."""
    return os.environ | {"PYTHONPATH": str(Path(options.__file__).parents[2])} | changed


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Class folders of nothing that needs to be decoded."""
    return touch(tmp_path / "clips", "café/1.wav", "café/2.wav", "dog/1.wav", "dog/\x1b]0;x\x07.wav").parent


MANIFEST = ("manifest", "folder", "clips", "--out", "é.csv")


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_without_stderr_the_work_is_done_all_the_same(clips: Path, redirected: str) -> None:
    process = shell(clips, redirected, *MANIFEST)
    assert (process.returncode, process.stdout, process.stderr) == (0, "é.csv\n".encode(), b"")
    assert (clips / "é.csv").read_text(encoding="utf-8").count("\n") == 4


@pytest.mark.parametrize(
    ("redirected", "reason", "words"),
    [
        (">&-", "Bad file descriptor", MANIFEST),
        (">/dev/full", "No space left on device", MANIFEST),
        (">&- 2>&-", "", MANIFEST),
        (">/dev/full", "No space left on device", ("--version",)),
    ],
)
def test_without_stdout_the_work_is_done_and_the_command_fails(
    clips: Path, redirected: str, reason: str, words: tuple[str, ...]
) -> None:
    process = shell(clips, redirected, *words, *(["--quiet"] if words is MANIFEST else []))
    assert (process.returncode, process.stdout) == (1, b"")
    lines = process.stderr.decode().splitlines()
    assert lines == ([f"avpt: stdout can't be written ({reason}); {lines[0].partition('; ')[2]}"] if reason else [])
    assert (clips / "é.csv").exists() == (words is MANIFEST)


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", [(*MANIFEST, "--quiet"), ("manifest", "--help"), ("guide", "limits")], ids=str)
def test_a_reader_who_goes_away_ends_the_program_quietly(clips: Path, words: tuple[str, ...], buffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "avpt", *words]
    changed = environment(PYTHONUNBUFFERED=buffered)
    process = subprocess.run(
        command, cwd=clips, env=changed, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")
    assert (clips / "é.csv").exists() == (words[0] == "manifest" and "--out" in words)


# --- tables ------------------------------------------------------------------------------------------------------

WIDE_TABLE = Table(
    "a table",
    ("", "group", "runs", "test accuracy", "macro f1", "audio accuracy", "visual accuracy", "Holm's p"),
    [
        ("A", "mask=none", "seed-0/none", "0.912 ± 0.012", "0.899", "0.512", "0.433 ± 0.021", "< 0.001"),
        ("B", "mask=adaptive balance=ogm-ge", "seed-0/adaptive", "0.913", "0.899", "0.512", "0.433", "-"),
    ],
    left=3,
)


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_no_word_of_a_table_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _print_table(WIDE_TABLE, to_stderr=False)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    repeated = shown.count("─ \n") - 1  # the first column, where columns follow in further tables
    expected = [*WIDE_TABLE.title.split(), *" ".join(WIDE_TABLE.columns).split()]
    expected += [word for row in WIDE_TABLE.rows for cell in row for word in cell.split()] + ["A", "B"] * repeated
    found = re.sub("─+", " ", shown).split()
    assert sorted(found) == sorted(expected)
    assert (repeated > 0) == (width < 100)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_sentences_are_folded_to_the_width_and_paths_are_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    path = f"/{'a-long-folder/' * 6}encoder.safetensors"
    words = f"No comparison is tested: that takes 3 seeds that both groups have finished.\nNothing is odd in {path}"
    show(Report({}, words=words), json=False, quiet=False)
    shown = capsys.readouterr().out
    assert shown.split() == words.split()
    assert all(len(line) <= width or line == path for line in shown.splitlines())
    assert re.search("^Nothing", shown, re.MULTILINE)


def test_a_table_that_fits_is_drawn_as_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _print_table(Table("t", ("name", "n"), [("音楽", "1"), ("a", "10")]), to_stderr=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["t", "", " name    n", " ─────────", " 音楽    1", " a      10", ""]


def test_a_path_in_a_table_loses_its_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    path = f"/srv/{'deep/' * 20}clips/holiday-0001.mp4"
    rows = [(FilePath(path), "playing the violin", "0.912"), (FilePath("b.wav"), "dog", "0.5"), ("", "cat", "0.2")]
    _print_table(Table("labels", ("clip", "label", ""), rows), to_stderr=False)
    lines = capsys.readouterr().out.splitlines()
    first, second, *_ = lines[4:]
    assert re.fullmatch(r" …\S*/clips/holiday-0001\.mp4 +playing the violin +0\.912 ", first)
    assert second.startswith(" b.wav ")
    assert len(lines) == 8
    assert max(map(len, lines)) == 60
    monkeypatch.setenv("COLUMNS", "300")
    _print_table(Table("labels", ("clip", "label", ""), rows), to_stderr=False)
    assert path in capsys.readouterr().out


# --- streams and encodings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_any_encoding_of_the_streams_will_do(clips: Path, changed: dict[str, str]) -> None:
    process = shell(clips, "", *MANIFEST, **changed)
    assert (process.returncode, process.stdout) == (0, "é.csv\n".encode()), process.stderr
    assert b" of 4 clips are left out" in process.stderr
    process = shell(clips, "", *MANIFEST, "--json", **changed)
    assert os.fsencode(json.loads(process.stdout)["manifest"]) == "é.csv".encode()


# --- odd values and places ---------------------------------------------------------------------------------------


def numeric() -> list[tuple[str, str]]:
    """Every command's options that are numbers, or several."""
    actual = []
    for name, config_type in CONFIGS.items():
        for field in dataclasses.fields(config_type):
            kind = get_args(options.type_hints(config_type)[field.name])[0]
            if {int, float} & {kind, *get_args(kind), *(part for some in get_args(kind) for part in get_args(some))}:
                actual.append((name, field.name))
    return actual


def test_every_number_has_an_upper_end() -> None:
    numbers = numeric()
    assert len(numbers) > 80
    infos = {(name, option): options.parameter(CONFIGS[name], option) for name, option in numbers}
    assert [key for key, info in infos.items() if info.max is None] == []
    assert [key for key, info in infos.items() if info.min is None and key[1] not in ("clip_grad", "mixup")] == []


@pytest.mark.parametrize(
    "given",
    [
        {"image_size": 1_000_000},
        {"image_size": 10**400},
        {"lr": 1e308},
        {"num_frames": 10**23},
        {"num_frames": 100_000},
        {"batch_size": 65_536},
        {"milestones": "9" * 5000},
        {"milestones": "1,٣"},
        {"mixup": 1e308},
        {"clip_grad": 1e300},
        {"epochs": 10**9},
        {"spec_augment": (10**9, 0)},
    ],
    ids=str,
)
def test_numbers_beyond_reason_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--") as caught:
        FinetuneConfig(store=Path("s"), out=Path("o"), init=Path("i"), modality="visual", **given)
    assert len(str(caught.value)) < 6000
    assert all(len(line) <= LONGEST for line in words_of(caught.value))


@pytest.mark.parametrize(
    ("patch", "sides"),
    [("32x8", (32, 8)), ("6x4", (6, 4)), ("6", (6, 6)), *((text, None) for text in ("6x", "x4", "6x4x", "0x4", "0"))],
)
def test_a_patch_is_two_numbers_or_one_for_both(patch: str, sides: tuple[int, int] | None) -> None:
    def made() -> ScoreConfig:
        return ScoreConfig(audio=Path("a"), visual=Path("v"), audio_patch=patch)

    if sides is not None:
        assert made().patch["audio"] == sides
        assert ScoreConfig(audio=Path("a"), visual=Path("v"), visual_patch=patch).patch["visual"] == sides
    else:
        with pytest.raises(ConfigError, match="it must be FRAMESxBINS"):
            made()
        with pytest.raises(ConfigError, match="it must be HEIGHTxWIDTH"):
            ScoreConfig(audio=Path("a"), visual=Path("v"), visual_patch=patch)


@pytest.mark.parametrize("given", [{"shard_range": "0:" + "9" * 5000}, {"clip_timeout": 1e300}, {"max_frames": 10**9}])
def test_numbers_beyond_reason_are_refused_for_stores_too(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        PreprocessConfig(manifest=Path("m"), out=Path("o"), **given)


def test_home_is_meant_wherever_a_path_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "c")  # what is there may have any name
    many = CompareConfig(runs=[Path("~/a"), Path("b")], csv=Path("~/c"), search=[Path("~")])
    assert (many.runs, many.csv, many.search) == ([tmp_path / "a", Path("b")], tmp_path / "c", [tmp_path])
    assert PredictConfig(model=Path("~/m"), files=[Path("~nobody-of-this-name/x")]).files == [
        Path("~nobody-of-this-name/x")
    ]
    assert InitConfig(modality="audio", out=Path("o"), weights="~/w.pt").weights == str(tmp_path / "w.pt")
    touch(tmp_path / "clips", "a/1.wav", "b/1.wav")
    assert done("manifest", "folder", "~/clips", "--out=~/m.csv").stdout == f"{tmp_path / 'm.csv'}\n"


@pytest.mark.parametrize(
    "changed", [{"RANK": "x"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"RANK": "1"}, {"LOCAL_WORLD_SIZE": "9" * 5000}]
)
def test_an_environment_that_no_job_has_is_told(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]) -> None:
    job = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert place_in_job() == (0, 1, 0, 1)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    result = avpt("info", "nowhere")
    assert (result.code, len(result.stderr.splitlines())) == (1, 1)
    assert next(iter(changed)) in result.stderr
    assert "unset" in result.stderr


def test_only_files_are_read_as_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (Path("/dev/zero"), tmp_path / "pipe"):
        for words in (("preprocess", name, "--out", tmp_path / "s"), ("predict", tmp_path, "--manifest", name)):
            result = avpt(*words)
            assert result.code == 1
            assert len(result.stderr.splitlines()) == 1
        result = avpt("inspect", name)
        assert (result.code, result.stderr) == (
            1,
            f"avpt: {name} does not exist; inspect takes imagenet, a file with weights or a run folder\n",
        )
        with pytest.raises(AvptError, match="a device or a pipe"):
            sha256(name)
    assert "is a device or a pipe; name the manifest" in avpt("preprocess", "/dev/zero", "--out", "s").stderr


@pytest.mark.parametrize("out", ["ring", "ring/below/x.csv", "pipe", "dangling"])
def test_an_output_that_leads_nowhere_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    touch(tmp_path / "clips", "a/1.wav", "b/1.wav")
    result = avpt("manifest", "folder", tmp_path / "clips", "--out", tmp_path / out)
    assert result.code == 1
    assert result.error.endswith("choose another --out")
    assert result.error.startswith(f"avpt: {tmp_path / out.partition('/')[0]} is a ")
    assert (tmp_path / "ring").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    with pytest.raises(AvptError), claim(tmp_path / out):
        pass


def test_a_record_takes_names_of_any_bytes(tmp_path: Path) -> None:
    value = {os.fsdecode(b"caf\xe9"): "é\u202e"}
    write_json(tmp_path / "record.json", value)
    assert json.loads((tmp_path / "record.json").read_bytes()) == value
    assert "é\u202e" in (tmp_path / "record.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "wants"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_want_of_memory_is_known_by_its_words(error: Exception, wants: bool) -> None:
    assert wants_memory(error) == wants


def test_want_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(settings: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("avpt.commands.info.run", run)
    result = avpt("info", tmp_path)
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("avpt: there is too little memory for this; ")
    assert len(result.stderr.splitlines()) == 1


def test_sheets_are_read_back_as_they_are_shown() -> None:
    text = io.StringIO()
    csv.writer(text).writerow(map(for_sheet, ["=1", -2.5, EVIL]))
    assert next(csv.reader(io.StringIO(text.getvalue()))) == ["'=1", "-2.5", SHOWN]


def test_clips_are_not_blamed_for_a_machine_without_memory(clips: Path) -> None:
    (clips / "m.csv").write_text("label,split,audio\na,train,clips/dog/1.wav\n", encoding="utf-8")
    line = 'ulimit -v 800000; exec "$@"'  # KiB, less than torch takes
    command = [sys.executable, "-m", "avpt", "preprocess", "m.csv", "--out", "store", "--quiet"]
    process = subprocess.run(
        ["sh", "-c", line, "sh", *command], cwd=clips, env=environment(), capture_output=True, timeout=60, check=False
    )
    assert (process.returncode, process.stdout) == (1, b"")
    assert process.stderr.startswith(b"avpt: a worker can't begin: there is too little memory for this")
    assert process.stderr.count(b"\n") == 1
    written = {path.name for path in (clips / "store").iterdir()}
    assert written == {"settings.json", "paths.json"}  # no shard with failures


def test_a_worker_that_can_not_have_its_memory_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Pipe()
    limit = local._status("VmSize") + 2**29
    monkeypatch.setattr("resource.getrlimit", lambda kind: (limit, limit))
    local._try_out(theirs, "json", 2**32)
    assert "under --worker-memory 4; raise that limit" in ours.recv()
    local._try_out(theirs, "json", 2**20)
    local._try_out(theirs, "no_module_of_this_name", None)
    assert ours.recv() == ""
    assert ours.recv() == "ModuleNotFoundError: No module named 'no_module_of_this_name'"


# --- a sign of life ------------------------------------------------------------------------------------------------


def test_a_terminal_shows_that_the_program_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=60, color_system=None)
    monkeypatch.setattr("avpt.machine.progress.console", lambda: terminal)
    monkeypatch.setattr("avpt.machine.progress.PATIENCE", 0)
    monkeypatch.setattr("sys.stderr", FakeTerminal())
    logging.getLogger("avpt").setLevel(logging.INFO)

    def count() -> int:
        return len(re.findall(r"\d s", shown.getvalue()))

    def drawn(at_least: int) -> bool:
        """Whether the line was drawn so often, sooner or later."""
        for _ in range(1000):
            if count() >= at_least:
                return True
            time.sleep(0.02)
        return False

    with alive():
        assert drawn(2)
        with alone():
            before = shown.getvalue()
            terminal.print("a bar")
            assert shown.getvalue() == f"{before}a bar\n"
        assert drawn(count() + 1)
    after = shown.getvalue()
    assert after.endswith("\x1b[2K")  # nothing of it stays
    logging.getLogger("avpt").setLevel(logging.ERROR)  # as --quiet does
    with alive():
        assert shown.getvalue() == after


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_sign_of_life_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("avpt").setLevel(logging.INFO)
    with alive(), alone():
        pass
    assert capfd.readouterr() == ("", "")
