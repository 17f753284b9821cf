"""What the program prints: results to stdout, the rest to stderr, and text from outside always escaped."""

from __future__ import annotations

import codecs
import errno
import io
import json as plain_json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from types import TracebackType
from typing import Any, Literal

from avpt.errors import AvptError, OutputError
from avpt.text import as_json, printable, shortened
from avpt.types import FilePath, Folded, Phrase, Report, Table

LONGEST = 600  # characters of a message; a command to copy may have more
READER_GONE = 128 + 13  # what a shell reports of a program that SIGPIPE ended
STANDARD_WIDTH = 80  # columns, where there is no terminal
SHORTEST_PATH = 16  # characters that are left of a path in a table, at least
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
    """Run a block that writes to stdout. Where its reader has gone, as in `avpt ... | head`, the program ends quietly.

    Raises:
        OutputError: stdout is closed or full.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich has ended the program in its own way
            raise SystemExit(READER_GONE) from None
        raise
    except OSError as error:
        if error.errno is None:
            raise
        if isinstance(sys.stdout, io.TextIOWrapper):
            _let_go(sys.stdout)
        if error.errno == errno.EPIPE:
            raise SystemExit(READER_GONE) from None
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
            for line in report.words.splitlines():
                print(folded(line), file=sys.stderr if report.outputs else sys.stdout)
            if report.page:
                _print_page(report.page)
        for path in report.outputs:
            _print_path(path)


def folded(line: str) -> str:
    """A sentence as lines that fit the terminal; a word that is longer than one, such as a path, is not broken."""
    width = min(get_terminal_size((STANDARD_WIDTH, 24)).columns, STANDARD_WIDTH)
    return fill(printable(line), width, break_long_words=False, break_on_hyphens=False)


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

    with console.capture() as captured:  # rich itself would end the process where nobody reads
        console.print(shown(table.title, style="bold"))  # a title of the grid would be folded to its width
        for part in split_columns(table, console.width):
            widths = column_widths(part, console.width)
            grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
            for i, column in enumerate(part.columns):
                justify: Literal["left", "right"] = "left" if i < part.left else "right"
                grid.add_column(shown(column), justify=justify, overflow="fold", width=widths[i])
            for row in part.rows:
                grid.add_row(*(shown(_fitted(cell, width)) for cell, width in zip(row, widths, strict=True)))
            console.print(grid)
    print(captured.get(), end="", file=console.file)


def split_columns(table: Table, width: int) -> list[Table]:
    """A table as one or more, so that no word has to be broken: what does not fit follows, beside the first column."""
    cells = [table.columns, *table.rows]
    needed = [max(_narrowest(row[i]) for row in cells) for i in range(len(table.columns))]
    groups: list[list[int]] = [[0]]
    for i in range(1, len(needed)):
        if len(groups[-1]) > 1 and _drawn_width([needed[j] for j in [*groups[-1], i]]) > width:
            groups.append([0])
        groups[-1].append(i)
    if len(groups) == 1:
        return [table]
    return [
        Table(
            table.title,
            tuple(table.columns[i] for i in group),
            [tuple(row[i] for i in group) for row in table.rows],
            sum(i < table.left for i in group),
        )
        for group in groups
    ]


def column_widths(table: Table, width: int) -> list[int]:
    """The width of each column, where the widest gives way first; a word is broken only where nothing else is left."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    widths = [max(map(_widest, column)) for column in columns]
    phrases = [max(map(_narrowest, column)) for column in columns]
    words = [max(map(_narrowest, map(_in_words, column))) for column in columns]
    for least in (phrases, words, [1] * len(columns)):
        while excess := max(0, _drawn_width(widths) - width):
            yielding = [i for i in range(len(widths)) if widths[i] > least[i]]
            if not yielding:
                break
            first, *others = sorted(yielding, key=lambda i: -widths[i])
            step = widths[first] - max([least[first], *(widths[i] for i in others)])
            widths[first] -= max(1, min(excess, step))
    return widths


def _in_words(cell: str) -> str:
    return str(cell) if isinstance(cell, Phrase) else cell


def _fitted(cell: str, width: int) -> str:
    """A cell; of a path that is wider only the end, where files differ."""
    shown = printable(cell)
    if not isinstance(cell, FilePath) or _room(shown) <= width:
        return cell
    while shown and _room(shown) >= width:
        shown = shown[1:]
    return f"…{shown}"


def _narrowest(cell: str) -> int:
    """The width that a cell can be brought to without breaking a word, or a phrase."""
    if isinstance(cell, FilePath):
        return min(_room(printable(cell)), SHORTEST_PATH)
    if isinstance(cell, Phrase):
        return _room(printable(cell))
    return max(map(_room, printable(cell, keep="\n").split()), default=0)


def _widest(cell: str) -> int:
    return max(map(_room, printable(cell, keep="\n" if isinstance(cell, Folded) else "").split("\n")))


def _room(text: str) -> int:
    from rich.cells import cell_len  # some characters take two places

    return cell_len(text)


def _drawn_width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) - 1  # with the space around each column
