"""Splits and folds that keep groups whole, against their properties, counted out here."""

from __future__ import annotations

import csv
import json
import random
import wave
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from helpers import avpt, done, files_of, touch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from avpt.datasets.dividing import divide_into_folds
from avpt.datasets.rows import Row
from avpt.machine.set_aside import torn_groups

EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
HEADER = "filename,fold,target,category,esc10,src_file,take"


def rows_in(groups: Sequence[tuple[str, Sequence[str]]]) -> list[Row]:
    """A row for each label of each group."""
    return [Row(f"{g}/{i}", label, None, g, ()) for g, labels in groups for i, label in enumerate(labels)]


def unevenness(rows: Sequence[Row], folds: dict[str, int], count: int) -> float:
    """The sum over classes and folds of the squared share that the fold has of the class."""
    totals, found = Counter(row.label for row in rows), Counter((row.label, folds[row.id]) for row in rows)
    return sum((found[label, fold] / totals[label]) ** 2 for label, fold in product(totals, range(count)))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


labels = st.sampled_from("abcd")
groups = st.lists(st.lists(labels, min_size=1, max_size=6), min_size=2, max_size=14)


@settings(deadline=None)
@given(groups, st.integers(2, 6), st.randoms(use_true_random=False))
def test_folds_keep_groups_whole_and_none_is_empty(
    members: list[list[str]], count: int, shuffled: random.Random
) -> None:
    count = min(count, len(members))
    rows = rows_in([(f"g{number}", names) for number, names in enumerate(members)])
    folds = divide_into_folds(rows, count)
    assert folds.keys() == {row.id for row in rows}
    assert set(folds.values()) == set(range(count))
    for number in range(len(members)):
        assert len({folds[row.id] for row in rows if row.group == f"g{number}"}) == 1
    again = shuffled.sample(rows, len(rows))
    assert divide_into_folds(again, count) == folds


@settings(deadline=None)
@given(st.lists(labels, min_size=2, max_size=250), st.integers(2, 7))
def test_single_clips_are_divided_evenly_class_by_class(names: list[str], count: int) -> None:
    rows = rows_in([(f"g{number}", [name]) for number, name in enumerate(names)])
    folds = divide_into_folds(rows, count)
    for label in set(names):
        per_fold = Counter(folds[row.id] for row in rows if row.label == label)
        sizes = [per_fold[fold] for fold in range(count)]
        assert max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(labels, min_size=1, max_size=4), min_size=3, max_size=6))
def test_of_a_few_groups_no_single_one_could_be_better_elsewhere(members: list[list[str]]) -> None:
    """Nor could two of them that change places; and the best of all divisions is not far."""
    rows = rows_in([(f"g{number}", names) for number, names in enumerate(members)])
    names = [f"g{number}" for number in range(len(members))]
    folds = divide_into_folds(rows, 2)
    chosen = {row.group: folds[row.id] for row in rows}

    def price(of_group: dict[str, int]) -> float:
        return unevenness(rows, {row.id: of_group[row.group] for row in rows}, 2)

    here = price(chosen)
    for name in names:
        assert price(chosen | {name: 1 - chosen[name]}) >= here - 1e-9
    for one, other in product(names, names):
        assert price(chosen | {one: chosen[other], other: chosen[one]}) >= here - 1e-9
    best = min(price(dict(zip(names, places, strict=True))) for places in product(range(2), repeat=len(names)))
    assert here - best <= 0.6 * len({row.label for row in rows})


def test_folds_are_as_even_as_scikit_learns() -> None:
    rng = random.Random(0)
    for _ in range(5):
        members = [(f"g{n}", [rng.choice("abcdef") for _ in range(rng.randint(1, 40))]) for n in range(60)]
        rows = rows_in(members)
        folds = divide_into_folds(rows, 5)
        split = StratifiedGroupKFold(5).split(rows, [row.label for row in rows], [row.group for row in rows])
        theirs = {rows[i].id: fold for fold, (_, test) in enumerate(split) for i in test}
        assert unevenness(rows, folds, 5) <= unevenness(rows, theirs, 5) + 1e-9


def test_many_groups_are_divided_in_a_moment() -> None:
    rows = rows_in([(f"g{number}", ["abc"[number % 3]]) for number in range(3000)])
    assert Counter(divide_into_folds(rows, 10).values()) == dict.fromkeys(range(10), 300)


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.sampled_from(["train", "val", "test"]))))
def test_a_group_is_torn_if_it_is_in_two_splits(clips: list[tuple[str, str]]) -> None:
    expected = [name for name in "abc" if len({split for group, split in clips if group == name}) > 1]
    assert torn_groups(clips) == expected


# --- on folders --------------------------------------------------------------------------------------------------


def actors(folder: Path, count: int = 7) -> Path:
    """Recordings of actors in two classes; an actor has more the higher the number."""
    names = [
        f"{label}/actor{number}_{take}.wav"
        for label in ("calm", "cross")
        for number in range(1, count + 1)
        for take in range(number % 3 + 1)
    ]
    return touch(folder, *names)


def check_folds(folds: Sequence[list[dict[str, str]]], group_of: dict[str, str]) -> None:
    """The test splits are disjoint, together they are everything, and no group is torn."""
    ids = [sorted(row["id"] for row in rows) for rows in folds]
    assert all(each == ids[0] for each in ids)
    tested = [{row["id"] for row in rows if row["split"] == "test"} for rows in folds]
    assert sum(map(len, tested)) == len(set().union(*tested)) == len(ids[0])
    for rows in folds:
        splits: dict[str, set[str]] = {}
        for row in rows:
            splits.setdefault(group_of[row["id"]], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())


def test_a_manifest_for_each_fold(tmp_path: Path) -> None:
    folder, out = actors(tmp_path / "clips"), tmp_path / "m.csv"
    command = ("manifest", "folder", folder, "--group-by", r"actor\d+", "--folds", "3", "--val-fraction", "0.2")
    result = done(*command, "--out", out)
    paths = [tmp_path / f"m-fold{fold}.csv" for fold in (1, 2, 3)]
    assert result.stdout.split() == list(map(str, paths))
    assert not out.exists()
    folds = [read(path) for path in paths]
    check_folds(folds, {row["id"]: row["id"].partition("_")[0].partition("/")[2] for row in folds[0]})
    assert all({row["split"] for row in rows} == {"train", "val", "test"} for rows in folds)
    assert all(row["recording"] == row["id"][row["id"].index("actor") :].partition("_")[0] for row in folds[0])
    for label in ("calm", "cross"):
        sizes = [sum(row["split"] == "test" and row["label"] == label for row in rows) for rows in folds]
        assert max(sizes) - min(sizes) <= 1

    record = json.loads((tmp_path / "m-fold2.csv.json").read_text())["config"]
    assert (record["folds"], record["fold"]) == (3, 2)
    before = files_of(tmp_path)
    assert done(*command, "--out", out).stdout.split() == list(map(str, paths))
    shown = done(*command, "--out", out, "--json").json()
    assert [each["manifest"] for each in shown["folds"]] == list(map(str, paths))
    paths[1].unlink()  # as if it had been killed there
    (tmp_path / "m-fold3.csv.json").unlink()
    done(*command, "--out", out)
    assert files_of(tmp_path) == before

    other = avpt("manifest", "folder", folder, "--group-by", r"actor\d+", "--folds", "2", "--out", out)
    assert (other.code, "folds: 3 there, 2 now" in other.error) == (1, True)
    single = avpt("manifest", "folder", folder, "--out", paths[0])
    assert (single.code, "fold: 1 there, nothing now" in single.error) == (1, True)
    done(*command, "--out", tmp_path / "ten.csv", "--folds", "7")
    assert (tmp_path / "ten-fold7.csv").exists()


def test_the_record_of_a_single_manifest_has_nothing_of_folds(tmp_path: Path) -> None:
    done("manifest", "folder", actors(tmp_path / "clips"), "--out", tmp_path / "m.csv")
    record = json.loads((tmp_path / "m.csv.json").read_text())["config"]
    assert not record.keys() & {"folds", "fold"}


def test_pieces_of_a_file_stay_in_its_fold(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "clips" / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16000 * 3))
    command = ("manifest", "folder", tmp_path / "clips", "--segment", "1", "--folds", "2")
    done(*command, "--out", tmp_path / "m.csv")
    folds = [read(tmp_path / f"m-fold{fold}.csv") for fold in (1, 2)]
    check_folds(folds, {row["id"]: row["recording"] for row in folds[0]})
    assert [len(rows) for rows in folds] == [12, 12]


def crema_d(folder: Path) -> Path:
    names = [f"{actor}_{line}_{emotion}_XX" for actor in range(1001, 1011) for line in "AB" for emotion in EMOTIONS]
    return touch(folder, *(f"AudioWAV/{name}.wav" for name in names))


def test_folds_of_crema_d_keep_actors_apart(tmp_path: Path) -> None:
    folder = crema_d(tmp_path / "CREMA-D")
    done("manifest", "crema-d", folder, "--folds", "5", "--val-fraction", "0.1", "--out", tmp_path / "m.csv")
    folds = [read(tmp_path / f"m-fold{fold}.csv") for fold in range(1, 6)]
    check_folds(folds, {row["id"]: row["id"][:4] for row in folds[0]})
    for rows in folds:  # two of the ten actors each, with all that they say
        assert Counter(row["label"] for row in rows if row["split"] == "test") == dict.fromkeys(
            ("anger", "disgust", "fear", "happy", "neutral", "sad"), 4
        )

    torn = done("manifest", "crema-d", folder, "--test-fraction", "0.2", "--out", tmp_path / "torn.csv").stderr
    assert "groups of clips that belong together (a recording, a speaker) are in more than one split (10" in torn
    assert '--group-by "^\\d+" keeps them together' in torn
    whole = ("--group-by", r"^\d+", "--test-fraction", "0.2", "--out", tmp_path / "one.csv")
    assert "belong together" not in done("manifest", "crema-d", folder, *whole).stderr
    rows = read(tmp_path / "one.csv")
    tested = {row["id"][:4] for row in rows if row["split"] == "test"}
    assert len(tested) == 2
    assert not tested & {row["id"][:4] for row in rows if row["split"] == "train"}


def test_folds_of_esc50_are_its_own(tmp_path: Path) -> None:
    names = [f"{fold}-{100 + fold}-A-{n}" for fold in range(1, 6) for n in range(4)]
    folder = touch(tmp_path / "ESC-50", *(f"audio/{name}.wav" for name in names))
    lines = [f"{name}.wav,{name[0]},{name[-1]},c{name[-1]},True,{name.split('-')[1]},A" for name in names]
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join([HEADER, *lines, ""]))
    options = ("--val-fraction", "0.2")
    done("manifest", "esc50", folder, "--folds", "5", *options, "--out", tmp_path / "m.csv")
    for fold in range(1, 6):
        one = tmp_path / f"one{fold}.csv"
        done("manifest", "esc50", folder, "--test-fold", str(fold), *options, "--out", one)
        assert (tmp_path / f"m-fold{fold}.csv").read_bytes() == one.read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("folder", ("--folds", "1"), "--folds is 1; it must be 2 to 1000"),
        ("folder", ("--folds", "200"), "--folds is 200, but there are only 28 clips; lower it"),
        ("folder", ("--folds", "8", "--group-by", r"actor\d"), "--folds is 8, but there are only 7 groups; lower it"),
        ("folder", ("--folds", "2", "--test-fraction", "0.1"), "--test-fraction does not go with --folds"),
        ("folder", ("--folds", "2", "--val-fraction", "0.5"), "leave nothing for train"),
        ("folder", ("--group-by", "zebra"), "matches no clip's path, such as calm/actor1_0"),
        ("folder", ("--group-by", "(zebra)?"), "matches no clip's path, such as calm/actor1_0"),
        ("folder", ("--group-by", "actor"), "finds actor in every clip's path, so that there is one group alone"),
        ("folder", ("--group-by", "(["), "--group-by is no regular expression"),
        ("folder", ("--group-by", ""), "--group-by is empty, which finds nothing in a path"),
        ("vggsound", ("--folds", "3"), "--folds does not go with vggsound: its lists say which clips are test"),
        ("vggsound", ("--group-by", "x"), "it knows which of its clips belong together"),
        ("crema-d", ("--folds", "3", "--list", "x.csv"), "its lists say which clips are test"),
        ("esc50", ("--folds", "4"), "--folds is 4, but ESC-50 has 5 folds of its own; make it 5"),
        ("esc50", ("--folds", "5", "--test-fold", "1"), "--test-fold does not go with --folds"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, name: str, options: Sequence[str], says: str) -> None:
    result = avpt("manifest", name, actors(tmp_path / "clips"), *options, "--out", tmp_path / "m.csv")
    assert result.code == 1
    (line,) = result.stderr.splitlines()
    assert says in line
    assert [path.name for path in tmp_path.glob("m*")] == []


def test_clips_that_no_pattern_finds_are_counted_and_named(tmp_path: Path) -> None:
    folder = touch(actors(tmp_path / "clips"), "calm/noise.wav", "cross/rain.wav")
    result = done(
        "manifest", "folder", folder, "--group-by", r"(actor\d+)|noise", "--folds", "2", "--out", folder / "m.csv"
    )
    assert "--group-by matches nothing in 2 of 30 paths (calm/noise, cross/rain)" in result.stderr


# --- groups that lie in two splits -------------------------------------------------------------------------------


def test_groups_that_folders_or_lists_tear_are_told(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "clips", *(f"{s}/{c}/actor{a}_{s}.wav" for s in ("train", "test") for c in "xy" for a in "12")
    )
    command = ("manifest", "folder", folder, "--out", tmp_path / "m.csv")
    says = done(*command, "--group-by", r"actor\d").stderr
    assert "2 groups of clips that belong together (a recording, a speaker) are in more than one split" in says
    assert "(actor1, actor2)" in says
    assert "more than one split" not in done(*command, "--overwrite").stderr
    refused = avpt(*command, "--folds", "2")
    assert (refused.code, "--folds does not go with folders that are splits already" in refused.error) == (1, True)


def test_recordings_that_a_manifest_tears_are_told(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    lines = ["label,split,frames,recording", "x,train,a.png,film 1", "y,train,b.png,film 2", "x,test,c.png,film 1"]
    (tmp_path / "m.csv").write_text("\n".join([*lines, ""]))
    told = avpt("preprocess", tmp_path / "m.csv", "--out", tmp_path / "store", "--max-failures", "1")
    assert (
        "1 group of clips that belong together (a recording, a speaker) is in more than one split (film 1)"
        in told.stderr
    )
    (tmp_path / "m.csv").write_text("\n".join([*lines[:3], ""]))
    untorn = avpt("preprocess", tmp_path / "m.csv", "--out", tmp_path / "store2", "--max-failures", "1")
    assert "more than one split" not in untorn.stderr
