"""What shows a training run as it goes: the table on a terminal, plain lines, timing.jsonl, TensorBoard."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curves import assert_curves_say_what_the_files_say, curves, images
from helpers import THREADS, Experiment, avpt, done, files_of, finetune, fuse, rows_of
from kills import PATIENCE, to_go_on
from torch import Tensor
from toy import NUM_CLIPS, STEPS, AfterStep, InOrder, Stop, trained

from avpt.loading.dataset import Masking
from avpt.loading.masking import most_masked
from avpt.loading.pictures import MARGIN, MASKED, picture
from avpt.training import display
from avpt.training.curves import draw_curves
from avpt.training.run_writer import RunFiles, read_timings
from avpt.training.state import Clock, EpochState, Progress
from avpt.training.watch import Watcher, Watchers
from avpt.types import Batch

COLUMNS, ROWS = 80, 24


def masked_fusion(experiment: Experiment) -> tuple[str | Path, ...]:
    """The command that the experiment's fused run was made with, without --out."""
    return (*fuse(experiment), "--confidence", experiment.confidence, "--mask-threshold", "0.1")


# --- on a terminal -----------------------------------------------------------------------------------------------


class Screen:
    """What a terminal shows after what rich sends: text, line ends, cursor up, and lines erased."""

    def __init__(self, sent: str) -> None:
        self.lines, row, column = [""], 0, 0
        for match in re.finditer(r"\x1b\[([\d;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+", sent):
            text = match.group()
            if text == "\r":
                column = 0
            elif text == "\n":
                row += 1
                self.lines += [""] * (row + 1 - len(self.lines))
            elif match.group(2) == "A":
                row -= int(match.group(1))
            elif match.group(2) == "K":
                self.lines[row] = ""
            elif match.group(2) is None:
                line = self.lines[row].ljust(column)
                self.lines[row] = line[:column] + text + line[column + len(text) :]
                column += len(text)
        self.lines = [line.rstrip() for line in self.lines]


def on_terminal(
    *command: str | Path, stop: Callable[[str], bool] = lambda sent: False
) -> tuple[int, str, str, list[str]]:
    """Run a command whose stderr is a terminal, with a Ctrl-C once `stop` says so of what it sent.

    Returns the exit code, stdout, all that was sent to the terminal, and what that shows at the end, without its first
    line.
    """
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "avpt", *map(str, command)],
        env=os.environ | THREADS | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    sent, deadline, signalled = b"", time.monotonic() + PATIENCE, False
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                sent += os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not signalled and stop(sent.decode(errors="replace")):
                process.send_signal(signal.SIGINT)
                signalled = True
        stdout, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    text = sent.decode()
    lines = Screen(text).lines
    warned = [number for number, line in enumerate(lines) if line.startswith("warning: an epoch of 18 clips has only")]
    for number in reversed(warned):  # which takes two lines of this width
        del lines[number : number + 2]
    assert lines.pop(0) == "loading torch"  # said at once
    return process.returncode, stdout.decode(), text, lines


def test_a_terminal_shows_a_table_that_stays(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, stdout, sent, lines = on_terminal(*masked_fusion(experiment), "--dynamics", "eval", "--out", run)
    assert (code, stdout) == (0, f"{run}\n")
    assert max(map(len, lines)) <= COLUMNS
    for doing in (
        "epoch 1 of 2, waiting for the first step",
        "epoch 1 of 2, measuring confidence, batch 1 of 3",
        "epoch 1 of 2, validating, batch 1 of 2",
        "2 epochs, evaluating the best epoch on test, batch 1 of 2",
    ):
        assert doing in sent, doing
    assert lines[0].split() == ["train", "train", "val", "val", "audio", "visual", "clips", "data", "audio", "visual"]
    assert lines[1].split() == ["epoch", "loss", "acc.", "loss", "acc.", "acc.", "acc.", "/s", "wait", "grad.", "grad."]
    assert sum(line.split()[:1] == ["epoch"] for line in lines) == 1, "the table is there once"
    best = json.loads((run / "summary.json").read_text(encoding="utf-8"))["best_epoch"]
    timings = read_timings(run)
    for row, line in zip(rows_of(run / "metrics.jsonl"), lines[3:5], strict=True):
        epoch, val, timing = row["epoch"], row["val"], timings[row["epoch"]]
        cells = [str(epoch), *(["*"] if epoch == best else [])]
        cells += [f"{row['train']['loss']:.4f}", f"{row['train']['accuracy']:.3f}", f"{val['loss']:.4f}"]
        cells += [f"{val[name]:.3f}" for name in ("accuracy", "audio_accuracy", "visual_accuracy")]
        cells += [f"{timing['clips_per_second']:.1f}", f"{timing['waiting']:.0%}"]
        cells += [f"{row['gradient_norm'][name]:#.3g}" for name in ("audio", "visual")]
        assert line.split() == cells
    assert re.fullmatch(r" 2 epochs, done after 0:0\d:\d\d", lines[5])
    assert lines[6] == " * best so far, by val acc."
    assert lines[7].startswith("joint, concat, mask adaptive, best epoch")


def test_an_interrupted_table_stays_above_the_message(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (*finetune(experiment, "audio", experiment.audio_init), "--epochs", "50", "--out", run)
    code, stdout, _, lines = on_terminal(*command, stop=lambda sent: "epoch 2 of 50" in sent)
    assert (code, stdout) == (130, "")
    assert lines[1].split() == ["epoch", "loss", "acc.", "loss", "acc.", "/s", "wait", "grad."]
    assert [line.split()[0] for line in lines[3:4]] == ["1"]
    (at,) = [number for number, line in enumerate(lines) if "stopped after step" in line]
    assert re.search(r"epoch \d+ of 50, stopped after step \d of 3$", lines[at])
    assert "".join(lines[at + 2 :]) == to_go_on("interrupted", *command)
    # and the same command shows what was done before
    code, _, sent, again = on_terminal(*command, stop=lambda sent: "epoch 3 of 50" in sent)
    assert code == 130
    assert re.fullmatch(r"going on after \d+ epochs? and \d of 3 steps", again[0])
    shown = [[line.replace("*", "").split() for line in table] for table in (again[1:], lines)]  # * is the best so far
    assert [shown[0][i] for i in (0, 1, 3)] == [shown[1][i] for i in (0, 1, 3)]
    assert "epoch 1 of 50" not in sent


def test_a_warning_does_not_tear_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from rich.logging import RichHandler

    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=COLUMNS, height=ROWS, color_system=None)
    monkeypatch.setattr(display, "console", lambda: console)
    monkeypatch.setattr(console, "_environ", {"TERM": "xterm"})
    log = logging.Logger("test")
    log.addHandler(RichHandler(console=console, show_time=False, show_path=False, show_level=False))
    table = display._Table(20, 2, {}, ["loss", "map"], ["encoder"])
    progress = Progress()
    with table.live:
        for epoch in range(1, 16):
            learnt = {"loss": 1000.0 * epoch, "accuracy": 0.5}
            norm = {"encoder": 12345.0}
            val = {"loss": 0.1, "accuracy": 0.1, "map": 0.25}
            progress.records.append({"epoch": epoch, "train": learnt, "val": val, "gradient_norm": norm})
            progress.best_epoch = 2
            timing = {
                "epoch": epoch,
                "seconds": 2.0,
                "training_seconds": 1.0,
                "clips_per_second": None,
                "waiting": None,
            }
            table.epoch_done(progress, timing)
            log.warning("something about epoch %d", epoch)
    lines = Screen(sent.getvalue()).lines
    assert [line for line in lines if line.startswith("something")] == [
        f"something about epoch {n}" for n in range(1, 16)
    ]
    at = next(number for number, line in enumerate(lines) if line.split()[:1] == ["epoch"])
    assert "mAP" in lines[at]
    shown = [line.split() for line in lines[at + 2 : at + 14]]
    assert [cells[0] for cells in shown] == [str(epoch) for epoch in (2, *range(6, 17))]  # the best, the last, the next
    assert shown[0] == ["2", "*", "2e+03", "0.500", "0.1000", "0.250", "1.23e+04"]


# --- elsewhere ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_there_are_lines(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, rate = r"-?[\d.]+(e[+-]\d+)?", r"[\d.]+ clips/s  waiting \d+%"
    result = done(*masked_fusion(experiment), "--epochs", "1", "--out", tmp_path / "few")
    learnt = f"loss {number}  acc. {number}"
    line = f"epoch 1  {learnt}  val {learnt}  audio {number}  visual {number}  best 1"
    few, *lines = result.stderr.splitlines()
    assert few.startswith("warning: an epoch of 18 clips has only 3 step(s)")
    assert re.fullmatch(line, lines[0])
    monkeypatch.setattr(display._Lines, "every", 0.0)  # of ten seconds
    result = done(*finetune(experiment, "visual", experiment.visual_init), "--out", tmp_path / "many")
    lines = result.stderr.splitlines()
    assert re.search(r"epoch 2 of 2, validating, batch 2 of 2, 0:0\d:\d\d", result.stderr)
    (line,) = [line for line in lines if line.startswith("epoch 2 of 2, step 3 of 3")]
    assert re.fullmatch(rf"epoch 2 of 2, step 3 of 3, 0:0\d:\d\d left  {learnt}  {rate}", line)
    assert max(len(line) for line in lines if not line.startswith("warning")) < 100
    loss, accuracy = (float(re.search(rf" {name} ({number})", line)[1]) for name in ("loss", "acc."))  # type: ignore[index]
    train = rows_of(tmp_path / "many" / "metrics.jsonl")[1]["train"]
    assert (loss, accuracy) == pytest.approx((train["loss"], train["accuracy"]), abs=1e-3)
    assert not any("\x1b" in line for line in lines)
    assert files_of(tmp_path / "many") == files_of(experiment.visual)


def test_the_line_of_an_epoch_is_short_whatever_it_has_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="avpt")
    for metrics in (("loss", "accuracy", "audio_accuracy", "visual_accuracy"), ("loss", "map")):
        lines = display._Lines(100_000, 99_999, {}, metrics, ["audio", "visual"])
        norms = {"audio": 1.234e-05, "visual": 12345.6}
        val = dict.fromkeys(metrics, 0.98765) | {"loss": 123456.789}
        record = {"epoch": 12345, "lr": 0.00012, "train": {"loss": 999.9, "accuracy": 0.123}, "val": val}
        record |= {"gradient_norm": norms, "gradient_factor": {"audio": 0.123456, "visual": 1.0}}
        row = {"epoch": 12345, "seconds": 1e5, "training_seconds": 9e4, "clips": 10**6, "clips_per_second": 1234.5}
        progress = Progress(records=[record], best_epoch=12345)
        lines.epoch_done(progress, row | {"waiting": 0.99})
        lines.clips, lines.loss, lines.step, lines.norms = 100, 5.0, 12345, norms
        lines.clock = Clock(clips=100, trained=3.0, waiting=1.0)
        lines.look()
    assert len(caplog.messages) == 4
    assert all(len(message) < 100 for message in caplog.messages)
    assert "audio 0.988  visual 0.988" in caplog.messages[0]
    assert "mAP 0.988  " in caplog.messages[2]


def test_quiet_says_nothing(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display._Lines, "every", 0.0)
    command = (*finetune(experiment, "visual", experiment.visual_init), "--epochs", "1")
    result = done(*command, "--quiet", "--out", tmp_path / "run")
    assert (result.stdout, result.stderr) == (f"{tmp_path / 'run'}\n", "")


class Noted(display._Board):
    """What would be shown after each step."""

    def __init__(self) -> None:
        super().__init__(4, STEPS, {}, ["loss", "accuracy"], ["encoder"])
        self.seen: list[tuple[int, dict[str, float], dict[str, float]]] = []

    def step_done(self, epoch: int, state: EpochState, clock: Clock, positions: Tensor) -> None:
        super().step_done(epoch, state, clock, positions)
        self._add_up()  # as a look at the terminal does
        record, _ = self.current()
        self.seen.append((epoch * STEPS + state.step, record["train"], record["gradient_norm"]))


@pytest.mark.usefixtures("_signals_raise")
def test_a_resumed_epoch_counts_what_was_trained_since(tmp_path: Path) -> None:
    def stop(epoch: int, state: EpochState) -> None:
        if (epoch, state.step) == (1, 2):
            signal.raise_signal(signal.SIGTERM)

    class Late(InOrder):
        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            for batch in super().epoch(number, start):
                time.sleep(0.02)
                yield batch

    before, after = Noted(), Noted()
    with pytest.raises(Stop):
        trained(tmp_path, train=Late(), watcher=Watchers([RunFiles(tmp_path), before, AfterStep(stop)]))
    trained(tmp_path, train=Late(), watcher=Watchers([RunFiles(tmp_path), after]))
    timings = read_timings(tmp_path)
    assert list(timings) == [1, 2, 3, 4]
    assert [row.get("resumed_at_step") for row in timings.values()] == [None, 2, None, None]
    assert [row["clips"] for row in timings.values()] == [NUM_CLIPS, NUM_CLIPS // STEPS, NUM_CLIPS, NUM_CLIPS]
    for row in timings.values():
        assert row["seconds"] >= row["training_seconds"] >= 0.02  # to the millisecond
        assert row["clips_per_second"] == pytest.approx(row["clips"] / row["training_seconds"], rel=0.03)
    seen = before.seen + after.seen
    assert [step for step, _, _ in seen] == list(range(1, 4 * STEPS + 1))
    for row in rows_of(tmp_path / "metrics.jsonl"):  # an epoch's last step shows what its row says, resumed or not
        _, learnt, norms = seen[row["epoch"] * STEPS - 1]
        assert learnt == pytest.approx(row["train"])
        assert norms == row["gradient_norm"]


@pytest.mark.usefixtures("_signals_raise")
def test_an_epoch_of_which_only_the_evaluation_was_left_has_no_rate(tmp_path: Path) -> None:
    class Interrupting(InOrder):
        def epoch(self, number: int, start: int = 0) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return super().epoch(number, start)

    with pytest.raises(Stop):
        trained(tmp_path, val=Interrupting())
    trained(tmp_path, watcher=RunFiles(tmp_path))
    row = read_timings(tmp_path)[1]
    assert (row["resumed_at_step"], row["clips"], row["clips_per_second"], row["waiting"]) == (STEPS, 0, None, None)


# --- TensorBoard -------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_numbers_and_masked_inputs(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(*masked_fusion(experiment), "--tensorboard", "--out", run)
    assert files_of(run) == files_of(experiment.fused)  # byte for byte, as without
    assert_curves_say_what_the_files_say(run)
    assert {"gradient_norm/audio", "gradient_norm/visual", "val/audio_accuracy"} <= curves(run / "tensorboard").keys()
    shown = images(run / "tensorboard")
    assert len(shown) == 4
    for name, by_epoch in shown.items():
        assert name.startswith("inputs/")
        assert list(by_epoch) == [1, 2]
        for image in by_epoch.values():
            assert image.shape == (32, 48 + MARGIN + 32, 3)  # 48 frames of 32 mel bins beside a frame of 32 x 32
            assert (image == MASKED).all(axis=-1).any()
        assert not np.array_equal(by_epoch[1], by_epoch[2])  # masked anew in each epoch
    # more epochs go on with the same curves
    result = done(*masked_fusion(experiment), "--epochs", "3", "--tensorboard", "--workers", "1", "--out", run)
    assert "epoch 2  loss" not in result.stderr
    assert_curves_say_what_the_files_say(run)
    again = images(run / "tensorboard")
    assert again.keys() == shown.keys()
    for name, by_epoch in again.items():
        assert list(by_epoch) == [1, 2, 3]
        assert all(np.array_equal(by_epoch[epoch], shown[name][epoch]) for epoch in (1, 2))
    # and starting over leaves none behind
    (run / "tensorboard" / "mine.txt").write_text("kept")
    assert "did not write (tensorboard/mine.txt)" in avpt(*masked_fusion(experiment), "--overwrite", "--out", run).error
    (run / "tensorboard" / "mine.txt").unlink()
    done(*masked_fusion(experiment), "--overwrite", "--out", run)
    assert not list((run / "tensorboard").iterdir())
    assert files_of(run) == files_of(experiment.fused)


def test_a_finished_run_is_finished_with_tensorboard_too(experiment: Experiment, tmp_path: Path) -> None:
    run = shutil.copytree(experiment.visual, tmp_path / "run")
    command = (*finetune(experiment, "visual", experiment.visual_init), "--tensorboard", "--out", run)
    assert done(*command).stdout == f"{run}\n"
    assert not (run / "tensorboard").exists()
    done(*command, "--epochs", "3")  # what was trained without it is there too
    assert_curves_say_what_the_files_say(run)
    assert all(list(by_epoch) == [1, 2, 3] for by_epoch in images(run / "tensorboard").values())


def test_a_run_taken_up_again_has_no_point_twice(tmp_path: Path) -> None:
    def record(epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "train": {"loss": epoch / 4}}

    def write(first: int, last: int) -> None:
        """From a checkpoint after epoch `first` to the epoch `last`."""
        time.sleep(1.01 - time.time() % 1)  # event files are told apart, and put in order, by the second
        with draw_curves(
            tmp_path, {}, lambda epoch: {"inputs/a": torch.full((3, 4, 4), epoch, dtype=torch.uint8)}
        ) as watcher:
            progress = Progress(records=[record(epoch) for epoch in range(1, first + 1)])
            watcher.run_begun(progress)
            for epoch in range(first + 1, last + 1):
                progress.records.append(record(epoch))
                watcher.epoch_done(progress, {"epoch": epoch, "seconds": 1.0, "waiting": None})

    for first, last in ((0, 3), (2, 4), (4, 4), (1, 2), (5, 6)):  # the last went on elsewhere in between
        write(first, last)
        for points in (curves(tmp_path)["train/loss"], images(tmp_path)["inputs/a"]):
            assert list(points) == list(range(1, last + 1))
    half = sorted(tmp_path.iterdir())[-1]
    os.truncate(half, half.stat().st_size - 20)  # killed while it wrote
    write(6, 7)
    assert curves(tmp_path)["train/loss"] == {epoch: epoch / 4 for epoch in range(1, 8)}
    assert {step: int(image.max()) for step, image in images(tmp_path)["inputs/a"].items()} == {
        n: n for n in range(1, 8)
    }


def test_without_tensorboard_it_says_how_to_get_it(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = tmp_path / "run"
    for command in (masked_fusion(experiment), finetune(experiment, "visual", experiment.visual_init)):
        result = avpt(*command, "--tensorboard", "--out", run)
        assert result.code == 1
        assert result.stderr == "avpt: --tensorboard needs tensorboard; get it with `pip install 'avpt[tensorboard]'`\n"
    assert not run.exists()


# --- pictures ----------------------------------------------------------------------------------------------------


def test_a_picture_has_time_to_the_right_and_low_frequencies_at_the_bottom() -> None:
    audio = torch.full((1, 5, 3), -9.0)
    audio[0, 4, 0] = 9.0  # the last frame's lowest bin
    audio[0, 0, 2] = 0.0  # masked: the first frame's highest
    frames = torch.full((2, 3, 4, 4), 9.0)
    frames[1, :, 0, 0] = 0.0
    frames[0, 1, 2, 2] = 0.0  # one colour is no mask
    image = picture({"audio": audio, "visual": frames}).permute(1, 2, 0)
    assert image.shape == (4, 5 + MARGIN + 4 + MARGIN + 4, 3)
    assert image[2, 4].tolist() == [255, 255, 255]
    assert image[2, 0].tolist() == [0, 0, 0]
    masked = (image == torch.tensor(MASKED)).all(dim=-1).nonzero().tolist()
    assert masked == [[0, 0], [0, 5 + MARGIN + 4 + MARGIN]]
    assert picture({"visual": frames}).shape == (3, 4, 4 + MARGIN + 4)


def test_pictures_are_of_the_clips_of_which_most_is_masked() -> None:
    audio, visual = torch.tensor([0, 0, 3, 1, 0, 0]), torch.tensor([0, 5, 0, 0, 0, 2])
    patch = {"audio": (1, 1), "visual": (1, 1)}
    assert most_masked(Masking(patch, {"audio": audio, "visual": visual}), 4) == [2, 1, 3, 5]  # type: ignore[arg-type]
    same = torch.tensor([2, 2, 2])
    assert most_masked(Masking(patch, {"audio": same, "visual": same}), 4) == [0, 1, 2]  # type: ignore[arg-type]


def test_a_watcher_may_look_away(tmp_path: Path) -> None:
    seen: list[int] = []
    expected = trained(tmp_path / "looks", watcher=AfterStep(lambda epoch, state: seen.append(epoch)), epochs=1)
    assert seen == [0] * STEPS
    actual = trained(tmp_path / "looks-away", watcher=Watcher(), epochs=1)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())
