"""What the program prints: results to stdout, the rest to stderr, and text from outside always escaped."""

from __future__ import annotations

import codecs
import io
import json as plain_json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from avpt.errors import AvptError, OutputError
from avpt.text import as_json, printable, shortened
from avpt.types import Folded, Report, Table

LONGEST = 600  # characters of a message; a command to copy may have more
REMEDY = "send it elsewhere and run the same command again, which keeps what is finished"


class _Enduring(io.TextIOWrapper):
    """stderr that swallows its errors, so that the work goes on when nobody reads it any more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _let_go(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _let_go(self)


def open_streams() -> None:
    """Make stdout and stderr writable, whatever the command was started with."""
    for number in range(3):  # else the next file that is opened would get the number, and libraries write to it
        try:
            os.fstat(number)
        except OSError:
            # writing to stdout is to fail, because results would be lost
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        raw = open(2, "wb", closefd=False)  # noqa: SIM115
        sys.stderr = _Enduring(raw, encoding=encoding, line_buffering=True)
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):  # PYTHONUNBUFFERED loses partial writes
        buffer = io.BufferedWriter(sys.stdout.buffer)
        sys.stdout = io.TextIOWrapper(buffer, encoding=sys.stdout.encoding, line_buffering=True)
    codecs.register_error("escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escape")


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Characters that an encoding lacks, as `\u00e9`, which JSON reads back."""
    assert isinstance(error, UnicodeEncodeError)
    return plain_json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _let_go(stream: io.TextIOWrapper) -> None:
    """Redirect a stream to nowhere: what is left in its buffer would fail again when the process ends."""
    with suppress(OSError):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


@contextmanager
def results() -> Iterator[None]:
    """Run a block that writes to stdout.

    Raises:
        OutputError: stdout is closed, full or read by nobody.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno is None:
            raise
        if isinstance(sys.stdout, io.TextIOWrapper):
            _let_go(sys.stdout)
        raise OutputError(f"stdout can't be written ({error.strerror}); {REMEDY}") from error


def say(*lines: str) -> None:
    """Print a message on stderr: one line, and the lines that belong to it below."""
    print("\n  ".join(map(printable, lines)), file=sys.stderr)


def words_of(error: AvptError) -> list[str]:
    """The lines of an error; of a line that is too long both ends remain: the thing and the next step."""
    return [shortened(printable(str(line)), LONGEST) for line in error.args]


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error on stderr, escaped; a sys.excepthook."""
    text = "".join(traceback.format_exception(kind, error, trace))
    cause: BaseException | None = error
    while cause is not None:
        text = text.replace(str(cause), printable(str(cause))) if str(cause) else text
        cause = cause.__cause__ or cause.__context__
    print(printable(text, keep="\n"), end="", file=sys.stderr)


class Formatter(logging.Formatter):
    """Formats a log message as one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with a word before it where it is a warning."""
        message = shortened(printable(record.getMessage()), LONGEST)
        return f"warning: {message}" if record.levelno == logging.WARNING else message


def show(report: Report, *, json: bool, quiet: bool) -> None:
    """Print results to stdout: the record, or the paths, or the tables where they are the result."""
    with results():
        if json:
            line = as_json(report.summary)  # in UTF-8 or ASCII, as readers of JSON expect
            print(line if sys.stdout.encoding == "utf-8" else line.encode("ascii", "escape").decode())
            return
        if not (quiet and report.outputs):
            for table in report.tables:
                _print_table(table, to_stderr=bool(report.outputs))
            if report.text:
                text = "\r\n".join(printable(part, keep="\n") for part in report.text.split("\r\n"))  # as in CSV
                print(text, end="", file=sys.stderr if report.outputs else sys.stdout)
            if report.page:
                _print_page(report.page)
        for path in report.outputs:
            _print_path(path)


def _print_page(markdown: str) -> None:
    """Print a page of our own: rendered and paged on a terminal, unchanged elsewhere."""
    if not sys.stdout.isatty():
        print(markdown, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-FRX")  # as git does: colours pass, what fits on the screen stays
    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(markdown, code_theme="ansi_dark", hyperlinks=False))


def _print_path(path: Path) -> None:
    """Print a path: on a terminal readable, elsewhere byte for byte, for the next command."""
    if sys.stdout.isatty():
        print(printable(str(path)))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")


def _print_table(table: Table, to_stderr: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console(stderr=to_stderr, highlight=False)

    def shown(cell: str, **style: Any) -> Text:
        text = printable(cell, keep="\n" if isinstance(cell, Folded) else "")
        return Text(text.encode(console.encoding, "escape").decode(console.encoding), **style)

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(table.columns):
        grid.add_column(shown(column), justify="left" if i < table.left else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(shown, row))
    with console.capture() as captured:  # rich itself would end the process where nobody reads
        console.print(shown(table.title, style="bold"))  # a title of the grid would be folded to its width
        console.print(grid)
    print(captured.get(), end="", file=console.file)
