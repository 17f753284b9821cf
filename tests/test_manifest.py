"""What a manifest says, and what is said of a bad one, row by row."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpt.errors import ManifestError
from avpt.store.manifest import CONTROL, MAX_LISTED, Clip, Manifest, read_manifest
from avpt.store.spelling import lookalikes

HEADER = "id,label,split,audio"


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a few files to point at; only that they exist counts here."""
    for name in ("a.wav", "b.wav", "v.mp4", "picture.png"):
        (tmp_path / name).touch()
    (tmp_path / "frames.dir").mkdir()
    return tmp_path


def write(folder: Path, text: str, *, name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def message(path: Path, *, root: Path | None = None, multi_label: bool = False) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, root=root, multi_label=multi_label)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def bad_lines(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^ *line (\d+): ", text, flags=re.MULTILINE)]


# What a good manifest becomes


def test_reads_every_column(media: Path) -> None:
    path = write(
        media,
        "id,label,split,video,audio,frames,start,end\n"
        "one,dog,train,v.mp4,a.wav,,0.5,2\n"
        "two,cat,val,,,frames.dir,,\n"
        "three,dog,test,v.mp4,,picture.png,,\n",
    )
    manifest = read_manifest(path)
    first = manifest.clips[0]
    assert first == Clip("one", ("dog",), "train", media, ("v.mp4", "a.wav", ""), 0.5, 2.0)
    assert (first.video, first.audio, first.frames) == (media / "v.mp4", media / "a.wav", None)
    assert manifest.clips[1].frames == media / "frames.dir"
    third = manifest.clips[2]
    assert (third.start, third.end, third.audio) == (None, None, None)
    assert manifest.classes == ("cat", "dog")
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [clip.id for clip in manifest.split("train")] == ["one"]
    assert [clip.source for clip in manifest.clips] == ["v.mp4; a.wav", "frames.dir", "v.mp4; picture.png"]


def test_columns_in_any_order_and_file_order_kept(media: Path) -> None:
    path = write(media, "audio,split,label,id\nb.wav,val,x,2\na.wav,train,x,1\nb.wav,val,x,0\n")
    manifest = read_manifest(path)
    assert [clip.id for clip in manifest.clips] == ["2", "1", "0"]
    assert [clip.id for clip in manifest.split("val")] == ["2", "0"]
    assert manifest.split("test") == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark(media: Path, encoding: str, newline: str) -> None:
    rows = [HEADER, "1,Hündchen,train,a.wav", "2,猫,val,b.wav"]
    path = media / "manifest.csv"
    path.write_bytes(newline.join([*rows, ""]).encode(encoding))
    assert read_manifest(path).classes == ("Hündchen", "猫")


def test_quoted_commas_quotes_and_newlines(media: Path) -> None:
    path = write(media, f'{HEADER}\n"a, ""b""","c, d ""e""",train,"\na.wav"\n')
    (clip,) = read_manifest(path).clips
    assert clip.id == 'a, "b"'
    assert (clip.labels, clip.written[1]) == (('c, d "e"',), "a.wav")


def test_white_space_and_blank_lines_are_skipped(media: Path) -> None:
    path = write(media, '\n id , label,split ,audio\n\n 1 , "big dog", train,\ta.wav \n   \n2,dog,val,b.wav\n\n')
    manifest = read_manifest(path)
    assert [clip.id for clip in manifest.clips] == ["1", "2"]
    assert manifest.classes == ("big dog", "dog")


def test_paths_follow_the_manifest_or_the_root(media: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write(elsewhere, f"{HEADER}\n1,x,train,a.wav\n")
    assert "'a.wav' does not exist" in message(path)
    assert read_manifest(path, root=media).clips[0].audio == media / "a.wav"
    absolute = write(elsewhere, f"{HEADER}\n1,x,train,{media / 'a.wav'}\n")
    clip = read_manifest(absolute, root=elsewhere).clips[0]
    assert clip.audio == media / "a.wav"
    assert clip.source == str(media / "a.wav")
    assert "is not a folder" in message(path, root=media / "nowhere")


def test_paths_are_absolute_so_that_no_name_is_a_protocol(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (media / "10:30.wav").touch()
    monkeypatch.chdir(media)
    write(media, f"{HEADER}\n1,x,train,10:30.wav\n")
    clip = read_manifest(Path("manifest.csv")).clips[0]
    assert clip.audio == media / "10:30.wav"
    assert clip.source == "10:30.wav"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("x,train,v.mp4,a.wav,,,", "v"),
        ("x,train,,a.wav,picture.png,,", "a"),
        ("x,train,,,picture.png,,", "picture"),
        ("x,train,,,frames.dir,,", "frames.dir"),
        ("x,train,v.mp4,,,1.50,2", "v_1.50_2"),
        ("x,train,v.mp4,,,1.50,", "v_1.50"),
        ("x,train,v.mp4,,,,2.0", "v_2.0"),
    ],
)
@pytest.mark.parametrize("with_column", [True, False])
def test_default_id(media: Path, row: str, expected: str, with_column: bool) -> None:
    header, cells = "label,split,video,audio,frames,start,end", row
    if with_column:
        header, cells = f"id,{header}", f",{row}"
    assert read_manifest(write(media, f"{header}\n{cells}\n")).clips[0].id == expected


def test_multi_label(media: Path) -> None:
    path = write(media, f"{HEADER}\n1,dog; bark,train,a.wav\n2,cat,val,b.wav\n")
    manifest = read_manifest(path, multi_label=True)
    assert [clip.labels for clip in manifest.clips] == [("dog", "bark"), ("cat",)]
    assert manifest.classes == ("bark", "cat", "dog")
    assert read_manifest(path).classes == ("cat", "dog; bark")


# What is told about a bad one


def test_missing_folder_and_unreadable(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "none.csv")
    assert "is a folder" in message(tmp_path)
    assert "can't be read" in message(write(tmp_path, "") / "below")


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    assert message(write(tmp_path, text)).startswith("is empty")


def test_header_only(tmp_path: Path) -> None:
    assert "has no rows" in message(write(tmp_path, HEADER))


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(f"{HEADER}\n1,Hündchen,train,a.wav\n".encode("latin-1"))
    assert message(path).startswith("line 2: not UTF-8")
    path.write_bytes(HEADER.encode("utf-16"))
    assert "not UTF-8" in message(path)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("id,split,audio", "no column label"),
        ("id,label,audio", "no column split"),
        ("id,label,split", "none of the columns video, audio, frames"),
        ("id,label,split,audio,colour", "unknown column 'colour'"),
        ("id,label,split,audio,", "unknown column ''"),
        ("id,Label,split,audio", "unknown column 'Label'"),
        ("label;split;audio", "'label;split;audio' is one cell; separate the cells by commas"),
        ("id,label,split,audio,label", "column label is there twice"),
        ('id,"label"x,split', "not CSV"),
    ],
)
def test_bad_header(media: Path, header: str, says: str) -> None:
    text = message(write(media, f"{header}\n1,x,train,a.wav\n"))
    assert text.startswith("line 1: ")
    assert says in text
    assert "\n" not in text
    assert "not CSV" in says or "the columns are id, label, split, video, audio, frames, start, end" in text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1,x,train,v.mp4,a.wav", "has 5 cells, not 8"),
        ("1,x,train,v.mp4,a.wav,,,,", "has 9 cells, not 8"),
        ("1,x,train,none.mp4,,,,", "video 'none.mp4' does not exist"),
        ("1,x,train,v.mp4/below,,,,", "video 'v.mp4/below' does not exist"),
        ("1,x,train,,no\0name,,,", "audio 'no\\x00name' does not exist"),
        (f"1,x,train,,{'n' * 5000},,,", "nnn...' does not exist"),
        ("1,x,train,frames.dir,,,,", "'frames.dir' is a folder; a folder of images goes in column frames"),
        ("1,x,train,,.,,,", "'.' is a folder"),
        ("1,x,train,,,picture.png,0,1", "do not go with frames"),
        ("1,x,train,,a.wav,frames.dir,0,", "do not go with frames"),
        ("1,x,training,v.mp4,,,,", "split 'training' is not one of train, val, test"),
        ("1,x,,v.mp4,,,,", "split '' is not one of"),
        ("1,,train,v.mp4,,,,", "label is empty"),
        ("1,x,train,,,,,", "names no media"),
        ("1,x,train,v.mp4,,,soon,", "start 'soon' is not a number of seconds"),
        ("1,x,train,v.mp4,,,,nan", "end 'nan' is not a number of seconds"),
        ("1,x,train,v.mp4,,,0,inf", "end 'inf' is not a number of seconds"),
        ("1,x,train,v.mp4,,,0,1_0", "end '1_0' is not a number of seconds"),
        ("1,x,train,v.mp4,,,0,1e999", "end '1e999' is not a number of seconds"),
        ("1,x,train,v.mp4,,,-1,2", "start '-1' is negative"),
        ("1,x,train,v.mp4,,,2,1", "end '1' is not after start '2'"),
        ("1,x,train,v.mp4,,,2,2.0", "end '2.0' is not after start '2'"),
        ("1,x,train,v.mp4,,,,0", "end '0' is not after start '0'"),
        ("a\0b,x,train,v.mp4,,,,", "id 'a\\x00b' has control characters"),
        ("a\tb,x,train,v.mp4,,,,", "id 'a\\tb' has control characters"),
        ('1,x,train,"v.mp4"x,,,,', "not CSV"),
        ('1,x,train,"v.mp4,,,,', "not CSV"),
        ('1,"' + "x" * 200_000 + '",train,v.mp4,,,,', "not CSV (field larger"),
    ],
)
def test_bad_row(media: Path, row: str, says: str) -> None:
    text = message(write(media, f"id,label,split,video,audio,frames,start,end\n{row}\n"))
    assert text.startswith("line 2: ")
    assert says in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("", "label is empty"),
        (";", "empty part"),
        ("a;;b", "empty part"),
        ("a; ", "empty part"),
        ("b;a;b", "'b' is there twice"),
    ],
)
def test_bad_multi_label(media: Path, label: str, says: str) -> None:
    text = message(write(media, f"{HEADER}\n1,{label},train,a.wav\n"), multi_label=True)
    assert says in text
    assert "\n" not in text


def test_two_default_ids_alike(media: Path) -> None:
    path = write(media, "label,split,audio\nx,train,a.wav\nx,val,a.wav\nx,val,b.wav\nx,val,a.wav\n")
    text = message(path)
    assert bad_lines(text) == [3, 5]
    assert text.count("id 'a' is taken by line 2; name each in column id") == 2


def test_a_fifo_is_no_clip(media: Path) -> None:
    os.mkfifo(media / "pipe.wav")
    assert "is neither a file nor a folder" in message(write(media, f"{HEADER}\n1,x,train,pipe.wav\n"))


def test_all_bad_rows_are_told_with_all_that_is_wrong(media: Path) -> None:
    rows = [
        "1,x,train,a.wav",
        "1,,nowhere,none.wav",
        "2,x,val,b.wav",
        "",
        "3,x,val",
        '4,"x\ny",tset,a.wav',
        "5,x,,a.wav",
    ]
    text = message(write(media, "\n".join([HEADER, *rows])))
    first, *entries = text.splitlines()
    assert first == "4 bad rows"
    assert bad_lines(text) == [3, 6, 7, 9]
    for says in ("label is empty", "split 'nowhere'", "'none.wav' does not exist", "taken by line 2"):
        assert says in entries[0]


def test_an_open_quote_keeps_what_was_told_before_it(media: Path) -> None:
    path = write(media, f'{HEADER}\n1,,train,a.wav\n2,"x,train,a.wav\n3,x,train,a.wav\n4,x,train,a.wav\n')
    assert bad_lines(message(path)) == [2, 3]


@pytest.mark.parametrize(("count", "more"), [(MAX_LISTED, ""), (MAX_LISTED + 5, "and 5 more")])
def test_a_long_list_is_capped(media: Path, count: int, more: str) -> None:
    path = write(media, "\n".join([HEADER, *(f"{number},,train,a.wav" for number in range(count))]))
    text = message(path)
    assert text.startswith(f"{count} bad rows\n")
    assert bad_lines(text) == list(range(2, MAX_LISTED + 2))
    assert text.endswith(more)
    assert ("more" in text) == bool(more)


# Properties

printable = st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(str.strip)
printable = printable.filter(lambda text: text and not CONTROL.search(text))
cell = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(',"\r\n;'))).map(str.strip)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for each example: pytest's own fixture is shared by all of them."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "a.wav").touch()
        yield Path(name)


def written(rows: Iterable[Iterable[str]], ends: str) -> str:
    buffer = io.StringIO()
    if "\r" in ends:
        csv.writer(buffer, lineterminator=ends).writerows(rows)
    else:  # before Python 3.13 it leaves "\r" bare unless told to quote
        csv.writer(buffer, lineterminator=ends, quoting=csv.QUOTE_ALL).writerows(rows)
    return buffer.getvalue()


def read_rows(rows: Iterable[Iterable[str]], *, ends: str = "\n", multi_label: bool = False) -> Manifest:
    return read_bytes(written([HEADER.split(","), *rows], ends).encode(), multi_label=multi_label)


def read_bytes(data: bytes, *, multi_label: bool = False) -> Manifest:
    with folder() as base:
        (base / "manifest.csv").write_bytes(data)
        return read_manifest(base / "manifest.csv", multi_label=multi_label)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(printable, printable), min_size=1, unique_by=lambda row: row[0]),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_ids_and_labels_come_back(rows: list[tuple[str, str]], ends: str) -> None:
    manifest = read_rows([[name, label, "test", "a.wav"] for name, label in rows], ends=ends)
    assert [(clip.id, clip.labels) for clip in manifest.clips] == [(name, (label,)) for name, label in rows]
    assert manifest.classes == tuple(sorted({label for _, label in rows}))


@settings(deadline=None)
@given(labels=st.lists(printable.filter(lambda text: ";" not in text), min_size=1, unique=True))
def test_multiple_labels_come_back(labels: list[str]) -> None:
    manifest = read_rows([["1", " ; ".join(labels), "val", "a.wav"]], multi_label=True)
    assert manifest.clips[0].labels == tuple(labels)


lines = st.lists(st.sampled_from([HEADER, "1,x,train,a.wav", "2,,val", '"', ",", "\0", "\r", " ", "é", ";"]))


@settings(deadline=None)
@given(data=st.one_of(st.binary(), lines.map("\n".join).map(str.encode), lines.map("".join).map(str.encode)))
def test_any_bytes_give_a_manifest_or_a_manifest_error(data: bytes) -> None:
    for start in (b"", f"{HEADER}\n".encode(), f"{HEADER}\n1,x,train,a.wav\n".encode()):
        for multi_label in (False, True):
            try:
                manifest = read_bytes(start + data, multi_label=multi_label)
            except ManifestError as error:
                assert str(error)  # noqa: PT017
            else:
                assert manifest.clips


good_rows = st.tuples(st.just("x"), st.sampled_from(["train", "val"]), st.just("a.wav"))
bad_rows = st.one_of(
    st.tuples(st.sampled_from(["", " ", "\n"]), st.just("train"), st.just("a.wav")),
    st.tuples(st.just("x"), printable.filter(lambda text: text not in ("train", "val", "test")), st.just("a.wav")),
    st.tuples(cell, st.just("train"), printable.map(lambda text: text.replace("/", "_") + ".none")),
    st.tuples(st.just("x"), st.just("train")),
    st.tuples(st.just("multi\nline\nlabel"), st.just("tset"), st.just("a.wav")),
)


@settings(deadline=None)
@given(
    rows=st.lists(st.one_of(good_rows, good_rows, bad_rows, st.none()), min_size=1, max_size=MAX_LISTED),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_exactly_the_bad_rows_are_told(rows: list[tuple[str, ...] | None], ends: str) -> None:
    bad: list[int] = []
    parts = [HEADER + ends]
    for number, row in enumerate(rows):
        line = len(io.StringIO("".join(parts), newline="").readlines()) + 1
        if row is None:
            parts.append(ends)  # a blank line
            continue
        parts.append(written([[f"{number}", *row]], ends))
        if row not in (("x", "train", "a.wav"), ("x", "val", "a.wav")):
            bad.append(line)
    data = "".join(parts).encode()
    if bad:
        with pytest.raises(ManifestError) as caught:
            read_bytes(data)
        text = str(caught.value).split("manifest.csv: ", 1)[1]
        assert bad_lines(text) == bad
        assert len(bad) == 1 or text.startswith(f"{len(bad)} bad rows")
    elif any(rows):
        assert len(read_bytes(data).clips) == sum(row is not None for row in rows)


@settings(deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool))
def test_only_control_characters_make_an_id_or_a_label_bad(name: str) -> None:
    odd = {"\u2028", "\u2029", *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}
    for row, what in (([name, "x", "train", "a.wav"], "id"), (["1", name, "train", "a.wav"], "label")):
        if any(unicodedata.category(character) == "Cc" or character in odd for character in name):
            with pytest.raises(ManifestError, match=f"line 2: {what} .* has control characters"):
                read_rows([row])
        else:
            clip = read_rows([row]).clips[0]
            assert name in (clip.id, *clip.labels)


@pytest.mark.parametrize("odd", ["dog\nbark", "\x1b[2J", "a\0b", "cat\u202etac", "a\u2028b", "\x9b31m"])
def test_labels_that_steer_a_terminal_are_refused_by_line(media: Path, odd: str) -> None:
    for multi_label in (False, True):
        text = message(write(media, f'{HEADER}\n1,x,train,a.wav\n2,"{odd}",train,b.wav\n'), multi_label=multi_label)
        assert text == f"line 3: label {odd!r} has control characters; rename it"


def test_classes_that_look_alike_are_told(media: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "avpt")  # which a command with --quiet has raised
    labels = ["Dog", "dog", "dog\u200b", "caf\u00e9", "cafe\u0301", "ca fe", "cafe", "hot dog", "bird"]
    rows = [f"{number},{label},train,a.wav" for number, label in enumerate(labels)]
    manifest = read_manifest(write(media, "\n".join([HEADER, *rows, ""])))
    assert len(manifest.classes) == len(labels)
    (says,) = (record.getMessage() for record in caplog.records)
    assert says == (
        "'Dog' and 'dog' and 'dog\\u200b', 'ca fe' and 'cafe', 'cafe\\u0301' and 'caf\\xe9' look alike and are classes "
        "of their own; spell them alike if they are one"
    )
    assert lookalikes(["straße", "STRASSE", "\uff21", "a", "b"]) == [["straße", "STRASSE"], ["\uff21", "a"]]


def test_no_word_where_classes_are_well_apart(media: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "avpt")
    read_manifest(write(media, f"{HEADER}\n1,cat,train,a.wav\n2,cats,train,a.wav\n"))
    assert not caplog.records


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_are_found_under_the_other_spelling_of_accents(media: Path, form: Literal["NFC", "NFD"]) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    name = unicodedata.normalize(form, "é/한국어 ü.wav")
    written_name = unicodedata.normalize(other, name)
    (media / name).parent.mkdir()
    (media / name).touch()
    assert not (media / written_name).exists()
    (clip,) = read_manifest(write(media, f"label,split,audio\nx,train,{written_name}\n")).clips
    assert clip.audio == media / name
    assert (clip.source, clip.id) == (written_name, Path(written_name).stem)  # the same on every machine
    assert "does not exist" in message(write(media, f"label,split,audio\nx,train,{written_name}x\n"))


def test_of_two_spellings_the_one_that_is_written_is_taken(media: Path) -> None:
    for name in ("\u00e9.wav", "e\u0301.wav"):
        (media / name).touch()
        (clip,) = read_manifest(write(media, f"id,label,split,audio\n1,x,train,{name}\n")).clips
        assert clip.audio == media / name
