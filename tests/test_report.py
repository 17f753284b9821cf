"""`avpt report`: one page, true to the artifacts, that loads nothing, and says what is missing."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    ARCH,
    PATCHES,
    STORE_OPTIONS,
    TRAIN_OPTIONS,
    Experiment,
    avpt,
    digit_rows,
    done,
    files_of,
    fuse,
    refused,
    touch,
    write_manifest,
)
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape
from media import Clips
from PIL import Image
from scipy.stats import binomtest, ttest_1samp
from tiny import write_tiny_run

from avpt.figures.bars import draw_bars
from avpt.figures.pictures import colour_spectrogram
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.checking import read
from avpt.files.outputs import sha256
from avpt.files.records import ManifestRecord
from avpt.files.typed_paths import write_paths
from avpt.loading.transforms import clip_seed
from avpt.options import FuseConfig, InitConfig
from avpt.report.axis import Axis, choose_axes
from avpt.report.chapters import clips, initialisation, learning, overview, provenance
from avpt.report.chapters.dominance import explain_none
from avpt.report.chapters.results import Scores
from avpt.report.chapters.verdicts import questions
from avpt.report.chapters.verdicts.answers import list_unsettled, weigh_gains
from avpt.report.chapters.verdicts.starved_modality import Evidence, explain_shares, weigh
from avpt.report.differences import (
    CHANCE,
    compare,
    compare_seeds,
    describe_outcome,
    explain_limit,
    format_p,
    set_limit,
)
from avpt.report.drawing import colour_input, name_clip, pick_telling
from avpt.report.experiment import Experiment as Gathered
from avpt.report.experiment import gather
from avpt.report.manifest_commands import command_of_manifest
from avpt.report.methods import describe_method, is_plain
from avpt.report.page.blocks import (
    Block,
    Card,
    Cards,
    Command,
    Dot,
    Dots,
    Facts,
    Figure,
    Fold,
    Graph,
    Grid,
    Heading,
    Page,
    Section,
    Strip,
    Terms,
    Text,
    Verdict,
    Vertex,
)
from avpt.report.page.html import BROAD, render
from avpt.report.script import Step, write_script
from avpt.report.shell_commands import break_lines, command_of, find_folder
from avpt.report.shell_commands import write_option as words_of
from avpt.report.terms import explain_terms
from avpt.runs.lineage import Node
from avpt.store.store import Store
from avpt.text import printable
from avpt.types import MODALITIES, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "link", "br", "hr", "input"}
LOADS = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")


class Parsed(HTMLParser):
    """A page as its tags: (name, attributes), its text, and whether tags close as they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def joint(experiment: Experiment) -> Path:
    """The same fused run without masking."""
    out = experiment.folder / "unmasked"
    done(*fuse(experiment), "--mask", "none", "--out", out)
    return out


@pytest.fixture(scope="module")
def page(experiment: Experiment, joint: Path) -> Path:
    out = experiment.folder / "report.html"
    result = done("report", joint, experiment.fused, "--out", out)
    assert result.stdout == f"{out}\n"
    assert "chapter 7 of 7: provenance" in result.stderr.splitlines()
    return out


def check_page(text: str) -> Parsed:
    """What must hold of every page."""
    parsed = Parsed(text)
    assert not parsed.all("script", "link", "iframe", "object", "embed", "base", "form")
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in LOADS:
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/")), (tag, name, value)
    style = "".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    ids = Counter(attributes["id"] for _, attributes in parsed.tags if "id" in attributes)
    assert all(count == 1 for count in ids.values())
    targets = [attributes.get("href", "#")[1:] for attributes in parsed.all("a")]
    targets += [attributes.get("xlink:href", "#")[1:] for attributes in parsed.all("use")]
    targets += re.findall(r"url\(#([^)]*)\)", text)
    assert set(targets) - {""} <= ids.keys()
    assert all(attributes["alt"].strip() for attributes in parsed.all("img"))
    assert all(attributes["aria-label"].strip() for attributes in parsed.all("svg"))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in parsed.all("th"))
    (root,) = parsed.all("html")
    assert root["lang"] == "en"
    policy = next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    return parsed


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_small_and_has_every_part(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = check_page(text)
    assert len(text) < 2_000_000
    titles = ("The data", "Initialisation", "Stage 1", "Confidence", "Stage 2", "Results", "Provenance")
    assert all(title in parsed.words for title in titles)
    assert 'class="missing"' not in text.partition("<main")[2].replace('rect class="missing"', "")
    assert len(parsed.all("img")) >= 12  # examples, the most extreme clips, masked inputs
    assert len(parsed.all("article")) == 3


def test_the_data_maps_are_of_the_clips_that_were_scored(page: Path, experiment: Experiment) -> None:
    shown = Parsed(page.read_text(encoding="utf-8"))
    words = " ".join(shown.words.split())
    assert len([svg for svg in shown.all("svg") if svg["aria-label"].startswith("Data maps, ")]) == 1
    scored = artifacts.load(experiment.confidence, "confidence").tensors
    for modality in MODALITIES:
        means = [
            f"{name} {scored[f'{modality}_{name}'].double().mean():.2f}"
            for name in ("confidence", "variability", "correctness", "forgetting")
        ]
        assert f"{modality}: mean {', '.join(means)}; " in words


def test_the_first_screen_says_what_was_found(page: Path, experiment: Experiment, joint: Path) -> None:
    """What the data is, three clips, bars with numbers, and the verdicts; all else comes later or is folded."""
    text = page.read_text(encoding="utf-8")
    first = text[text.index('<section id="found"') : text.index("<nav")]
    words = " ".join(re.sub("<[^>]*>", " ", first).split())
    assert words.startswith("What was found 36 clips of 3 classes (0, 1, 2), one label each: ")
    assert first.count('<li class="card">') == 3
    links = re.findall(r'<a href="#(verdict-\d)">', first)
    assert list(dict.fromkeys(links)) == ["verdict-1", "verdict-2", "verdict-3"]
    assert first.index('<ul class="badges">') < first.index("<img")
    assert first.index("<img") < first.index('<ul class="dots">') < first.index("<article")
    assert re.findall(r'<li class="dot (\w+)">', first) == ["audio", "visual", "joint", "joint"]
    shown = [experiment.audio, experiment.visual, joint, experiment.fused]
    scores = [json.loads((run / "summary.json").read_text(encoding="utf-8"))["test"]["accuracy"] for run in shown]
    assert re.findall(r"<strong>([\d.]+ %)</strong>", first)[:4] == [f"{100 * score:.1f} %" for score in scores]
    (axis,) = choose_axes([scores[:1], scores[1:2], scores[2:]], 5 / 9)  # of nine clips
    assert re.findall(r'"mean" style="left: ([\d.]+)%"', first) == [
        f"{100 * axis.place(score):.2f}" for score in scores
    ]
    assert f"The axis goes from {axis.words}" in words
    assert "both together, nothing masked" in words
    assert "one clip of 9 is 11 points, and always the most frequent class would reach 33.3 %" in words
    assert first.index('<ul class="badges">') < first.index("What is meant by BatchNorm, ") < first.index("<img")
    assert first.count("<details>") + first.count('<details class="fold">') == first.count("<details") >= 3
    assert "<details open" not in text
    sections = re.findall(r'<section id="([\w-]+)"', text)
    assert sections[:2] == ["found", "results"]
    assert sections[-1] == "provenance"


def test_dots_show_the_spread_over_seeds(experiment: Experiment) -> None:
    found = gather([experiment.audio], [experiment.folder])
    (node,) = found.stage1("audio")
    axis = Axis(0.5, 0.9, 0.1)
    dot = overview.draw_score(found, Scores("audio", [node, node], "test", "accuracy", [0.5, 0.7]), axis)
    assert (dot.number, dot.note) == ("60.0 % ± 14.1", "2 seeds: 50.0 to 70.0")
    made = render(Page("x", [], [], [], {}, [Dots("title", [dot], [(0, "50 %"), (1, "90 %")])]), "#1b1b1d")
    assert 'class="spread" style="left: 0.00%; width: 50.00%"' in made
    assert re.findall(r'class="one" style="left: ([\d.]+)%"', made) == ["0.00", "50.00"]
    assert 'class="mean" style="left: 25.00%"' in made
    assert ">50 %</span>" in made
    dot = overview.draw_score(found, Scores("audio", [node], "test", "accuracy", [0.5]), axis)
    assert (dot.number, dot.note, dot.each) == ("50.0 %", "1 seed", [])


def test_a_single_seed_is_hollow_and_stands_below_several(experiment: Experiment) -> None:
    found = gather([experiment.audio], [experiment.folder])
    (node,) = found.stage1("audio")
    one, two = (Scores("audio", [node], "test", "accuracy", numbers) for numbers in ([0.9], [0.5, 0.7]))
    assert sorted([one, two], key=overview.place_score) == [two, one]
    dots = [overview.draw_score(found, scores, Axis(0.5, 0.9, 0.1)) for scores in (two, one)]
    made = render(Page("x", [], [], [], {}, [Dots("title", dots, [(0, "50 %"), (1, "90 %")])]), "#1b1b1d")
    assert re.findall(r'class="(track[^"]*)"', made) == ["track", "track single"]
    title = next(block.title for block in overview.draw_scores(found) if isinstance(block, Dots))
    assert "a hollow dot is a single seed, of which no spread is known" in title


def test_accuracies_come_first_and_a_single_seed_is_no_end_of_their_range(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gather([experiment.audio], [experiment.folder])
    (node,) = found.stage1("audio")
    groups = [Scores("a", [node], "test", "accuracy", numbers) for numbers in ([0.9], [0.5, 0.7], [0.3, 0.4])]
    for count, says in (
        (1, "sound alone 90.0 % (1 seed)"),
        (2, "sound alone 60.0 % ± 14.1"),
        (3, "sound alone 35.0 % to 60.0 % (2 ways of training)"),
    ):
        monkeypatch.setattr(overview, "collect_scores", lambda _, count=count: groups[:count])
        assert overview.give_numbers(found) == [Text(f"Test accuracy: {says}.")]


def test_small_differences_are_seen_on_axes_that_say_where_they_begin() -> None:
    """One axis for all runs or, where that would squeeze what is compared, one for each kind."""
    assert [axis.words for axis in choose_axes([[0.90, 0.93], [0.96, 0.97]])] == ["88 % to 98 %"]
    alone, together = choose_axes([[0.40, 0.61], [0.963, 0.966]])
    assert (alone.words, together.words) == ("35 % to 65 %", "94 % to 99 %")
    assert choose_axes([[1.0]])[0].words == "95 % to 100 %"
    assert choose_axes([[1.0]], 0.5)[0].words == "40 % to 100 %"


def test_methods_are_named_by_their_own_options() -> None:
    """A balancing method that the report has never heard of stands there by its name."""

    def run(**options: object) -> Node:
        return Node(Path("run"), "fused", {"mask": "none"} | options, {}, ())

    found = Gathered(origins={Path("run"): {}})
    assert describe_method(found, run()) == "nothing masked"
    assert describe_method(found, run(balance="my_package.methods:Mine")) == "balanced: my_package.methods:Mine"
    settings = {"balance": "uniform", "balance_set": ["head=2"], "balance_gamma": 1.5}
    assert describe_method(found, run(**settings)) == "balanced: uniform(head=2, gamma=1.5)"
    assert describe_method(found, run(mask="adaptive", mask_rule="released")) == "masked: adaptive, released rule"
    assert describe_method(found, run(fusion="film", modality_dropout=0.25)) == "fusion: film, modality dropout 0.25"
    assert is_plain(run(fusion="film"))
    assert not any(map(is_plain, (run(mask="uniform"), run(balance="new"), run(modality_dropout=0.25))))


def test_terms_are_explained_where_they_stand_on_the_page_at_all() -> None:
    (fold,) = explain_terms([Text("ABRi and FusT."), Verdict("claim", "no", "A linear probe.")])
    assert isinstance(fold, Fold)
    assert fold.title == "What is meant by ABRi, FusT, linear probe"
    (terms,) = fold.blocks
    assert isinstance(terms, Terms)
    assert [term for term, _ in terms.pairs] == ["ABRi", "FusT", "linear probe"]
    assert not explain_terms([Text("Nothing."), Command("One script", "avpt fuse-train --mask none")])


def test_names_of_clips_are_the_last_parts_of_their_paths() -> None:
    assert name_clip("kitchen/day-2/0007.mp4") == "…/day-2/0007.mp4"
    assert name_clip("day-2/0007.mp4") == "day-2/0007.mp4"
    assert name_clip("0007") == "0007"


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=4))
def test_every_number_lies_on_its_axis(groups: list[list[float]]) -> None:
    axes = choose_axes(groups)
    assert len(axes) in (1, len(groups))
    for axis, values in zip(axes if len(axes) > 1 else axes * len(groups), groups, strict=True):
        assert 0 <= axis.low < axis.high <= 1
        assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
        assert axis.ticks[-1] == pytest.approx(axis.high)
        assert 3 <= len(axis.ticks) <= 8


def test_the_frame_of_a_clip_is_a_telling_one() -> None:
    black, grey = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((3, 4, 4), 128, dtype=torch.uint8)
    half, full = black.clone(), black.clone()
    half[:, :2], full[:, :2] = 100, 200
    assert pick_telling([black, grey, half, full, full.clone()]) is full
    assert pick_telling([black, grey]) is black


def test_padding_of_a_network_input_looks_like_silence() -> None:
    fbank = np.random.default_rng(0).normal(size=(8, 4))
    fbank[6:] = 0.7
    coloured = colour_input(fbank)
    assert coloured.shape == (4, 8, 3)
    assert not coloured[:, 6:].any()
    assert (coloured[:, :6] == colour_spectrogram(fbank, 6)).all()
    assert colour_input(np.ones((3, 4))).shape == (4, 3, 3)


def test_figures_that_are_compared_share_an_axis() -> None:
    low, high = (learning.draw_curve({"a": [values]}, "val loss") for values in ([0.5, 0.1], [700.0, 2.0]))
    flat = learning.draw_curve({"a": [[0.2, 0.9]]}, "accuracy")
    assert low is not None
    assert high is not None
    assert flat is not None
    alone = flat.figure.axes[0].get_ylim()
    learning.share_axes([low, high, flat])
    assert low.figure.axes[0].get_ylim() == high.figure.axes[0].get_ylim()
    assert low.figure.axes[0].get_yscale() == high.figure.axes[0].get_yscale() == "log"
    assert flat.figure.axes[0].get_ylim() == alone
    learning.share_axis([])


def test_a_loss_that_starts_far_too_high_is_cut_off() -> None:
    one, other = (learning.draw_curve({"a": [[first, *[0.5, 0.4] * 6]]}, "val loss") for first in (7000.0, 0.9))
    assert one is not None
    assert other is not None
    learning.share_axes([one, other])
    low, high = one.figure.axes[0].get_ylim()
    assert low < 0.4
    assert 0.5 < high < 1
    assert other.figure.axes[0].get_ylim() == (low, high)
    assert learning.say_cut(one) == f" Values above {high:.3g} (up to 7e+03) are cut off."
    few = learning.draw_curve({"a": [[7000.0, 0.5, 0.4]]}, "val loss")
    assert few is not None
    learning.share_axes([few])
    assert not learning.say_cut(few)


def test_of_alphas_that_did_not_move_nothing_is_said(experiment: Experiment) -> None:
    found = gather([experiment.audio], [experiment.folder])
    start = replace(initialisation.find_starts(found)[0], loaded=None, trained={})
    initial = float(start.node.option("alpha"))
    still = {"bn1": [initial, initial + 0.009], "bn2": [initial]}
    assert not initialisation.show_start(found, replace(start, alphas={"run": still}))
    moved = still | {"bn2": [initial - 0.02]}
    _, figure = initialisation.show_start(found, replace(start, alphas={"run": still, "other": moved}))
    assert isinstance(figure, Figure)
    assert "in the 1 of 2 layers where one moved by 0.01" in figure.caption
    assert "Alone that says nothing" in figure.caption
    assert b"bn2" in figure.svg
    assert b"bn1" not in figure.svg


def test_numbers_are_those_of_the_runs(page: Path, experiment: Experiment, joint: Path) -> None:
    words = " ".join(Parsed(page.read_text(encoding="utf-8")).words.split())
    assert "last val loss last val accuracy fused" in words or "last val loss last val accuracy unmasked" in words
    for run in (experiment.fused, joint, experiment.audio, experiment.visual):
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert f"{100 * summary['test']['accuracy']:.1f} %" in words
    norms = [
        json.loads(line)["gradient_norm"] for line in (joint / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    audio, visual = (sum(row[side] for row in norms) / len(norms) for side in ("audio", "visual"))
    assert f"{audio:.4f} {visual:.4f} {audio / visual:.2f}" in words
    assert "36 clips of 3 classes" in words
    for file in (experiment.confidence, joint / "model.safetensors"):
        assert sha256(file) in words
    store = json.loads((experiment.store / "store.json").read_text(encoding="utf-8"))["fingerprint"]
    assert f"made from store, fingerprint{store}" in words
    model = sha256(experiment.audio / "model.safetensors")
    assert f"made from audio, sha256 of audio/model.safetensors{model}" in words
    dynamics = sha256(experiment.audio / "dynamics.safetensors")
    assert f"made from audio, sha256 of audio/dynamics.safetensors{dynamics}" in words
    assert f"made from manifest, sha256 of manifest.csv{sha256(experiment.manifest)}" in words


def test_numbers_are_explained_where_they_stand(page: Path) -> None:
    words = " ".join(Parsed(page.read_text(encoding="utf-8")).words.split())
    for said in (
        "each run at its best epoch: the first with the highest val accuracy",
        "; the best epoch is the first with the highest val accuracy",
        "timm starts the scale of the last BatchNorm of each residual block at zero",
        "Clips of which the audio encoder is surer than the visual one",
        "Spectrograms: time to the right, 10 ms a column",
        "a tie does not vote",
        "One rule for p in every verdict: it has to be below 0.05 divided by the number of comparisons",
        "spreads are rounded to 0.1",
    ):
        assert said in words
    assert "at worst" not in words
    ratios = re.findall(r"mask ratio: audio ([\d.]+), visual ([\d.]+) masked patches: audio (\d+) of (\d+), ", words)
    assert ratios
    assert all(int(masked) <= (float(ratio) + 0.005) * int(of) for ratio, _, masked, of in ratios)
    terms = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)", page.read_text(encoding="utf-8")))
    assert {"sign test", "gradient norm", "macro F1", "store", "init"} <= terms.keys()
    assert "ogm-ge" not in terms  # as no run here uses it
    assert "Shapley" in terms["share of a modality"]


def test_the_same_command_gives_the_same_bytes_and_then_does_nothing(
    page: Path, experiment: Experiment, joint: Path
) -> None:
    content, written = page.read_bytes(), page.stat().st_mtime_ns
    again = done("report", joint, experiment.fused, "--out", page, "--json").json()
    assert page.stat().st_mtime_ns == written
    first = done("report", joint, experiment.fused, "--out", page, "--json", "--overwrite").json()
    assert again == first
    assert first["runs"] == 4
    assert page.read_bytes() == content


def test_other_options_or_inputs_are_refused_and_named(page: Path, experiment: Experiment, joint: Path) -> None:
    result = avpt("report", joint, experiment.fused, "--out", page, "--clips", "1")
    assert (result.code, result.stdout) == (1, "")
    assert "clips: 4 there, 1 now" in result.error
    assert "--overwrite" in result.error
    result = avpt("report", joint, "--out", page)
    assert result.code == 1
    assert "fused" in result.error


@pytest.mark.parametrize("option", [(), ("--overwrite",)])
def test_a_foreign_file_is_never_overwritten(experiment: Experiment, tmp_path: Path, option: tuple[str, ...]) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<html><body>avpt report</body></html>", encoding="utf-8")
    result = avpt("report", experiment.fused, "--out", mine, "--quiet", *option)
    assert (result.code, len(result.stderr.splitlines())) == (1, 1)
    assert "was not written by this command" in result.error
    assert mine.read_text(encoding="utf-8").startswith("<html><body>")
    assert avpt("report", experiment.fused, "--out", tmp_path, *option).code == 1


def test_colours_have_contrast_in_light_and_dark() -> None:
    css = files("avpt.report.page").joinpath("report.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root \{([^}]*)\}", css)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for ground in ("paper", "box"):
            for text in ("ink", "soft", "link", "yes", "no", "open"):
                light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
            for mark in ("audio", "visual", "joint"):
                light, dark = sorted((luminance(colours[mark]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= (3 if scheme is schemes[0] else 6), (mark, ground)


def test_drawings_take_the_colours_of_the_modalities_from_the_page(page: Path) -> None:
    drawn = "".join(re.findall(r"<svg class=\"drawing\".*?</svg>", page.read_text(encoding="utf-8"), re.DOTALL))
    assert "var(--joint)" in drawn
    assert not re.search("#0072b2|#d55e00|#009e73", drawn)


def luminance(colour: str) -> float:
    """Relative, of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_template_and_style_are_in_the_package() -> None:
    assert {"report.html.jinja", "report.css"} <= {file.name for file in files("avpt.report.page").iterdir()}


# --- commands ----------------------------------------------------------------------------------------------------


def in_a_shell(command: str) -> list[str]:
    """The words that a shell makes of a command."""
    result = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    return result.stdout.decode().split("\0")[:-1]


def ran(script: str) -> list[list[str]]:
    """The words of each command that a script runs, in the order in which it does."""
    spy = """avpt() { printf '%s\\0' avpt "$@"; printf '\\n\\0'; }"""
    result = subprocess.run(["/bin/sh", "-eu", "-c", f"{spy}\n{script}"], capture_output=True, check=True)
    lines: list[list[str]] = [[]]
    for word in result.stdout.decode().split("\0")[:-1]:
        if word == "\n":
            lines.append([])
        else:
            lines[-1].append(word)
    return lines[:-1]


def commands(page: Path) -> dict[str, list[str]]:
    """The words of every command that a page tells but for its own, by what it makes."""
    return {line[line.index("--out") + 1]: line for line in every_command(page) if line[1] != "report"}


def every_command(page: Path) -> list[list[str]]:
    """The words of every command that a page tells, in their order."""
    (script,) = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page.read_text(encoding="utf-8"), re.DOTALL)
    return ran(html.unescape(script))


def test_the_script_ends_with_the_page_itself(
    page: Path, experiment: Experiment, joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    *others, own = every_command(page)
    assert own == ["avpt", "report", joint.name, experiment.fused.name, "--out", page.name]
    assert "report" not in [words[1] for words in others]
    written = page.stat().st_mtime_ns
    done(*own[1:])  # taken for the very same page
    assert page.stat().st_mtime_ns == written
    done("report", experiment.audio, "--clips", "0", "--title", "it's", "--out", tmp_path / "else.html")
    own = every_command(tmp_path / "else.html")[-1]
    assert own == ["avpt", "report", "audio", "--title", "it's", "--clips", "0", "--out", "else.html"]


def test_commands_of_the_page_make_the_same_bytes(
    page: Path, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    told = commands(page)
    assert [words[1] for words in told.values()].count("fuse-train") == 2
    for file in (experiment.audio_init, experiment.visual_init, experiment.confidence):
        program, *words = told[file.name]
        assert program == "avpt"
        words[words.index("--out") + 1] = str(tmp_path / file.name)
        done(*words)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    for run in (experiment.fused, experiment.audio):  # taken for the very same run: nothing is trained again
        record = done(*told[run.name][1:], "--json").json()
        assert record["best_epoch"] == json.loads((run / "summary.json").read_text())["best_epoch"]
    program, name, manifest, *options = told["store"]
    assert manifest == str(experiment.manifest)  # as it was typed
    done(name, manifest, *options)


def test_commands_of_the_page_reproduce_everything_in_an_empty_folder(
    page: Path, experiment: Experiment, joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avpt.machine.workers.num_cores", lambda: 1)
    monkeypatch.chdir(tmp_path)
    for words in commands(page).values():
        assert not [word for word in words if word.startswith("..") or word.isupper()]
        done(*words[1:])
    for run in (experiment.visual, experiment.audio, experiment.fused, joint):
        assert files_of(tmp_path / run.name) == files_of(run)
    for file in (experiment.visual_init, experiment.audio_init, experiment.confidence):
        assert sha256(tmp_path / file.name) == sha256(file)
    store = [json.loads((folder / "store.json").read_text()) for folder in (tmp_path / "store", experiment.store)]
    assert store[0]["fingerprint"] == store[1]["fingerprint"]


def test_the_script_begins_at_the_manifest(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avpt.machine.workers.num_cores", lambda: 1)
    there, empty = tmp_path / "there", tmp_path / "empty"
    for label, name in (("warm", "red.webm"), ("cold", "blue.webm"), ("cold", "green.webm")):
        for base in (there, empty):
            (base / "my clips" / label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clips[name], base / "my clips" / label / name)
    monkeypatch.chdir(there)
    manifest = ("avpt", "manifest", "folder", "my clips", "--segment", "2", "--last-piece", "keep", "--out", "m.csv")
    done(*manifest[1:])
    done("preprocess", "m.csv", "--out", "store", *STORE_OPTIONS)
    done("init", "--modality", "audio", "--arch", ARCH, "--weights", "random", "--out", "init.safetensors")
    trained = ("finetune-unimodal", "store", "--modality", "audio", "--init", "init.safetensors", *TRAIN_OPTIONS)
    done(*trained, "--out", "audio")
    done("report", "audio", "--clips", "0", "--out", "page.html")
    monkeypatch.chdir(empty)
    script = every_command(there / "page.html")
    assert script[0] == [*manifest]
    for words in script:
        done(*words[1:])
    for folder in ("store", "audio"):
        assert files_of(empty / folder) == files_of(there / folder)
    assert (empty / "m.csv").read_bytes() == (there / "m.csv").read_bytes()

    def unmade() -> str:
        chapter = provenance.section(gather([there / "audio"], None), there / "page.html")
        (text,) = [block.text for block in chapter.blocks if isinstance(block, Text) and "command makes" in block.text]
        return text

    assert "no command makes (clips, weights of others)" in unmade()
    (there / "m.csv.json").unlink()
    assert "no command makes (manifests with their clips, weights of others)" in unmade()


def test_a_manifest_far_from_the_rest_is_not_made_again(tmp_path: Path) -> None:
    page = tmp_path / "a" / "b" / "c"
    experiment = Gathered(nodes=[Node(page / "init.safetensors", "encoder", {}, {}, ())])
    for manifest, folder in (
        (page / "m.csv", page),
        (page.parent / "data" / "m.csv", page.parent),
        (tmp_path / "a" / "m.csv", tmp_path / "a"),
        (tmp_path / "m.csv", page),
    ):
        assert find_folder(experiment, page, [manifest]) == folder


MANIFESTS = {
    "vggsound": (("--list", "more/vggsound.csv"), "m.csv"),
    "folder": (("--folds", "3", "--group-by", r"actor \d+", "--val-fraction", "0.2"), "m-fold2.csv"),
    "image-folder": (("--test-fraction", "0.25"), "m.csv"),
    "crema-d": ((), "m.csv"),
    "esc50": (("--test-fold", "2"), "m.csv"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_made_by_the_command_that_made_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = ["aaaaaaaaaaa_000001.mp4", "1001_DFA_ANG_XX.flv", "1-100032-A-0.wav", "2-100032-A-0.wav"]
    media += [f"{label}/actor {i}.{end}" for label in ("glad", "sad") for i in range(4) for end in ("wav", "png")]
    touch(tmp_path / "media", *media)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "vggsound.csv").write_text("aaaaaaaaaaa,1,x,train", encoding="utf-8")
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    lines += [f"{i}-100032-A-0.wav,{i},0,dog,True,100032,A" for i in (1, 2)]
    (tmp_path / "media" / "esc50.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options, made = MANIFESTS[name]
    typed = ["avpt", "manifest", name, "media", *options, "--out", "m.csv"]
    done(*typed[1:])
    record = read(tmp_path / f"{made}.json", ManifestRecord)
    words = command_of_manifest(tmp_path / made, record, tmp_path)
    assert words is not None
    assert sorted(words) == sorted(typed)
    assert "was there already" in done(*words[1:]).stderr
    elsewhere = command_of_manifest(tmp_path / made, record, tmp_path / "more")
    assert elsewhere is not None
    assert elsewhere[3] == str(tmp_path / "media")
    del record["inputs"]["folder"]
    assert command_of_manifest(tmp_path / made, record, tmp_path) is None


def test_commands_from_a_page_elsewhere_stay_in_one_folder(experiment: Experiment, tmp_path: Path) -> None:
    done("report", experiment.audio, "--out", tmp_path / "page.html")
    told = commands(tmp_path / "page.html")
    assert told["audio"][2] == "store"
    assert told["audio"][-4:] == ["--init", "audio-init.safetensors", "--out", "audio"]
    assert tuple(told) == ("store", "visual-init.safetensors", "visual", "audio-init.safetensors", "audio")


def test_a_confidence_is_on_the_page_of_runs_made_with_it_or_where_it_is_named(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    options = ("--audio", experiment.audio, "--visual", experiment.visual, *PATCHES, "--missing", "skip")
    done("score-confidence", *options, "--out", other)
    fused = gather([experiment.fused], [tmp_path])
    assert ([node.path for node in fused.of_kind("confidence")], fused.unused) == ([experiment.confidence], [other])
    alone = gather([experiment.audio, experiment.visual], [tmp_path])
    assert (alone.of_kind("confidence"), alone.unused) == ([], [other, experiment.confidence])
    assert f"Name {os.path.relpath(other, experiment.folder)}, confidence.safetensors with" in explain_none(alone)

    monkeypatch.chdir(experiment.folder)
    named = ("report", "audio", "visual", os.path.relpath(other), "--clips", "0", "--out", tmp_path / "page.html")
    said = done(*named).stderr
    assert "not on the page, as no run of it was made with it: confidence.safetensors; what is named" in said
    page = tmp_path / "page.html"
    assert "Confidence of " in Parsed(page.read_text(encoding="utf-8")).words
    *made, own = every_command(page)
    assert sum(line[1] == "score-confidence" for line in made) == 1
    assert [Path(word).name for word in own[2:5]] == ["audio", "visual", "other.safetensors"]
    refused("report", other, "--out", page, says="is not a run folder written by avpt")


@pytest.mark.parametrize("command", ["report", "compare"])
def test_paths_in_messages_are_those_that_were_typed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    write_tiny_run(tmp_path / "run")
    out = ("--out", "page.html") if command == "report" else ()
    for path, says in (("none", "none is not a run folder"), ("gone", "gone does not exist")):
        assert avpt(command, path, *out).error.startswith(f"avpt: {says}")
    said = done(command, "run", *out).stderr
    assert str(tmp_path) not in said
    assert ("store of run was not found" in said) == (command == "report")


def test_paths_are_written_as_they_were_typed_where_they_lead_there(tmp_path: Path) -> None:
    inputs = {"weights": "1" * 64}
    node = Node(tmp_path / "made" / "e.safetensors", "encoder", {"modality": "audio", "weights": "file"}, inputs, ())
    node.path.parent.mkdir()

    def weights_in(folder: Path, typed: Path, place: Path) -> str:
        write_paths(node.path, inputs, {"weights": typed})
        words = command_of(node, {"weights": None}, folder, {"weights": place})
        return words[words.index("--weights") + 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert weights_in(tmp_path, Path("w.pth"), tmp_path / "w.pth") == "w.pth"
        assert weights_in(tmp_path / "made", Path("w.pth"), tmp_path / "w.pth") == str(tmp_path / "w.pth")
        assert weights_in(tmp_path, tmp_path / "w.pth", tmp_path / "w.pth") == str(tmp_path / "w.pth")
        assert weights_in(tmp_path, Path("gone.pth"), tmp_path / "x" / "w.pth") == "x/w.pth"
        write_paths(node.path, {}, {"out": None})
        assert command_of(node, {"weights": None}, tmp_path)[-3] == "WEIGHTS"


def test_a_report_says_what_it_took_from_where_and_takes_no_copies(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(experiment.confidence, tmp_path / "a copy.safetensors")
    monkeypatch.chdir(tmp_path)
    result = done("report", experiment.fused, "--search", tmp_path, "--out", "page.html")
    said = next(line for line in result.stderr.splitlines() if line.startswith("also on the page, from "))
    assert said.startswith(f"also on the page, from {experiment.folder}: ")
    taken = set(said.partition(": ")[2].split(", "))
    assert taken == {path.name for path in (experiment.store, experiment.visual_init, experiment.audio_init)} | {
        *("audio", "visual", "confidence.safetensors", "manifest.csv")
    }
    assert "a copy" not in Path("page.html").read_text(encoding="utf-8")


def test_what_was_not_found_is_a_word_in_capitals(tmp_path: Path) -> None:
    node = Node(
        tmp_path / "it", "confidence", {"skip_epochs": 1, "missing": "error"}, {"audio": "a", "visual": "b"}, ()
    )
    words = command_of(node, {"audio": None, "visual": None}, tmp_path)
    assert words == [
        "avpt",
        "score-confidence",
        "--audio",
        "AUDIO",
        "--visual",
        "VISUAL",
        "--skip-epochs",
        "1",
        "--out",
        "it",
    ]


def test_options_as_they_are_given() -> None:
    assert words_of(FuseConfig, "flip", False) == ["--no-flip"]
    assert words_of(FuseConfig, "freeze_encoders", True) == ["--freeze-encoders"]
    assert words_of(FuseConfig, "crop_scale", [0.5, 1.0]) == ["--crop-scale", "0.5", "1"]
    assert words_of(InitConfig, "abnormal_threshold", 1e-10) == ["--abnormal-threshold", "1e-10"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1), min_size=1))
def test_a_broken_command_is_the_same_command(words: list[str]) -> None:
    assert in_a_shell(break_lines(words)) == words


def test_commands_that_differ_in_the_seed_alone_stand_in_one_loop() -> None:
    seeds = (0, 1, 12)
    trained = [["avpt", "train", "st 1", *named(seed), "--out", f"runs/{seed}/a{seed}b"] for seed in seeds]
    scored = [["avpt", "score", f"a $ {seed}", "--out", f"{seed}.c"] for seed in seeds]
    steps = [Step([["avpt", "store", "--out", "it's"]]), Step(trained, seeds), Step(scored, seeds)]
    script = write_script(steps)
    assert script.splitlines()[:2] == ["avpt store --out 'it'\"'\"'s'", "for seed in 0 1 12; do"]
    assert '"a \\$ $seed"' in script
    assert "runs/$seed/a${seed}b" in script
    assert script.count("for seed") == script.count("done") == 1
    first = [*trained[0][:3], "--seed", "0", *trained[0][3:]]  # the default, which is named for the others' sake
    expected = [steps[0].commands[0]]
    for words in zip([first, *trained[1:]], scored, strict=True):
        expected += words
    assert ran(script) == expected


def named(seed: int) -> list[str]:
    """As a seed is written on the command line, where 0 is the default."""
    return ["--seed", str(seed)] if seed else []


@pytest.mark.parametrize(
    "commands",
    [
        [["avpt", "a", "--lr", "0.1"], ["avpt", "a", "--lr", "0.3"]],
        [["avpt", "a", "--out", "0/1"], ["avpt", "a", "--out", "1/2"]],
        [["avpt", "a"], ["avpt", "a", "--flip"]],
        [["avpt", "a", "run-00"], ["avpt", "a", "run-1"]],
    ],
)
def test_commands_that_differ_otherwise_stand_for_themselves(commands: list[list[str]]) -> None:
    script = write_script([Step(commands, (0, 1))])
    assert "for seed" not in script
    assert ran(script) == commands


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1), min_size=1))
def test_a_loop_runs_the_same_commands(words: list[str]) -> None:
    commands = [["avpt", *(f"{word}{seed}{word}" for word in words)] for seed in (3, 40)]
    assert ran(write_script([Step(commands, (3, 40))])) == commands


# --- untrusted words ---------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'&{{ 7 * 7 }}$x$`y`"


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_words_from_outside_come_out_as_text(text: str) -> None:
    word = text + EVIL
    table = Table(word, (word, word), [(word, word)])
    blocks: list[Block] = [
        Heading(word),
        Text(word, missing=True),
        Grid(table),
        Cards(word, [Card(word, (), [word])]),
        Command(word, word, [(word, word)]),
        Dots(word, [Dot("audio", word, word, word, word, 0.5, [0.1, 0.9])], [(0.0, word)]),
        Fold(word, [Facts(word, [(word, word)]), Terms([(word, word)]), Strip([Card(word, ())])]),
        Graph([Vertex(0, 0, word, "store"), Vertex(1, 0, word, "fused")], [(0, 1)], word),
    ]
    page = Page(
        word, [word], [Verdict(word, "no", word, [word])], [Section("part", word, blocks)], {"config": {"a": word}}
    )
    made = render(page, "#1b1b1d")
    parsed = Parsed(made)
    assert not parsed.all("script")
    assert "49" not in parsed.words.replace(printable(text, keep="\n"), "")
    shown = re.sub("`([^`]+)`", r"\1", EVIL)
    assert parsed.words.count(shown) + parsed.words.count(EVIL) >= 12
    assert f"<p>{escape(printable(word, keep=chr(10)))}</p>" in made  # on a card a name keeps its backticks


def test_classes_and_runs_with_nasty_names(experiment: Experiment, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    nasty = folder / "a <b>$run$ & 'c'"
    (folder / "fused").rename(nasty)
    store = json.loads((folder / "store" / "store.json").read_text(encoding="utf-8"))
    store["classes"][1] = EVIL
    (folder / "store" / "store.json").write_text(json.dumps(store), encoding="utf-8")
    for path in (nasty / "predictions.safetensors",):
        artifact = artifacts.load(path, "predictions")
        classes = [artifact.header.classes[0], EVIL, *artifact.header.classes[2:]]
        artifacts.save(path, replace(artifact.header, classes=classes), artifact.tensors)
    done("report", nasty, "--out", tmp_path / "page.html", "--search", folder)
    parsed = check_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert parsed.words.count("<script>alert(1)</script>") >= 3  # the table of classes, a clip, the matrix
    assert "a <b>$run$ & 'c'" in parsed.words


# --- bad input ---------------------------------------------------------------------------------------------------


def copied(experiment: Experiment, tmp_path: Path, without: tuple[str, ...] = ()) -> Path:
    """The experiment in another folder, but for some parts and the paths of the first one."""
    folder = tmp_path / "copy"
    for path in (experiment.store, experiment.visual, experiment.audio, experiment.fused):
        if path.name not in without:
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("*.pt", "paths.json"))
    for path in (experiment.visual_init, experiment.audio_init, experiment.confidence):
        if path.name not in without:
            shutil.copy(path, folder)
    return folder


def report(folder: Path, *runs: str, says: str = "") -> Parsed:
    """The page of some runs of a copy, which warns of this, or of nothing."""
    result = done("report", *(folder / run for run in runs), "--search", folder, "--out", folder / "page.html")
    assert says in result.stderr if says else "warning" not in result.stderr
    parsed = check_page((folder / "page.html").read_text(encoding="utf-8"))
    parsed.words = " ".join(parsed.words.split())
    return parsed


def test_without_the_store_the_rest_is_shown(experiment: Experiment, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path, without=("store",))
    parsed = report(folder, "fused", says="warning: store of")
    assert "The store that fused was made from" in parsed.words
    assert "--search" in parsed.words
    assert "Scatter of audio against visual confidence" in str(parsed.tags)
    assert "avpt finetune-unimodal STORE" in parsed.words
    assert not parsed.all("img")


def test_without_what_was_before(experiment: Experiment, tmp_path: Path) -> None:
    folder = copied(
        experiment, tmp_path, without=("audio", "visual", "audio-init.safetensors", "confidence.safetensors")
    )
    parsed = report(folder, "fused", says="warning: confidence of")
    for name in ("audio", "visual", "confidence"):
        assert f"The {name} that fused was made from" in parsed.words
    assert "not measured" in parsed.words
    assert "Which classes are taken for which" in parsed.words


def test_a_stage_1_run_without_dynamics(experiment: Experiment, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    (folder / "audio" / "dynamics.safetensors").unlink()
    parsed = report(folder, "fused", says="warning: audio of")
    assert "The audio that confidence.safetensors was made from" in parsed.words
    assert "audio alone" in parsed.words


def test_an_unfinished_run_is_shown_as_such(experiment: Experiment, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    for name in ("summary.json", "predictions.safetensors", "model.safetensors"):
        (folder / "fused" / name).unlink()
    rows = (folder / "fused" / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "fused" / "metrics.jsonl").write_text(rows[0], encoding="utf-8")
    result = done("report", folder / "fused", "--search", folder, "--out", folder / "page.html", "--json")
    assert result.json()["unfinished"] == ["fused"]
    words = " ".join(check_page((folder / "page.html").read_text(encoding="utf-8")).words.split())
    assert "Not finished, so without results: fused (unfinished, 1 of 2 epochs done)" in words
    assert [verdict["answer"] for verdict in result.json()["verdicts"][1:]] == ["not measured"] * 2
    (folder / "fused" / "metrics.jsonl").write_text("", encoding="utf-8")
    done("report", folder / "fused", "--search", folder, "--out", folder / "empty.html")
    words = check_page((folder / "empty.html").read_text(encoding="utf-8")).words
    assert "No epoch is done yet." in words


def test_damaged_predictions_are_told(experiment: Experiment, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    (folder / "fused" / "predictions.safetensors").write_bytes(b"cut short")
    parsed = report(folder, "fused")
    assert "predictions.safetensors is cut short" in parsed.words


@pytest.mark.parametrize(("name", "says"), [("nothing", "does not exist"), ("store", "is not a run folder")])
def test_what_is_no_run(experiment: Experiment, tmp_path: Path, name: str, says: str) -> None:
    result = avpt("report", experiment.folder / name, "--out", tmp_path / "page.html", "--quiet")
    assert (result.code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert says in result.error
    assert not (tmp_path / "page.html").exists()


def test_runs_on_different_class_sets_and_with_several_labels(experiment: Experiment, tmp_path: Path) -> None:
    rows = [row | {"label": f"{row['label']};even"} if row["label"] != "1" else row for row in digit_rows()]
    manifest = write_manifest(tmp_path / "several.csv", rows)
    done("preprocess", manifest, "--out", tmp_path / "several", "--multi-label", *STORE_OPTIONS)
    alone = ("--audio", experiment.audio_init, "--visual", experiment.visual_init)
    options = [*TRAIN_OPTIONS[:1], "1", *TRAIN_OPTIONS[2:]]
    done("fuse-train", tmp_path / "several", *alone, "--mask", "none", *options, "--out", tmp_path / "joint")
    probe(tmp_path, tmp_path / "joint", "audio", -0.125, None, alone=experiment.audio)
    folders = ("--search", tmp_path, "--search", experiment.folder)
    result = done("report", tmp_path / "joint", experiment.fused, *folders, "--out", tmp_path / "page.html")
    words = " ".join(check_page((tmp_path / "page.html").read_text(encoding="utf-8")).words.split())
    assert "2 different sets of classes" in words
    assert words.count("2 different sets of classes, so not all of them can be compared") == 4
    assert "encoder of joint against the same trained alone: −12.5 points on average (1 seed: no test" in words
    assert "seed 0 −12.5 points to 50.0 % (untested)" in words
    assert "These runs come from several stores" in words
    assert "average precision" in words
    assert "test mAP" in words
    assert "Traceback" not in result.stderr


def test_joint_training_from_init_is_held_against_the_encoders_alone(experiment: Experiment, tmp_path: Path) -> None:
    starts = ("--audio", experiment.audio_init, "--visual", experiment.visual_init)
    options = [*TRAIN_OPTIONS[:1], "1", *TRAIN_OPTIONS[2:]]
    done("fuse-train", experiment.store, *starts, "--mask", "none", *options, "--out", tmp_path / "straight")
    probe(tmp_path, tmp_path / "straight", "audio", 0.25)  # against what init made
    probe(tmp_path, tmp_path / "straight", "audio", -0.125, alone=experiment.audio)
    runs = (tmp_path / "straight", experiment.audio, experiment.visual, experiment.fused)
    done("report", *runs, "--search", experiment.folder, "--out", tmp_path / "page.html")
    words = " ".join(check_page((tmp_path / "page.html").read_text(encoding="utf-8")).words.split())
    assert "the audio encoder of straight against the same trained alone: −12.5 points on average" in words
    assert "+25.0 points on average" not in words
    right = {}
    for name, run in (("visual", experiment.visual), ("straight", tmp_path / "straight")):
        record = json.loads((run / "summary.json").read_text(encoding="utf-8"))["test"]
        right[name] = record["accuracy" if name == "visual" else "visual_accuracy"]
    before, after = (f"{100 * value:.1f} %" for value in right.values())
    assert f"Visual: {before} alone, {after} by its share in straight" in words
    joint, fused = (
        f"{100 * json.loads((run / 'summary.json').read_text(encoding='utf-8'))['test']['accuracy']:.1f} %"
        for run in (tmp_path / "straight", experiment.fused)
    )
    assert "Do two stages (FusT) beat joint training straight from the start?" in words
    assert "both together, straight from the start, nothing masked" in words
    assert f"fused: {joint} straight from the start, {fused} in two stages (epochs: 1 against 2 + 2)" in words


def test_pieces_of_few_recordings_and_classes_that_a_split_lacks_are_told(experiment: Experiment) -> None:
    store = Store(experiment.store)
    assert clips.explain_recordings(store) == ""
    assert clips.name_absent_classes(store, {"val": [1, 2, 3]}) == []
    (said,) = clips.name_absent_classes(store, {"train": [1, 2, 3], "val": [1, 0, 3]})
    assert said == "No clip to choose the best epoch by is of 1: the best epoch was chosen without them."
    two = {name: replace(index, sources=("a", "b", "a") * (len(index) // 3)) for name, index in store.indices.items()}
    store.__dict__["indices"] = two
    told = clips.explain_recordings(store)
    assert "pieces of fewer recordings: 2 to train on, 2 to choose the best epoch by, 2 to test on" in told
    assert told in clips.count_clips(store)


def test_an_encoder_without_batchnorm() -> None:
    assert initialisation.from_report({"layers": []}) is None
    assert initialisation.from_report({}) is None
    assert initialisation.count_abnormal({"conv.weight": torch.ones(3)}, 1e-6) is None


def test_of_no_abnormal_channels_there_is_no_bar(experiment: Experiment) -> None:
    found = gather([experiment.audio], [experiment.folder])
    start = replace(initialisation.find_starts(found)[0], alphas={})
    some, none = (initialisation.Channels(["bn1", "bn2"], [4, 4], count) for count in ([1, 2], [0, 0]))
    for after, says, is_drawn in ((none, " Bars: in the ", False), (some, "after training", True)):
        _, figure = initialisation.show_start(found, replace(start, loaded=some, trained={"run": after}))
        assert isinstance(figure, Figure)
        assert says in figure.caption
        assert (b"after training" in figure.svg) == is_drawn


def test_channels_in_words() -> None:
    names, counts = ["bn1", "bn2"], [64, 64]
    assert initialisation.describe(initialisation.Channels(names, counts, [0, 0]), "now") == "none of 128 channels now"
    some = initialisation.describe(initialisation.Channels(names, counts, [0, 32]), "now")
    assert some == "25.0 % of all channels now, most in bn2 (50.0 %)"


def test_bars_are_told_apart_without_colour() -> None:
    figure = draw_bars(["a", "b"], {"one": [1, 2], "two": [2, 1], "three": [0, 1]}, label="clips")
    assert len({bar.get_hatch() for bar in figure.axes[0].patches}) == 3


def test_abnormal_channels_are_counted_and_told(experiment: Experiment, tmp_path: Path) -> None:
    artifact = artifacts.load(experiment.visual_init, "encoder")
    for name, value in artifact.tensors.items():
        if name.endswith(".weight") and value.ndim == 1:
            value[value == 0] = 1.0  # as timm starts some
    for name in ("layer1.0.bn1.weight", "layer1.0.bn1.bias"):
        artifact.tensors[name][:24] = 0
    artifacts.save(tmp_path / "sick.safetensors", Header(kind="encoder", spec=artifact.header.spec), artifact.tensors)
    options = ("--modality", "visual", "--arch", ARCH, "--weights", tmp_path / "sick.safetensors")
    done("init", *options, "--out", tmp_path / "init.safetensors")
    one = [*TRAIN_OPTIONS[:1], "1", *TRAIN_OPTIONS[2:]]
    own = ("--modality", "visual", "--init", tmp_path / "init.safetensors")
    done("finetune-unimodal", experiment.store, *own, *one, "--out", tmp_path / "visual")
    record = done("report", tmp_path / "visual", "--search", tmp_path, "--out", tmp_path / "page.html", "--json").json()
    verdict = record["verdicts"][0]
    assert verdict["answer"] == "yes"
    assert verdict["headline"].startswith("24 of 1040 BatchNorm channels (2.3 %)")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "most in layer1.0.bn1 (75.0 %)" in check_page(text).words


# --- the test behind the verdicts --------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_one_seed_is_compared_by_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    before = {str(i): one for i, (one, _) in enumerate(pairs)}
    after = {str(i): other for i, (_, other) in enumerate(pairs)}
    found = compare([before], [after], [0])
    assert found is not None
    only = [other for one, other in pairs if one != other]
    assert found.p == (pytest.approx(binomtest(sum(only), len(only)).pvalue) if only else 1.0)
    assert found.mean == pytest.approx((sum(after.values()) - sum(before.values())) / len(pairs))


def test_a_p_near_what_it_is_held_against_has_the_digits_that_tell() -> None:
    assert format_p(0.012) == "p = 0.012"
    assert format_p(0.0246, 0.025) == "p = 0.0246 (below 0.025)"
    assert format_p(0.02503, 0.025) == "p = 0.02503 (not below 0.025)"
    assert format_p(0.00001, 0.025) == "p < 0.001 (below 0.025)"
    assert format_p(0.05, 0.05) == "p = 0.050 (not below 0.05)"


def test_seeds_that_disagree_show_no_difference() -> None:
    ids = [str(i) for i in range(100)]
    wrong, right = dict.fromkeys(ids, False), dict.fromkeys(ids, True)
    some = {clip: int(clip) < 10 for clip in ids}
    difference = compare([wrong, wrong, wrong, some], [right, right, right, wrong], [0, 1, 2, 3])
    assert difference is not None
    assert difference.p < 0.001
    assert not difference.clips_tell()
    assert not difference.counts()
    assert describe_outcome(difference).endswith("these trained models differ, but not all in one direction")
    assert compare([], [], []) is None
    assert compare([{"a": True}], [{"b": True}], [0]) is None


def test_probes_and_evaluations_are_found_and_speak(experiment: Experiment, joint: Path, tmp_path: Path) -> None:
    inputs = {"model": sha256(joint / "model.safetensors"), "stage1": sha256(experiment.audio / "model.safetensors")}
    answers = []
    for p in (0.001, 0.5):
        metrics = {
            "modality": "audio",
            "accuracy": {"val": 0.5, "test": 0.25},
            "stage1": {"accuracy": {"val": 0.5, "test": 0.75}},
            "difference": {"val": 0.0, "test": -0.5},
            "mcnemar": {"p": p},
        }
        header = Header(kind="probe", config={"modality": "audio"}, inputs=inputs, metrics=metrics)
        artifacts.save(tmp_path / "probe.safetensors", header, {"weight": torch.zeros(1)})
        done(
            "evaluate", joint, experiment.store, "--drop", "audio", "--workers", "0", "--out", tmp_path / "dropped.json"
        )
        folders = ("--search", tmp_path, "--search", experiment.folder)
        record = done("report", joint, *folders, "--out", tmp_path / "page.html", "--json", "--overwrite").json()
        answers.append(record["verdicts"][1]["answer"])
    assert answers == ["unclear", "unclear"]  # one seed, whatever its clips say
    words = " ".join(check_page((tmp_path / "page.html").read_text(encoding="utf-8")).words.split())
    assert "25.0 % 75.0 % −50.0 points p = 0.500" in words
    assert "without audio" in words
    assert "avpt evaluate unmasked store" in re.sub(r"\S*/", "", words)


# --- what verdicts rest on ---------------------------------------------------------------------------------------


def seeded(run: Path, out: Path, seed: int, wrong: int) -> Path:
    """A copy of a run as if by another seed, whose answers to the first clips of test are wrong, to others right."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("*.pt", "settings.json", "paths.json", "model*"))
    header, _ = artifacts.read_header(run / "model.safetensors")
    header = replace(header, config=header.config | {"seed": seed})
    artifacts.save(out / "model.safetensors", header, {"weight": torch.zeros(1)})  # verdicts read no weights of it
    answers = artifacts.load(out / "predictions.safetensors", "predictions")
    labels = answers.tensors["test_labels"].clone()
    labels[:wrong] = (labels[:wrong] + 1) % 3
    answers.tensors["test_logits"] = torch.nn.functional.one_hot(labels, 3).float()
    artifacts.save(out / "predictions.safetensors", answers.header, answers.tensors)
    return out


def judge(runs: list[Path], *folders: Path) -> list[Verdict]:
    """The verdicts on some runs, without their page."""
    found = gather(runs, folders)
    return questions.answer_questions(found, initialisation.find_starts(found), folders[0])


def probe(
    folder: Path, run: Path, modality: str, difference: float, p: float | None = 0.5, alone: Path | None = None
) -> None:
    """As `avpt probe` leaves it, of a run and of its encoder alone, which is what went in if nothing is named."""
    went_in = artifacts.read_header(run / "model.safetensors")[0].inputs[modality]
    metrics = {
        "modality": modality,
        "accuracy": {"test": 0.5},
        "difference": {"test": difference},
        "stage1": {"accuracy": {"test": 0.5 - difference}},
        "mcnemar": None if p is None else {"p": p},
    }
    before = went_in if alone is None else sha256(alone / "model.safetensors")
    inputs = {"model": sha256(run / "model.safetensors"), "stage1": before}
    header = Header(kind="probe", config={"modality": modality}, inputs=inputs, metrics=metrics)
    name = f"{modality}-{run.name}{'' if alone is None else '-alone'}.safetensors"
    artifacts.save(folder / name, header, {"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("masked", "answer", "says"),
    [
        ([0], "unclear", "these two trained models differ on these clips; one or two seeds say nothing of the recipe"),
        ([0, 1], "unclear", "these trained models differ on these clips; one or two seeds say nothing of the recipe"),
        ([9], "unclear", "these two trained models do not differ measurably on these clips; one or two seeds"),
        ([0, 1, 0], "yes", "a gain"),
        ([0, 0, 0], "unclear", "the same in all 3 seeds: no spread that a test over seeds could go by"),
        ([0, 0, 8], "unclear", "no difference that this data could show"),
        ([9, 9, 9], "unclear", "t-test over 3 seeds p = 1.000"),
    ],
)
def test_a_gain_takes_three_seeds_and_a_test_over_them(
    experiment: Experiment, joint: Path, tmp_path: Path, masked: list[int], answer: str, says: str
) -> None:
    runs = [seeded(joint, tmp_path / f"none-{seed}" / "none", seed, 9) for seed in range(len(masked))]
    runs += [seeded(experiment.fused, tmp_path / f"by-{seed}" / "by", seed, wrong) for seed, wrong in enumerate(masked)]
    verdict = judge(runs, tmp_path, experiment.folder)[2]
    assert verdict.answer == answer
    words = " ".join(verdict.details)
    assert says in words
    each = [(9 - wrong) / 9 for wrong in masked]
    if len(each) > 2 and len(set(each)) > 1:
        assert f"t-test over 3 seeds p = {ttest_1samp(each, 0).pvalue:.3f}" in words
    if len(masked) < 3:
        assert "no test over seeds" in words
        assert f"{len(masked)} seed" in verdict.headline


def test_runs_of_an_older_avpt_are_compared_with_newer_ones(
    experiment: Experiment, joint: Path, tmp_path: Path
) -> None:
    """An option that one record does not have counts as its default in both."""
    before = seeded(joint, tmp_path / "none", 0, 9)
    header, _ = artifacts.read_header(before / "model.safetensors")
    config = {name: value for name, value in header.config.items() if name not in ("ema", "balance", "patience")}
    artifacts.save(before / "model.safetensors", replace(header, config=config), {"weight": torch.zeros(1)})
    after = seeded(experiment.fused, tmp_path / "by", 0, 0)
    starved, gained = judge([before, after], tmp_path, experiment.folder)[1:]
    assert gained.answer == "unclear"
    assert "`by`: 0.0 % unmasked, 100.0 % masked" in " ".join(gained.details)
    assert "no finished run of plain joint training" not in " ".join(starved.details)


@pytest.mark.parametrize(
    ("audio", "visual", "answer", "says"),
    [
        ([-0.06, -0.05, -0.07], [0.01, 0.01, 0.0], "yes", "audio in `none` (seeds 0, 1, 2): −6.0 points"),
        ([-0.06, -0.06, -0.06], [], "unclear", "Nothing is known of visual"),
        ([-0.06, -0.05], [-0.06, -0.05], "unclear", "2 seeds can't tell"),
        ([-0.2, -0.0, 0.1], [0.01, 0.01, 0.0], "unclear", "neither proves a loss"),
        ([0.0, 0.001, -0.001], [0.0, 0.0, 0.0], "no", "visual in `none` (seeds 0, 1, 2)"),
        ([0.0, 0.001, -0.001], [], "unclear", "Nothing is known of visual"),
    ],
)
def test_starving_is_told_by_probes_of_three_seeds(
    joint: Path, tmp_path: Path, audio: list[float], visual: list[float], answer: str, says: str
) -> None:
    runs = [seeded(joint, tmp_path / str(seed) / "none", seed, 9) for seed in range(max(len(audio), len(visual)))]
    for modality, found in (("audio", audio), ("visual", visual)):
        for run, difference in zip(runs, found, strict=False):
            probe(run.parent, run, modality, difference, 0.07)
    verdict = judge(runs, tmp_path)[1]
    assert verdict.answer == answer
    assert says in verdict.headline
    assert "McNemar over clips p = 0.070" in " ".join(verdict.details)


def test_a_verdict_says_why_shares_that_fell_do_not_decide() -> None:
    """A share that is clearly worse must not seem to disagree with an answer that goes by linear probes."""
    right, wrong = ({str(clip): answer for clip in range(30)} for answer in (True, False))
    some = right | {"0": False}
    fall = compare([right, right, some], [wrong, wrong, wrong], [0, 1, 2])
    assert fall is not None
    level = compare_seeds({0: 0.0, 1: 0.0}, {0: 0.01, 1: 0.0})
    shares = [Evidence("joint", modality, fall.seeds, probed=False, share=fall) for modality in MODALITIES]
    said = explain_shares(shares, CHANCE)
    assert said.endswith("whether an encoder got worse is for linear probes (`avpt probe`).")
    probes = [replace(one, spread=level, probed=True) for one in shares]
    said = explain_shares(probes, CHANCE)
    assert "less accurate than each encoder alone (audio −98.9 points; visual −98.9 points), but a share is not" in said
    assert not explain_shares([replace(one, share=None) for one in probes], CHANCE)
    doubtful = replace(fall, seeds=replace(fall.seeds, p=0.051))
    assert not explain_shares([replace(one, share=doubtful) for one in probes], CHANCE)
    answer, headline = weigh([replace(one, trained=3) for one in probes], CHANCE)
    assert answer == "unclear"
    assert headline.startswith("Only 2 of 3 seeds were probed, and 2 seeds can't tell")


def test_a_gain_that_is_the_same_in_all_seeds_is_no_lack_of_one(
    experiment: Experiment, joint: Path, tmp_path: Path
) -> None:
    runs = [seeded(joint, tmp_path / f"none-{seed}" / "none", seed, 9) for seed in range(3)]
    runs += [seeded(experiment.fused, tmp_path / f"by-{seed}" / "by", seed, 0) for seed in range(3)]
    verdict = judge(runs, tmp_path, experiment.folder)[2]
    assert verdict.headline == (
        "Not to be judged: `by` +100.0 points in all 3 seeds alike, so that no test over seeds is possible."
    )


def test_a_headline_says_why_a_small_p_does_not_count() -> None:
    """Eight clips gained are p = 0.008, which is too much for a tenth of 0.05."""
    ids = [str(clip) for clip in range(40)]
    wrong, right = dict.fromkeys(ids, False), {clip: int(clip) < 8 for clip in ids}
    gain = compare([wrong, wrong], [right, right], [0, 1])
    assert gain is not None
    answer, headline = weigh_gains([("by", gain)], set_limit(10), "masking", "without masking")
    assert (answer, headline) == (
        "unclear",
        "Trained models can't be said to differ (`by` +20.0 points: p = 0.008 (not below 0.005) over clips); 2 seeds "
        "can't tell what masking does.",
    )
    assert "(p = 0.008 (not below 0.005) over clips); one or two seeds" in describe_outcome(gain, set_limit(10))
    _, headline = weigh_gains([("by", gain)], set_limit(1), "masking", "without masking")
    assert headline.startswith("Trained models differ on these clips (`by`)")
    apart = compare([wrong, wrong, wrong], [right, right, right | {"0": False}], [0, 1, 2])
    assert apart is not None
    doubtful = replace(apart, seeds=replace(apart.seeds, p=0.2))
    _, headline = weigh_gains([("by", doubtful)], set_limit(1), "masking", "without masking")
    assert headline.endswith("p = 0.008 over clips is not borne out over seeds.")
    few = replace(apart, p=0.3)
    assert describe_outcome(few).endswith("p = 0.002 over seeds is not borne out over clips")


def test_p_is_held_against_one_rule() -> None:
    assert explain_limit(1) == "1 comparison: the limit for each p is 0.05."
    assert explain_limit(4) == "4 comparisons: the limit for each p is 0.05 / 4 = 0.013."
    assert set_limit(4) == CHANCE / 4


def test_balancing_is_judged_against_none_and_uniform(joint: Path, tmp_path: Path) -> None:
    """By methods that were never heard of too; a method of another learning rate has nothing to be compared with."""
    runs = []
    for method, rate, wrongs in (
        ("none", 0.1, (9, 9, 9)),
        ("uniform", 0.1, (8, 9, 9)),
        ("mine:Own", 0.1, (0, 1, 0)),
        ("agm", 0.2, (0, 1, 0)),
    ):
        for seed, wrong in enumerate(wrongs):
            run = seeded(joint, tmp_path / str(seed) / method, seed, wrong)
            header, _ = artifacts.read_header(run / "model.safetensors")
            header = replace(header, config=header.config | {"balance": method, "lr": rate})
            artifacts.save(run / "model.safetensors", header, {"weight": torch.zeros(1)})
            runs.append(run)
    for run, accuracy in [(run, 0.0) for run in runs[:3]] + [
        (run, -0.1 - seed / 100) for seed, run in enumerate(runs[6:9])
    ]:
        for modality in MODALITIES:
            probe(run.parent, run, modality, accuracy)
    verdict = judge(runs, tmp_path)[3]
    assert (verdict.answer, verdict.short) == ("yes", "Balancing helps")
    assert verdict.headline.startswith("Accuracy is higher with `mine:Own` +96.3 points (95 % interval ")
    assert "than without balancing. Against `uniform`: `mine:Own` +92.6 points" in verdict.headline
    assert "The weaker modality, by its share of the answer: " in verdict.headline
    words = " ".join(verdict.details)
    assert verdict.details[0] == "3 comparisons: the limit for each p is 0.05 / 3 = 0.017."
    assert "`mine:Own`: 0.0 % without balancing, 96.3 % with it, +96.3 points" in words
    assert "`mine:Own`: 3.7 % with `uniform`, 96.3 % with it, +92.6 points" in words
    assert "agm" not in words
    assert re.search(
        r"share of the weaker modality \((audio|visual)\) in `mine:Own`: [\d.]+ % without balancing", words
    )
    assert re.search(r"linear probes of the (audio|visual) encoder of `mine:Own` .*: \+0.0 points", words)
    assert judge(runs[:1] + runs[9:], tmp_path)[3].answer == "not measured"
    assert len(judge(runs[:3], tmp_path)) == 3


def test_runs_that_were_best_at_their_last_epoch_are_not_done_learning(experiment: Experiment) -> None:
    found = gather([experiment.audio], [experiment.folder])
    (node,) = found.stage1("audio")
    run = found.runs[node.path]
    assert run.summary is not None
    for best, says in ((len(run.epochs), "The best epoch of `audio` (1 of 1 runs) is the last one"), (1, "")):
        found.runs[node.path] = replace(run, summary=run.summary | {"best_epoch": best})
        assert list_unsettled(found, [node, node]).startswith(says)
    assert not list_unsettled(found, [node])


def test_every_group_is_asked_and_unfinished_ones_do_not_hide_others(
    experiment: Experiment, joint: Path, tmp_path: Path
) -> None:
    other = seeded(joint, tmp_path / "other", 0, 9)
    header, _ = artifacts.read_header(other / "model.safetensors")
    header = replace(header, config=header.config | {"lr": 0.5})
    artifacts.save(other / "model.safetensors", header, {"weight": torch.zeros(1)})
    verdict = judge([joint, other], tmp_path, experiment.folder)[1]
    assert all(f"{m} in `{name}` (seed 0)" in verdict.headline for m in MODALITIES for name in ("unmasked", "other"))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(joint, unfinished, ignore=shutil.ignore_patterns("*.safetensors", "summary.json", "*.pt"))
    verdict = judge([unfinished, experiment.fused], experiment.folder, tmp_path)[1]
    assert verdict.answer == "unclear"
    assert "audio in `fused` (seed 0)" in verdict.headline
    assert "no finished run of plain joint training" in verdict.details[0]


def test_probes_are_followed_by_their_model_alone(experiment: Experiment, joint: Path, tmp_path: Path) -> None:
    """One of a fused run that nobody asked for, whose stage-1 run was asked for."""
    inputs = {"model": sha256(joint / "model.safetensors"), "stage1": sha256(experiment.audio / "model.safetensors")}
    header = Header(kind="probe", config={"modality": "audio"}, inputs=inputs, metrics={"modality": "audio"})
    artifacts.save(tmp_path / "probe.safetensors", header, {"weight": torch.zeros(1)})
    found = gather([experiment.audio], [tmp_path, experiment.folder])
    assert {node.path for node in found.nodes if node.is_run} == {experiment.audio, experiment.visual}  # its weights
    assert not found.of_kind("probe")
    assert gather([joint], [tmp_path, experiment.folder]).of_kind("probe")


def test_abri_is_compared_with_kept_and_with_random(experiment: Experiment, tmp_path: Path) -> None:
    runs, nothing = [], {"weight": torch.zeros(1)}
    start, _ = artifacts.read_header(experiment.audio_init)
    model, _ = artifacts.read_header(experiment.audio / "model.safetensors")
    answers = artifacts.load(experiment.audio / "predictions.safetensors", "predictions")
    artifacts.save(tmp_path / "start.safetensors", start, nothing)
    for seed in range(3):
        for bn, weights, wrong in (("keep", "file", 9), ("abri", "file", seed), ("keep", "random", seed)):
            init = tmp_path / f"{bn}-{weights}-{seed}.safetensors"
            inputs = {"weights": sha256(tmp_path / "start.safetensors")} if weights == "file" else {}
            config = start.config | {"bn": bn, "weights": weights, "seed": seed}
            artifacts.save(init, replace(start, config=config, inputs=inputs), nothing)
            run = tmp_path / f"{bn}-{weights}" / str(seed)
            left_out = shutil.ignore_patterns("*.pt", "settings.json", "paths.json", "*.safetensors")
            shutil.copytree(experiment.audio, run, ignore=left_out)
            own, made_from = model.config | {"seed": seed}, model.inputs | {"init": sha256(init)}
            artifacts.save(run / "model.safetensors", replace(model, config=own, inputs=made_from), nothing)
            labels = answers.tensors["test_labels"].clone()
            labels[:wrong] = (labels[:wrong] + 1) % 3
            logits = torch.nn.functional.one_hot(labels, 3).float()
            artifacts.save(run / "predictions.safetensors", answers.header, answers.tensors | {"test_logits": logits})
            runs.append(run)
    verdict = judge(runs, tmp_path)[0]
    assert verdict.claim == "Are there abnormal channels in the pre-trained encoders?"
    kept, random = (line for line in verdict.details if line.startswith("Accuracy of"))
    assert "audio with ABRi (88.9 %) against BatchNorm kept (0.0 %)" in kept
    assert f"p = {ttest_1samp([1, 8 / 9, 7 / 9], 0).pvalue:.3f}" in kept
    assert kept.endswith("; a gain.")
    assert "against random weights (88.9 %): +0.0 points" in random
    assert random.endswith("no difference that this data could show.")
    (beside,) = (line for line in verdict.details if line.startswith("Beside the question"))
    assert "audio with BatchNorm kept (0.0 %) against random weights (88.9 %): −88.9 points" in beside
    (helps,) = verdict.further
    assert helps.answer == "yes"
    assert "against BatchNorm kept +88.9 points" in helps.headline
    assert ("so the difference has another reason" in helps.headline) == (verdict.answer == "no")
    assert re.search(r"`avpt inspect keep-file-0\.safetensors --store STORE`", " ".join(verdict.details))


def test_masked_inputs_are_the_very_ones_of_the_run(page: Path, experiment: Experiment) -> None:
    mask = artifacts.load(experiment.fused / "mask.safetensors", "mask").tensors
    ids = artifacts.unpack_ids(mask)
    text = page.read_text(encoding="utf-8")
    shown = 0
    for i, clip in enumerate(ids):
        found = re.search(
            rf"((?:<figure>(?:(?!</li>).)*?</figure>\s*)+)</div>\s*<p class=\"name\">{clip}</p>", text, re.DOTALL
        )
        for modality, word, rows, columns in (("audio", "spectrogram", 8, 8), ("visual", "frames", 8, 8)):
            colour = (0x00, 0x72, 0xB2) if modality == "audio" else (0xD5, 0x5E, 0x00)  # as in the bars and the scatter
            uri = re.search(rf'src="data:image/png;base64,([^"]*)" alt="{word} masked', found[1]) if found else None
            if uri is None:
                continue
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1]))))
            if modality == "audio":
                pixels = pixels[::-1].swapaxes(0, 1)  # back to (frame, mel)
            generator = torch.Generator().manual_seed(clip_seed(0, 0, clip, "mask"))
            scores = {"audio": torch.rand(1, 64, generator=generator), "visual": torch.rand(1, 64, generator=generator)}
            count = math.floor(mask[f"{modality}_ratio"][i].double() * 64)
            chosen = set(scores[modality][0].argsort(stable=True)[:count].tolist())
            height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
            for patch in range(64):
                top, left = patch // columns * height, patch % columns * width
                hidden = (pixels[top : top + height, left : left + width] == colour).all()
                assert hidden == (patch in chosen)
            shown += count > 0
    assert shown >= 2


# --- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian's package chromium)")
    own = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'own'}",
    )
    return [CHROMIUM, *own, "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"]


Request = tuple[str, str]  # on whose behalf, and a URL


def browse(command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=120, check=True)


def browse_logged(command: list[str], page: Path, log: Path) -> tuple[subprocess.CompletedProcess[str], set[Request]]:
    """Show a page; also what was asked of the network meanwhile, by the page or by the browser for itself."""
    result = browse(command, "--dump-dom", f"--log-net-log={log}", page.as_uri())
    return result, set(re.findall(r'"traffic_annotation":(\d+),"url":"([^"]*)"', log.read_text(encoding="utf-8")))


def test_a_browser_shows_it_without_complaint(page: Path, browser: list[str], tmp_path: Path) -> None:
    """The browser says in its log on whose behalf it asks for something: see first what it says of a page."""
    greedy = tmp_path / "greedy.html"
    wanted = {f"http://127.0.0.1:9/{name}" for name in ("picture.png", "style.css", "script.js")}
    tags = (
        '<img src="{}picture.png">',
        '<link rel="stylesheet" href="{}style.css">',
        '<script src="{}script.js"></script>',
    )
    greedy.write_text("".join(tags).replace("{}", "http://127.0.0.1:9/"), encoding="utf-8")
    _, asked = browse_logged(browser, greedy, tmp_path / "greedy.json")
    of_pages = {whose for whose, url in asked if url in wanted}
    assert {url for whose, url in asked if whose in of_pages} == wanted
    result, asked = browse_logged(browser, page, tmp_path / "net.json")
    assert "CONSOLE" not in result.stderr
    assert '<h2 id="provenance-title">' in result.stdout
    assert not [url for whose, url in asked if whose in of_pages]


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_does_not_scroll_sideways(page: Path, browser: list[str], tmp_path: Path, width: int) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)
    frame = f'<iframe id="f" style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(text)}"></iframe>'
    script = (
        "<script>onload = () => { const d = f.contentDocument.documentElement;"
        "const g = d.querySelector('.graph').getBoundingClientRect();"
        "document.title = `width ${d.clientWidth} ${d.scrollWidth} ${Math.ceil(g.right)}` }</script>"
    )
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><body>{frame}{script}", encoding="utf-8")
    result = browse(browser, "--window-size=1300,1000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    measured = re.search(r"<title>width (\d+) (\d+) (\d+)</title>", result.stdout)
    assert measured is not None
    assert int(measured[1]) == width
    assert int(measured[2]) <= width
    assert int(measured[3]) <= width or width < 768  # the whole graph is seen, on phones by scrolling it


def measure(page: Path, browser: list[str], tmp_path: Path, script: str, width: int) -> str:
    """What a script says of the page, shown in a frame of this width; `d` is its document, `w` its window."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    frame = f'<iframe id="f" style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(text)}"></iframe>'
    script = f"onload = () => {{ const w = f.contentWindow, d = w.document; document.title = 'said ' + ({script}) }}"
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><body>{frame}<script>{script}</script>", encoding="utf-8")
    result = browse(browser, "--window-size=1300,1000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    said = re.search(r"<title>said (.*?)</title>", result.stdout)
    assert said is not None
    return said[1]


@pytest.mark.parametrize("width", [390, 1200])
def test_all_text_is_at_least_ten_pixels_high(page: Path, browser: list[str], tmp_path: Path, width: int) -> None:
    """Above all the text of drawings, which are scaled with the screen."""
    script = """[...d.querySelectorAll('svg')].flatMap(s => [...s.querySelectorAll('text')].map(t =>
        parseFloat(w.getComputedStyle(t).fontSize) * s.getBoundingClientRect().width / s.viewBox.baseVal.width))
        .concat([...d.querySelectorAll('p, span, code, small, td, th, dd, figcaption')]
        .map(e => parseFloat(w.getComputedStyle(e).fontSize))).map(x => x.toFixed(2)).join(' ')"""
    sizes = [float(size) for size in measure(page, browser, tmp_path, script, width).split()]
    assert len(sizes) > 300
    assert min(sizes) >= 10


def test_names_of_rows_stay_beside_the_numbers_on_a_phone(page: Path, browser: list[str], tmp_path: Path) -> None:
    """Scrolled to its end a table still shows its first column, and at its start the first numbers are seen."""
    script = """[...d.querySelectorAll('.scroll:has(table)')].map(e => { const box = e.getBoundingClientRect();
        const number = e.querySelector('tbody .number').getBoundingClientRect().right - box.left;
        e.scrollLeft = 9999; const name = e.querySelector('tbody th').getBoundingClientRect();
        return [number, name.left - box.left, name.width].map(Math.round).join(' ') }).join('; ')"""
    tables = [list(map(int, one.split())) for one in measure(page, browser, tmp_path, script, 390).split("; ")]
    assert len(tables) >= 6
    assert all((abs(left) <= 1, width <= 130) == (True, True) for _, left, width in tables)
    assert sum(number <= 358 for number, _, _ in tables) >= len(tables) - 1  # one begins with four columns of words


def test_a_phone_shows_that_a_table_scrolls(page: Path, browser: list[str], tmp_path: Path) -> None:
    script = """[...d.querySelectorAll('.scroll:has(table)')].filter(e => e.scrollWidth > e.clientWidth)
        .map(e => e.querySelectorAll('thead th').length + ' '
        + w.getComputedStyle(e.querySelector('caption'), '::before').content.includes('scroll') + ' '
        + w.getComputedStyle(e).backgroundImage.includes('gradient')).join('; ')"""
    tables = [one.split() for one in measure(page, browser, tmp_path, script, 390).split("; ")]
    assert len(tables) >= 3
    assert all((hint == "true") == (int(columns) >= BROAD) for columns, hint, _ in tables)
    assert all(shaded == "true" for _, _, shaded in tables)


def test_a_phone_shows_that_a_wide_figure_scrolls(page: Path, browser: list[str], tmp_path: Path) -> None:
    script = """[...d.querySelectorAll('.scroll:has(svg)')].map(e => (e.scrollWidth > e.clientWidth) + ' '
        + w.getComputedStyle(e.parentElement, '::before').content.includes('scroll')).join('; ')"""
    figures = [one.split() for one in measure(page, browser, tmp_path, script, 390).split("; ")]
    assert ["true", "true"] in figures
    assert all(scrolls == hint for scrolls, hint in figures)


def test_dark_is_dark_and_light_is_light(page: Path, browser: list[str], tmp_path: Path) -> None:
    means = []
    for scheme in (0, 1):  # Chromium's words for dark and light
        shot = tmp_path / f"{scheme}.png"
        browse(browser, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", page.as_uri())
        means.append(float(np.asarray(Image.open(shot).convert("L")).mean()))
    assert means[0] < 80
    assert means[1] > 200
