"""Help: options in groups, an example that works, no word broken, and messages about a command line that is wrong."""

from __future__ import annotations

import re
import shlex
from typing import Any, get_args

import pytest
import typer
from helpers import CONFIGS, ROOT, avpt

from avpt import options
from avpt.cli import app
from avpt.options.other_names import OTHER_NAMES, UNNEEDED, meant_by

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def help_of(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    return avpt(*([command] if command else []), "--help").stdout


def words(text: str) -> list[str]:
    return re.sub("[│╭╮╰╯─]", " ", text).split()


@pytest.mark.parametrize("command", ["", *CONFIGS])
@pytest.mark.parametrize("width", [80, 60])
def test_no_word_is_broken(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, narrow = help_of(command, 1000, monkeypatch), help_of(command, width, monkeypatch)
    assert max(map(len, narrow.splitlines())) <= width
    assert sorted(words(narrow)) == sorted(words(whole))
    assert "…" not in narrow


@pytest.mark.parametrize("command", CONFIGS)
def test_every_option_is_in_a_group_and_tells_its_choices(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of(command, 1000, monkeypatch)
    for parameter in COMMANDS[command].params:
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
        if parameter.param_type_name == "option":
            assert parameter.rich_help_panel in options.PANELS, name
        (line,) = [line for line in shown.splitlines() if re.match(rf"│ [ *]*{name}[ ,.]", line)]
        kind, *_ = get_args(options.type_hints(CONFIGS[command])[parameter.name])
        assert "<bool>" not in line
        for choice in options.choices(CONFIGS[command], parameter.name):
            assert choice in words(re.sub(r"[(),.;:]", " ", line)), f"{name} {kind} does not tell {choice}"


def test_defaults_of_two_numbers_read_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of("finetune-unimodal", 1000, monkeypatch)
    for name, default in (("--crop-scale", "0.08 1"), ("--spec-augment", "0 0")):
        (line,) = [line for line in shown.splitlines() if re.match(rf"│ +{name} ", line)]
        assert f"[default: {default}]" in line


def test_groups_come_in_one_order_and_what_all_commands_have_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in CONFIGS:
        heads = re.findall("^╭─ (.*?) ─+╮$", help_of(command, 80, monkeypatch), flags=re.MULTILINE)
        named = [head for head in heads if head != "Arguments"]
        assert named == [panel for panel in options.PANELS if panel in named]
        assert len(heads) == len(set(heads))
        assert heads[-1] == options.COMMON


@pytest.mark.parametrize("command", CONFIGS)
def test_help_ends_with_an_example_that_works(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, end = help_of(command, 80, monkeypatch).partition("Example:")
    line, _, more = end.partition("More: avpt guide ")
    assert (ROOT / "avpt" / "guide" / f"{more.strip()}.md").exists()
    program, name, *rest = shlex.split(line.replace("\\\n", ""))
    assert (program, name) == ("avpt", command)
    context = COMMANDS[command].make_context(command, rest)
    assert CONFIGS[command](**context.params).record() is not None


@pytest.mark.parametrize("command", CONFIGS)
def test_only_what_draws_takes_a_seed(command: str) -> None:
    draws = {"init", "finetune-unimodal", "fuse-train", "evaluate", "inspect"}
    assert ("--seed" in [name for parameter in COMMANDS[command].params for name in parameter.opts]) == (
        command in draws
    )


# --- a command line that is wrong --------------------------------------------------------------------------------


def told(*arguments: str) -> str:
    """What is said of a command line, without its frame."""
    result = avpt(*arguments)
    assert (result.code, result.stdout) == (2, "")
    return " ".join(words(result.stderr.partition("─ Error ─")[2]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fuse-train", "s", "--learning-rate", "1"), "No such option: --learning-rate; did you mean --lr?"),
        (("fuse-train", "s", "--num_workers", "1"), "No such option: --num_workers; did you mean --workers?"),
        (("fuse-train", "s", "--bs", "1"), "No such option: --bs; did you mean --batch-size?"),
        (("predict", "m", "-o", "x.csv"), "No such option: -o; did you mean --out?"),
        (("evaluate", "m", "s", "--gpu", "0"), "No such option: --gpu; did you mean --device?"),
        (("preprocess", "m", "--frames", "3"), "No such option: --frames; did you mean --max-frames?"),
        (("fuse-train", "s", "--frames", "3"), "No such option: --frames; did you mean --num-frames?"),
        (("fuse-train", "s", "--epoch", "3"), "No such option: --epoch; did you mean --epochs?"),
        (("export", "m", "--seed", "3"), "No such option: --seed; nothing is random here; leave it out"),
        (("fuse-train", "s", "--resume"), f"No such option: --resume; {UNNEEDED['--resume']}"),
        (("info", "x", "--zebra"), "No such option: --zebra"),
    ],
)
def test_an_unknown_option_gets_the_one_that_is_meant(arguments: tuple[str, ...], message: str) -> None:
    assert told(*arguments) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("probe", "m", "s", "--epochs", "3"), "--epochs; it is an option of finetune-unimodal and fuse-train"),
        (
            ("probe", "m", "s", "--num-epochs", "3"),
            "--num-epochs; its like is --epochs, which is an option of finetune-unimodal and fuse-train",
        ),
        (("info", "x", "--top", "3"), "--top; it is an option of predict"),
    ],
)
def test_an_option_of_other_commands_is_told_as_theirs(arguments: tuple[str, ...], message: str) -> None:
    assert told(*arguments) == f"No such option: {message}"


@pytest.mark.parametrize("command", CONFIGS)
def test_other_names_are_told_what_is_meant_by_every_command(command: str) -> None:
    options_of = {
        name: [option for parameter in one.params for option in parameter.opts if option.startswith("-")]
        for name, one in COMMANDS.items()
    }
    for name in (*OTHER_NAMES, *UNNEEDED):
        message = options.unknown_option(name, options_of[command], options_of)
        assert message.startswith(f"No such option: {name}; "), message


def test_quiet_has_a_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(re.search("--quiet +-q ", help_of(command, 80, monkeypatch)) for command in CONFIGS)
    assert COMMANDS["info"].make_context("info", ["x", "-q"]).params["quiet"] is True


def test_other_names_lead_to_options_that_exist() -> None:
    known = {name for command in COMMANDS.values() for parameter in command.params for name in parameter.opts}
    assert len(OTHER_NAMES) > 40
    for name, meant in OTHER_NAMES.items():
        assert name not in known
        assert set(meant) <= known
        assert meant_by(name, sorted(known)) == [meant[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("init", "--modality", "foo", "--out", "x"),
            "Invalid value for '--modality': 'foo' is not one of 'audio', 'visual'.",
        ),
        (("fuse-train", "s", "--epochs", "x"), "Invalid value for '--epochs': it must be a whole number"),
    ],
)
def test_a_wrong_value_is_told_without_words_of_libraries(arguments: tuple[str, ...], message: str) -> None:
    assert told(*arguments) == message
