"""Typer's program and commands, as avpt has them: a command's options are declared once something asks for them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from avpt.errors import OutputError
from avpt.machine.terminal import open_streams, results, say
from avpt.text import printable

if TYPE_CHECKING:  # the list of commands is shown without their options
    from avpt import options
    from avpt.types import Report

BODIES: dict[str, Callable[[Any], Report]] = {}  # what each command does, by its name
EXAMPLES: dict[str, str] = {}  # what the help of each command ends with, by its name


class Program(TyperGroup):
    """The command line as a whole."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program with streams that can be written to throughout."""
        open_streams()
        try:
            with results():  # of help and --version too
                return super().main(*args, **kwargs)
        except OutputError as error:
            say(f"avpt: {error}")
            sys.exit(1)

    def get_params(self, ctx: Any) -> list[Any]:
        """The options of the program itself: flags all of them, so that help shows no type."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            parameter.metavar = ""
        return parameters

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a parse error is shown without control characters that came from the command line."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = printable(_in_plain_words(message))  # type: ignore[attr-defined]
            raise


class Command(TyperCommand):
    """A command of the program."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.params  # declared when they are asked for

    @cached_property
    def config(self) -> type[options.Config]:
        """What the command takes."""
        from avpt.cli.declaring import config_of

        return config_of(BODIES[str(self.name)])

    @cached_property
    def params(self) -> list[Any]:  # type: ignore[override]  # which Typer sets, for __init__ to remove
        """The command's options."""
        return list(self._declared.params)

    def invoke(self, ctx: Any) -> Any:
        """Run the command with what was given."""
        return self._declared.invoke(ctx)

    @cached_property
    def _declared(self) -> Any:
        from avpt.cli.declaring import declare

        def callback(**given: Any) -> None:
            from avpt.cli.running import run

            run(BODIES[str(self.name)], self.config, given)

        return declare(self.config, callback)

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, among the options that all commands have."""
        from avpt.options import COMMON

        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel, option.metavar = COMMON, ""
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show help, and below it an example: as it is, since what rich pads and wraps can't be pasted."""
        super().format_help(ctx, formatter)
        formatter.write(EXAMPLES[str(self.name)])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was typed; an unknown option is reported with the one that is meant."""
        from avpt.options import taken_once, unknown_option

        for name in taken_once(self.config):
            if sum(word.partition("=")[0] == name for word in args) > 1:
                ctx.fail(f"{name} is given twice; a run takes one")
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "possibilities"):  # typer's own class for it is not public
                commands = {
                    name: [option for parameter in one.params for option in parameter.opts if option[:1] == "-"]
                    for name, one in ctx.find_root().command.commands.items()
                }
                known = [*commands[str(self.name)], "--help"]
                unknown: Any = error
                unknown.message = unknown_option(unknown.option_name, known, commands)
                unknown.possibilities = None
            raise


def _in_plain_words(message: str) -> str:
    """A parse error without what the libraries that found it add of themselves."""
    if number := re.match("Input should be a valid (integer|number)", message):
        return f"it must be a {'whole ' if number[1] == 'integer' else ''}number"
    return message.removeprefix("Value error, ")
