"""What is common to the run of every command: its streams and signals, its errors, and its exit code."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer

from avpt import options
from avpt.errors import TOO_LITTLE_MEMORY, AvptError, OtherProcessError, wants_memory
from avpt.machine.processes import place_in_job
from avpt.machine.progress import alive
from avpt.machine.terminal import Formatter, say, show, show_traceback, words_of
from avpt.types import Report


class Terminated(BaseException):
    """SIGTERM, which ends the program with another exit code than Ctrl-C."""


def run(body: Callable[[Any], Report], config_type: type[options.Config], given: Mapping[str, Any]) -> None:
    """Make the config of what was given, run a command, and show what it reports.

    Raises:
        typer.Exit: the command failed, which has been said.
    """
    with_debug = bool(given["debug"])
    resumes = issubclass(config_type, options.OutputConfig) and config_type.resumes
    try:
        is_first = place_in_job()[0] == 0
        _start(quiet=given["quiet"] or not is_first)
        settings = config_type(**given)
        with warnings.catch_warnings():
            if settings.quiet or not is_first:
                warnings.simplefilter("ignore")
            with alive():
                report = body(settings)
            if is_first:
                show(report, json=settings.json, quiet=settings.quiet)
        if report.problem is not None:
            _fail(*words_of(AvptError(report.problem)), code=1, with_debug=False)
    except OtherProcessError as error:  # said by two, one of which may be dead, not by all of a large job
        _fail(*words_of(error), code=1, with_debug=with_debug, speakers=2)
    except AvptError as error:
        _fail(*words_of(error), code=1, with_debug=with_debug)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # full disk, permissions: the system's words
            known = AvptError(f"{error.filename or 'input/output'}: {error.strerror}")
        elif wants_memory(error):
            known = AvptError(TOO_LITTLE_MEMORY)
        else:
            raise
        _fail(*words_of(known), code=1, with_debug=with_debug)
    except KeyboardInterrupt:
        _fail(f"interrupted{_resume_hint() if resumes else ''}", code=130, with_debug=with_debug, speakers=1)
    except Terminated:
        _fail(f"terminated{_resume_hint() if resumes else ''}", code=143, with_debug=with_debug, speakers=1)


def _start(quiet: bool) -> None:
    """Send logs to stderr, and make SIGTERM an exception so that locks and workers are released."""
    atexit.register(gc.freeze)  # else Python's last search for garbage, in all that torch has loaded, takes seconds
    sys.excepthook = show_traceback
    sys.unraisablehook = _raise_again
    signal.signal(signal.SIGTERM, _terminate)
    log = logging.getLogger("avpt")
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from avpt.machine.progress import console

        handler = RichHandler(console=console(), show_time=False, show_path=False, show_level=False)
    handler.setFormatter(Formatter())
    log.handlers = [handler]
    log.setLevel(logging.ERROR if quiet else logging.INFO)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception came up where Python can only ignore it, as in a finaliser."""
    numbers = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
    if lost.exc_type in numbers:
        threading.Timer(0.1, os.kill, (os.getpid(), numbers[lost.exc_type])).start()  # once that is over
    else:
        sys.__unraisablehook__(lost)


def _resume_hint() -> str:
    """The words that name the command which resumes this one."""
    _, size, _, here = place_in_job()
    program = ["python", "-m", "avpt"] if Path(sys.argv[0]).name == "__main__.py" else ["avpt"]
    if here is None:  # started by another launcher, whose command line is unknown
        program = ["...", *program]
    elif size > 1:  # torchrun's options about other machines are unknown here
        program = ["torchrun", *(["..."] if size > here else []), "--nproc-per-node", str(here), "-m", "avpt"]
    arguments = [argument for argument in sys.argv[1:] if argument != "--overwrite"]  # which would start over
    return f"; the same command again goes on from here: {shlex.join([*program, *arguments])}"


def _fail(*lines: str, code: int, with_debug: bool, speakers: int | None = None) -> NoReturn:
    """Exit with a message on stderr, printed by the first `speakers` processes of a job, or by all."""
    if with_debug:
        show_traceback(*sys.exc_info())
    if any(lines) and (speakers is None or place_in_job()[0] < speakers):
        say(f"avpt: {lines[0]}", *lines[1:])
    raise typer.Exit(code)
