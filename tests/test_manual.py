"""The manual: README.md, the pages of `avpt guide`, recipes/README.md and avpt/README.md say what the program does.

Every command line parses, every option in the text exists, and every output is what the program prints. The numbers of
an output are those of the real experiment; here the same commands run on a few digits, so that all but the numbers and
the width of columns must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import h5py
import pytest
import torch
import typer
from helpers import CONFIGS, ROOT, Experiment, Result, avpt, digit_rows, done, write_manifest
from rich.console import Console
from safetensors.torch import load_file

from avpt import options
from avpt.cli import app
from avpt.files import artifacts
from avpt.machine import terminal
from avpt.models.abnormal_channels import norm_layers
from avpt.training import display
from avpt.training.state import Clock

GUIDE = sorted((ROOT / "avpt" / "guide").glob("*.md"))
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in GUIDE} | {
    name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "recipes/README.md", "avpt/README.md")
}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FENCED = re.compile(r"```(\w*)\n(.*?)```", flags=re.DOTALL)
OTHERS = {"--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--nproc-per-node", "--shm-size", "--logdir", "--strict"}
PLAIN = {"--help", "--version", "--install-completion"}  # options of the program itself
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.py")))


def blocks(page: str, *languages: str) -> list[str]:
    return [text for language, text in FENCED.findall(PAGES[page]) if language in languages]


def lines_of(script: str) -> list[str]:
    """Command lines of a block of shell, continued ones as one; no comments. Of a loop, those that it comes to."""
    if re.search("^for ", script, flags=re.MULTILINE):
        shown = "avpt() { printf '%q ' avpt \"$@\"; echo; }\n" + script
        told = subprocess.run(["bash", "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True)
        return told.stdout.splitlines()
    lines = script.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def dialogue(block: str) -> list[tuple[str, str]]:
    """The command lines of a console block, each with the output below it; of one without a prompt, the output."""
    if not block.startswith("$ "):
        return [("", block)]
    turns = [turn.replace("\\\n", " ") for turn in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(line, output) for line, _, output in (turn.partition("\n") for turn in turns)]


def words_of(line: str, folder: Path = ROOT) -> list[str]:
    """What a shell makes of a command line, there."""
    script = f"words() {{ printf '%s\\0' \"$@\"; }}; words {line}"
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "3"}
    told = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, check=True)
    return told.stdout.decode().split("\0")[:-1]


def command_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for script in blocks(page, "sh"):
            yield from ((page, line) for line in lines_of(script))
        for block in blocks(page, "console"):
            yield from ((page, line) for line, _ in dialogue(block) if line)


COMMAND_LINES = list(command_lines())


def test_there_are_pages_and_command_lines() -> None:
    assert len(GUIDE) >= 10
    assert len(COMMAND_LINES) >= 30
    assert sum(line.startswith("avpt ") for _, line in COMMAND_LINES) >= 20
    assert sum(len(blocks(page, "console")) for page in PAGES) >= 14
    fences = [language for text in PAGES.values() for language, _ in FENCED.findall(text)]
    assert set(fences) <= {"sh", "console", "csv", "json", "python", "bibtex", ""}
    assert [name for name, text in PAGES.items() for language, _ in FENCED.findall(text) if not language] == [
        "avpt/README.md"
    ]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_a_command_line_parses(page: str, line: str) -> None:
    words = [word for word in words_of(line) if not re.match("[A-Z_]+=", word)]
    if words[0] == "torchrun":
        assert words[words.index("-m") + 1] == "avpt"
        words = words[words.index("-m") + 1 :]
    program, *arguments = words
    if program == "avpt":
        if arguments[0] not in PLAIN:
            name, *rest = arguments
            given = COMMANDS[name].make_context(name, rest).params
            assert CONFIGS[name](**given).record() is not None
    elif program == "pip":
        assert arguments[0] == "install"
    else:
        script = ROOT / (arguments.pop(0) if program == "python" else program)
        text = script.read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in arguments if word.startswith("--"))


# --- in the text -------------------------------------------------------------------------------------------------


def spans(page: str) -> list[str]:
    """What stands between single backticks."""
    text = FENCED.sub("", PAGES[page])
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def declared(name: str) -> dict[str, Any]:
    """The options of a command by what is typed: the field's type."""
    hints = options.type_hints(CONFIGS[name])
    return {
        typed: get_args(hints[parameter.name])[0]
        for parameter in COMMANDS[name].params
        if parameter.name in hints
        for typed in (*parameter.opts, *parameter.secondary_opts)
    }


def choices(kind: Any) -> set[str]:
    """The words that an option takes, where it takes only some."""
    found = {value for value in get_args(kind) if isinstance(value, str)}
    return found.union(*(choices(inner) for inner in get_args(kind) if get_args(inner)))


def test_options_in_the_text_are_options_of_the_program() -> None:
    taken: dict[str, set[str]] = {}
    for name in CONFIGS:
        for typed, kind in declared(name).items():
            taken.setdefault(typed, set()).update(choices(kind) or {""})
    checked = 0
    wrong = []
    for page in PAGES:
        for span in spans(page):
            words = span.replace(" / ", " ").split()
            command = words[1] if words[0] == "avpt" and len(words) > 1 else words[0]
            known = set(declared(command)) | PLAIN if command in CONFIGS else set(taken) | OTHERS | PLAIN
            if words[0] == "avpt" and len(words) > 1 and command not in {*CONFIGS, *PLAIN, "COMMAND"}:
                wrong.append(f"{page}: {span}")
            for word, value in zip(words, [*words[1:], ""], strict=True):
                if not re.fullmatch("--[a-z][a-z0-9-]*", word):
                    continue
                checked += 1
                if word not in known and f'"{word}"' not in SCRIPTS:
                    wrong.append(f"{page}: {span}: {word}")
                listed = taken.get(word, {""})
                if "" not in listed and re.fullmatch("[a-z][a-z0-9|-]*", value) and not set(value.split("|")) <= listed:
                    wrong.append(f"{page}: {span}: {word} {value}")
    assert checked > 80
    assert not wrong, "\n".join(wrong)


def test_every_command_and_every_topic_is_in_the_manual() -> None:
    text = "".join(PAGES.values())
    assert [name for name in CONFIGS if f"`{name}`" not in text and f"`avpt {name}" not in text] == []
    listed = re.findall(r"^\| \[([\w-]+)\]\(avpt/guide/([\w-]+)\.md\) \|", PAGES["README.md"], flags=re.MULTILINE)
    assert sorted(name for name, _ in listed) == [path.stem for path in GUIDE]
    assert all(name == file for name, file in listed)


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


def test_links_lead_somewhere() -> None:
    found = 0
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("https://"):
                found += 1
                assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
    assert found > 20


def test_no_sentence_stands_twice() -> None:
    seen: dict[str, str] = {}
    twice = []
    for page, text in PAGES.items():
        for sentence in re.split(r"(?<=[.:;])\s+|\n\n|\|", FENCED.sub("", text)):
            plain = " ".join(sentence.split())
            if len(plain) > 60 and seen.setdefault(plain, page) is not page:
                twice.append(f"{page} and {seen[plain]}: {plain}")
    assert len(seen) > 150
    assert not twice, "\n".join(twice)


# --- outputs -----------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """Words of an output: a number is #, however wide its column; no rules, no bars, no names of digits' clips."""
    text = re.sub("[▏▎▍▌▋▊▉█─]", " ", text)
    text = re.sub(r"\b[0-9a-f]{13}\.\.\.", "#", text)  # a checksum
    text = re.sub(r"\b\d_[a-z]+\S*_\d{4}\b", "CLIP", text)
    return re.sub(r"(?<![\w.])[+-]?\d+(\.\d+)?(e[+-]?\d+)?", "#", text).split()


def missing_from(shown: str, printed: str) -> str:
    """What an output in the manual has that the program did not print there; `...` stands for anything."""
    besides = [r"\w+: \d+ of \d+, time left", r"epoch \d+ of \d+, "]  # said where a machine is slow
    besides += ["warning: "] if "warning: " not in shown else []
    besides += [r"\w+: \d+ of \d+, .* failed$"] if " failed\n" not in shown else []
    printed = "".join(line for line in printed.splitlines(keepends=True) if not re.match("|".join(besides), line))
    parts: list[list[str]] = [[]]
    for word in tokens(shown):
        if word == "...":
            parts.append([])
        else:
            parts[-1].append(word)
    there, at = tokens(printed), 0
    for number, part in enumerate(parts):
        first = len(there) - len(part) if number > 0 and part is parts[-1] else at  # the last one ends it, if any
        last = at if number == 0 else len(there) - len(part)
        places = range(max(first, at), last + 1)
        place = next((place for place in places if there[place : place + len(part)] == part), None)
        if place is None:
            return " ".join(part) or "nothing more"
        at = place + len(part)
    return "" if at == len(there) else f"the end, before {' '.join(there[at : at + 9])}"


def test_an_output_that_is_not_the_programs_is_noticed() -> None:
    printed = "audio alone, best epoch 2 of 2\n\n val   test\n ───────\n accuracy   0.50   0.25\n\nrun\n"
    assert not missing_from("audio alone, best epoch 8 of 8\n val test\n accuracy 0.9200 0.8980\nrun", printed)
    assert not missing_from("audio alone, best ...\n...\n accuracy 0.9200 ...\nrun", printed)
    for slip in (
        "audio alone, epoch 8 of 8\n...",
        "val test\n...",
        "audio alone, best epoch 8 of 8\n...\nvisual",
        "audio alone, best epoch 8 of 8\n val test\n accuracy 0.9200 0.8980",
        "...\n accuracy 0.9200\nrun",
    ):
        assert missing_from(slip, printed), slip


def few_digits(folder: Path) -> None:
    """What recipes/make_digits.py makes, in small."""
    (folder / "digits" / "films").mkdir(parents=True)
    rows = digit_rows()
    write_manifest(folder / "digits" / "manifest.csv", rows)
    for row in rows[:2]:
        shutil.copyfile(row["frames"], folder / "digits" / "films" / f"7_en-029_{row['id']}.png")


def vggsound(folder: Path) -> None:
    media = folder / "VGGSound"
    media.mkdir()
    clips = {
        "---1_cCGK4M_000001": "people belly laughing,train",
        "--0PQM4-hqg_000030": "waterfall burbling,train",
        "--56QUhyDQM_000185": "car engine starting,train",
        "--5OkAjCI7g_000040": "car engine starting,test",
    }
    lists = [f"{name[:11]},{int(name[12:])},{rest}" for name, rest in clips.items()]
    (media / "vggsound.csv").write_text("\n".join(lists) + "\n", encoding="utf-8")
    for name in clips:
        if name != "--56QUhyDQM_000185":
            (media / f"{name}.mp4").write_bytes(b"x")


def damaged_store(folder: Path) -> None:
    """A JPEG without its picture, and a shard that is not there."""
    with h5py.File(folder / "store" / "train-00000.h5", "r+") as file:
        low, high = file["visual/byte_offset"][:2]
        start = file["visual/bytes"][low:high].tobytes().index(b"\xff\xda")
        file["visual/bytes"][low + start + 1] = 0xD9
    (folder / "store" / "val-00000.h5").unlink()


def abnormal_encoder(folder: Path) -> None:
    """An encoder of which half of the channels have no gamma and no beta, trained for an epoch."""
    state = artifacts.load(folder / "visual-init.safetensors", "encoder").tensors
    for layer in norm_layers(state):
        half = len(state[f"{layer}.weight"]) // 2
        state[f"{layer}.weight"][:half] = 0
        state[f"{layer}.bias"][:half] = 0
    torch.save(state, folder / "worn.pt")
    done("init", "--modality", "audio", "--weights", "worn.pt", "--out", "keep.safetensors")
    run = ("--epochs", "1", "--batch-size", "8", "--workers", "0", "--out", "audio-keep")
    done("finetune-unimodal", "store", "--modality", "audio", "--init", "keep.safetensors", *run)


def other_checkpoint(folder: Path) -> None:
    """The visual encoder as another program would keep it."""
    state = artifacts.load(folder / "visual-init.safetensors", "encoder").tensors
    nested = {f"model.{key}": value for key, value in state.items()}
    value = {"state_dict": nested, "epoch": 3, "optimizer": {}, "args": argparse.Namespace(lr=0.1)}
    torch.save(value, folder / "last.ckpt")


def five_ways(folder: Path) -> None:
    """The runs of recipes/masking.sh: records of the two that are there, with other words in them."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("fused-unmasked", {}),
        "uniform": ("fused", {"mask": "uniform"}),
        "adaptive": ("fused", {}),
        "released": ("fused", {"mask_rule": "released"}),
        "ogm-ge": ("fused-unmasked", {"balance": "ogm-ge", "ogm_alpha": 0.8, "ogm_window": [0, 50]}),
    }
    for seed in range(3):
        for number, (way, (source, changed)) in enumerate(ways.items()):
            run = folder / f"seed-{seed}" / way
            (run / "checkpoint").mkdir(parents=True)
            shutil.copyfile(folder / source / "metrics.jsonl", run / "metrics.jsonl")
            settings = json.loads((folder / source / "checkpoint" / "settings.json").read_text())
            settings["config"] |= {"seed": seed} | changed
            (run / "checkpoint" / "settings.json").write_text(json.dumps(settings))
            summary = json.loads((folder / source / "summary.json").read_text())
            summary["test"]["accuracy"] = 0.9 + 0.01 * ((seed * seed + number * (seed + 2)) % 7)
            (run / "summary.json").write_text(json.dumps(summary))
            header, _ = artifacts.read_header(folder / source / "model.safetensors")
            header = replace(header, config=settings["config"])
            artifacts.save(run / "model.safetensors", header, {"seed": torch.tensor([seed])})


def two_clips(folder: Path) -> None:
    rows = [
        {"id": name, "audio": row["audio"], "frames": row["frames"]}
        for name, row in zip(("first", "second"), digit_rows(), strict=False)
    ]
    write_manifest(folder / "new.csv", rows)


BEFORE: dict[str, Callable[[Path], None]] = {  # what is there that README.md does not make
    "manifest": vggsound,
    "verify": damaged_store,
    "inspect": abnormal_encoder,
    "compare": five_ways,
    "predict": two_clips,
}


# what is going on, which a terminal shows as a bar, and pages leave out
PROGRESS = re.compile(
    r"^(loading|starting|inspect:|reading|feeding|looking for|features of|fitting a|drawing|writing it|\w+ \w+: \d+ of)"
    r".*\n",
    re.MULTILINE,
)


def test_outputs_are_what_the_program_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README.md's commands from first to last, and in the folder that they leave every command of the other pages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("avpt.training.metrics.TOP", 2)  # three classes stand for ten, of which top5 is shown
    few_digits(tmp_path)

    def run(words: list[str]) -> Result:
        trains = words[1] in ("finetune-unimodal", "fuse-train")
        loads = trains or words[1] in ("evaluate", "probe", "inspect")
        return avpt(*words[1:], *(["--workers", "0"] if loads else []), *(["--epochs", "2"] if trains else []))

    printed: dict[tuple[str, ...], Result] = {}
    for script in blocks("README.md", "sh"):
        for line in lines_of(script):
            words = words_of(line, tmp_path)
            if words[0] == "avpt" and words[1] != "--help":
                printed[tuple(words)] = result = run(words)
                assert result.code == 0, f"{line}: {result.stderr}"
    assert len(printed) >= 12
    for name in ("report.html", "visual.safetensors", "fused/model.safetensors"):
        assert (tmp_path / name).exists()

    other_checkpoint(tmp_path)
    wrong, checked = [], 0
    for page in sorted(PAGES, key=lambda page: "preprocess" in page):  # which damages the store
        for line, shown in (turn for block in blocks(page, "console") for turn in dialogue(block)):
            if not line.startswith("avpt "):
                continue
            name = line.split()[1]
            if name in BEFORE:
                BEFORE[name](tmp_path)
            words = words_of(line, tmp_path)
            actual = printed.get(tuple(words)) or run(words)
            checked += 1
            said = PROGRESS.sub("", actual.stderr)
            orders = said + actual.stdout, actual.stdout + said, actual.stdout
            lacking = [missing_from(shown, both) for both in orders]
            if all(lacking):
                wrong.append(f"{page}: {line}\n{orders[0]}\nis not what the page shows: {' / '.join(lacking)}")
    assert checked >= 14
    assert not wrong, "\n\n".join(wrong)

    (shown,) = blocks("avpt/guide/watching.md", "json")
    (timing, *_) = (tmp_path / "fused" / "timing.jsonl").read_text().splitlines()
    assert list(json.loads(timing)) == list(json.loads(shown))


def test_the_live_table_is_the_one_that_is_shown() -> None:
    (shown,) = (output for block in blocks("avpt/guide/watching.md", "console") for _, output in dialogue(block))
    metrics = ("loss", "accuracy", "audio_accuracy", "visual_accuracy")
    table = display._Table(5, 13, {}, metrics, ["audio", "visual"])
    for line in shown.splitlines()[3:6]:
        epoch, *cells = line.replace("*", " ").replace("%", "e-2").split()
        loss, accuracy, *val, pace, waiting, audio, visual = map(float, cells)
        norms = {"audio": audio, "visual": visual}
        record = {"epoch": int(epoch), "train": {"loss": loss, "accuracy": accuracy}, "gradient_norm": norms}
        table.records.append(record | {"val": dict(zip(metrics, val, strict=True))})
        table.timings[int(epoch)] = {"clips_per_second": pace, "waiting": waiting}
    table.best_epoch, table.step, table.doing, table.norms = 3, 9, "", {"audio": 0.251, "visual": 0.337}
    table.clips, table.loss, table.correct = 1000, 50.1, 986
    table.clock = Clock()
    row = {"clips_per_second": 5.7, "waiting": 0.03}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "row", lambda *_: row)
        patch.setattr(table, "left", lambda: "0:01:50 left")
        console = Console(width=80, color_system=None)
        with console.capture() as captured:
            console.print(table.drawing())
    assert [line.rstrip() for line in captured.get().splitlines()] == shown.splitlines()


def test_the_lines_of_several_processes_are_those_that_are_shown() -> None:
    ((line, shown),) = (turn for block in blocks("avpt/guide/devices.md", "console") for turn in dialogue(block))
    assert line.startswith("torchrun ")
    # tests/test_several_processes.py runs it
    source = (ROOT / "avpt" / "runs" / "training_run.py").read_text(encoding="utf-8")
    (said,) = re.findall(r'"(%d processes: [^"]*)"', source)
    assert tokens(re.sub("%[ds]", "0", said)) == tokens(shown)


# --- files -------------------------------------------------------------------------------------------------------


def tables_of_files() -> dict[str, dict[str, tuple[str, str]]]:
    """What the manual says of a file's contents: type and shape of each thing in it, by the file's name."""
    tables: dict[str, dict[str, tuple[str, str]]] = {}
    for table in re.findall(r"(?:^\|.*\n)+", PAGES["avpt/guide/files.md"], flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        if head[1:3] == ["type", "shape"]:
            (file,) = re.findall("`(.*)`", head[0])
            tables[file] = {name: (row[1], row[2]) for row in rows for name in re.findall("`(.*?)`", row[0])}
    return tables


def contents_of(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and the shape of each thing in a file."""
    if path.suffix == ".h5":
        with h5py.File(path) as shard:
            members: list[h5py.Dataset] = []
            shard.visititems(lambda _, member: members.append(member) if isinstance(member, h5py.Dataset) else None)
            types = {one.name: "text" if h5py.check_string_dtype(one.dtype) else str(one.dtype) for one in members}
            return {one.name.removeprefix("/"): (types[one.name], one.shape) for one in members}
    tensors = load_file(path)
    return {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_files_hold_what_the_manual_says(experiment: Experiment) -> None:
    paths = {
        "train-00000.h5": [experiment.store / "train-00000.h5"],
        "dynamics.safetensors": [run / "dynamics.safetensors" for run in (experiment.audio, experiment.fused)],
        "predictions.safetensors": [run / "predictions.safetensors" for run in (experiment.audio, experiment.fused)],
        "confidence.safetensors": [experiment.confidence],
        "mask.safetensors": [experiment.fused / "mask.safetensors"],
    }
    tables = tables_of_files()
    assert tables.keys() == paths.keys()
    fixed = {"C": 3, "E": 2, "time": 48, "mel": 32, "2": 2}
    for file, found in paths.items():
        for path in found:
            contents, sizes = contents_of(path), dict(fixed)
            shared = len(tables[file]) if path.parent != experiment.audio else len(contents)  # a fused run has more
            assert len(contents) == shared
            for name, (kind, shape) in contents.items():
                says, letters = tables[file][name]
                assert kind == says, f"{path}: {name}"
                words = letters.split(" x ")
                assert len(words) == len(shape), f"{path}: {name}"
                for word, size in zip(words, shape, strict=True):
                    letter, _, more = word.partition(" + ")
                    assert letter == "B" or sizes.setdefault(letter, size - int(more or 0)) == size - int(more or 0)
            assert sizes["N"] == {"train-00000.h5": 8, "predictions.safetensors": 9}.get(file, 18)


def test_the_manuals_python_reads_the_ids_of_clips(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("avpt/guide/files.md", "python")
    monkeypatch.chdir(experiment.folder)
    names: dict[str, Any] = {}
    exec(block, names)
    rows = [row["id"] for row in digit_rows() if row["split"] == "train"]
    assert names["ids"] == rows


# --- avpt guide --------------------------------------------------------------------------------------------------


def test_guide_lists_its_topics() -> None:
    result = done("guide")
    assert result.stderr == ""
    titles = [PAGES[f"avpt/guide/{path.name}"].partition("\n")[0] for path in GUIDE]
    assert all(title.startswith("# ") for title in titles)
    listed = dict(zip([path.stem for path in GUIDE], [title.removeprefix("# ") for title in titles], strict=True))
    shown = [line.split(maxsplit=1) for line in result.stdout.splitlines()[4:-1]]
    assert [(topic, title.rstrip()) for topic, title in shown] == list(listed.items()), "a line each"
    assert done("guide", "--json").json() == {"topics": listed}


@pytest.mark.parametrize("path", GUIDE, ids=lambda path: path.stem)
def test_a_page_in_a_pipe_is_its_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    result = done("guide", path.stem)
    assert (result.stdout, result.stderr) == (text, "")
    assert done("guide", path.stem, "--json").json()["text"] == text
    assert text.isprintable() or set(re.sub(r"\n", "", text)) <= {c for c in text if c.isprintable()}


@pytest.mark.parametrize(("topic", "step"), [("maskin", "did you mean masking?"), ("Kelvin", "`avpt guide` lists")])
def test_an_unknown_topic_is_one_line(topic: str, step: str) -> None:
    result = avpt("guide", topic)
    assert (result.code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert f"the manual has no page on {topic}; {step}" in result.error


def test_a_terminal_shows_a_page_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    paged: list[str] = []
    monkeypatch.setattr("pydoc.pager", paged.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    terminal._print_page(PAGES["avpt/guide/methods.md"])
    (text,) = paged
    assert "|" not in text
    assert "**" not in text
    assert "--label-smoothing" in text


# --- avpt/README.md ----------------------------------------------------------------------------------------------


def test_the_map_names_what_is_there() -> None:
    text = FENCED.sub("", PAGES["avpt/README.md"])
    paths = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", text))
    assert len(paths) > 30
    assert not {path for path in paths if not ((ROOT / "avpt" / path).exists() or (ROOT / path).exists())}
