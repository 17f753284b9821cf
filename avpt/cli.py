"""The command line: one decorator that turns a config into options, and a table of contents."""

from __future__ import annotations

import atexit
import copy
import dataclasses
import gc
import inspect as signatures
import logging
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from avpt import __version__, options
from avpt.errors import TOO_LITTLE_MEMORY, AvptError, OtherProcessError, OutputError, wants_memory
from avpt.machine.processes import place_in_job
from avpt.machine.progress import alive
from avpt.machine.terminal import Formatter, open_streams, results, say, show, show_traceback, words_of
from avpt.text import printable
from avpt.types import Report


class _Program(TyperGroup):
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


class _Command(TyperCommand):
    """A command of the program."""

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, among the options that all commands have."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel, option.metavar = options.COMMON, ""
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show help, and below it an example: as it is, since what rich pads and wraps can't be pasted."""
        super().format_help(ctx, formatter)
        formatter.write(EXAMPLES[str(self.name)])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was typed; an unknown option is reported with the one that is meant."""
        for name in options.taken_once(CONFIGS[str(self.name)]):
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
                unknown.message = options.unknown_option(unknown.option_name, known, commands)
                unknown.possibilities = None
            raise


def _in_plain_words(message: str) -> str:
    """A parse error without what the libraries that found it add of themselves."""
    if number := re.match("Input should be a valid (integer|number)", message):
        return f"it must be a {'whole ' if number[1] == 'integer' else ''}number"
    return message.removeprefix("Value error, ")


app = typer.Typer(
    name="avpt",
    cls=_Program,
    help="Adapt pre-trained encoders to sound and picture, and train them together.\n\n`avpt guide` is the manual.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CONFIGS: dict[str, type[options.Config]] = {}  # what each command takes, by its name
EXAMPLES: dict[str, str] = {}  # what the help of each command ends with, by its name
ConfigT = TypeVar("ConfigT", bound=options.Config)
METAVARS = {bool: "", int: "N", float: "NUM", Path: "PATH", str: "TEXT"}  # short, so that there is room for the help
MOST_SHOWN = 10_000  # an upper end of a range that is higher only keeps out what nobody means
_CONTINUED = " \\\n       "  # between the lines of a command line


class Terminated(BaseException):
    """SIGTERM, which ends the program with another exit code than Ctrl-C."""


def command(config_type: type[ConfigT], *example: str, page: str) -> Callable[[Callable[[ConfigT], Report]], None]:
    """Register `body` as a Typer command whose options are the fields of `config_type`.

    Args:
        config_type: the options.
        example: a command line that help ends with, as the lines that it is written in.
        page: of `avpt guide`, which has more.
    """

    resumes = issubclass(config_type, options.OutputConfig) and config_type.resumes

    def register(body: Callable[[ConfigT], Report]) -> None:
        def callback(**options: Any) -> None:
            with_debug = bool(options["debug"])
            try:
                is_first = place_in_job()[0] == 0
                _start(quiet=options["quiet"] or not is_first)
                settings = config_type(**options)
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

        hints = options.type_hints(config_type)
        parameters = [
            signatures.Parameter(
                field.name,
                signatures.Parameter.KEYWORD_ONLY,
                default=signatures.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                annotation=Annotated[hints[field.name].__origin__, _as_shown(config_type, field)],
            )
            for field in _in_order(config_type)
        ]
        callback.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        callback.__doc__ = body.__doc__
        name = body.__name__.replace("_", "-")
        CONFIGS[name] = config_type
        EXAMPLES[name] = f"\n Example:\n\n   {_CONTINUED.join(example)}\n\n More: avpt guide {page}\n"
        app.command(name, cls=_Command)(callback)

    return register


def _in_order(config_type: type[options.Config]) -> list[dataclasses.Field[Any]]:
    """The fields in the order of the help text: arguments, then group by group, in each the command's own first."""
    depth = {name: i for i, base in enumerate(config_type.__mro__) for name in signatures.get_annotations(base)}

    def place(field: dataclasses.Field[Any]) -> tuple[int, bool, int]:
        panel = options.parameter(config_type, field.name).rich_help_panel
        group = -1 if panel is None else options.PANELS.index(panel)
        return group, group >= 0 and field.default is not dataclasses.MISSING, depth[field.name]

    return sorted(dataclasses.fields(config_type), key=place)


def _as_shown(config_type: type[options.Config], field: dataclasses.Field[Any]) -> Any:
    """The declared option as help shows it: a short word for its type, choices, range and default as text.

    The config itself refuses a value out of range, with exit code 1.
    """
    name = field.name
    info = copy.copy(options.parameter(config_type, name))
    info.show_choices = False  # a list of them would be broken in the middle of a word
    choices = options.choices(config_type, name)
    if not all(re.search(rf"(?<![\w-]){choice}(?![\w-])", str(info.help)) for choice in choices):
        info.help = f"{info.help} [dim]({', '.join(choices)})[/dim]"
    if text := options.bounds(info, highest=MOST_SHOWN):
        info.help = f"{info.help} [dim]({text})[/dim]"
    info.min = info.max = None
    if isinstance(field.default, tuple):
        typed = " ".join(f"{value:g}" for value in field.default)
        info.help, info.show_default = f"{info.help} [dim]\\[default: {typed}][/dim]", False
    if isinstance(info, OptionInfo) and info.metavar is None:
        kind = options.type_hints(config_type)[name].__origin__
        kinds = {kind, *get_args(kind), *(inner for part in get_args(kind) for inner in get_args(part))}
        info.metavar = "WORD" if choices else next(word for one, word in METAVARS.items() if one in kinds)
    return info


def _start(quiet: bool) -> None:
    """Send logs to stderr, and make SIGTERM an exception so that locks and workers are released."""
    atexit.register(
        gc.freeze
    )  # else Python looks for garbage among all that torch has loaded, seconds after the result
    sys.excepthook = show_traceback
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


def _version(value: bool) -> None:
    if value:
        print(f"avpt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Adapt pre-trained encoders to sound and picture, and train them together.

    A run is five steps, each reading what the one before wrote:
    preprocess, init, finetune-unimodal, score-confidence, fuse-train.
    """


@command(
    options.ManifestConfig,
    "avpt manifest folder CLIPS --val-fraction 0.1",
    "--test-fraction 0.2 --out manifest.csv",
    page="datasets",
)
def manifest(settings: options.ManifestConfig) -> Report:
    """Build the manifest of a known data set from its own lists and media."""
    from avpt.commands.manifest import run

    return run(settings)


@command(options.PreprocessConfig, "avpt preprocess manifest.csv --out store", page="preprocess")
def preprocess(settings: options.PreprocessConfig) -> Report:
    """Decode the clips of a manifest into a store."""
    from avpt.commands.preprocess import run

    return run(settings)


@command(
    options.InitConfig,
    "avpt init --modality audio --bn abri",
    "--out audio-init.safetensors",
    page="init",
)
def init(settings: options.InitConfig) -> Report:
    """Make an encoder from pre-trained weights, with ABRi or a plain BatchNorm variant."""
    from avpt.commands.init import run

    return run(settings)


@command(
    options.FinetuneConfig,
    "avpt finetune-unimodal store --modality audio",
    "--init audio-init.safetensors --out audio",
    "--epochs 20 --milestones 15",
    page="training",
)
def finetune_unimodal(settings: options.FinetuneConfig) -> Report:
    """Adapt one encoder to its own modality and record how sure it is of each clip (stage 1)."""
    from avpt.commands.finetune_unimodal import run

    return run(settings)


@command(
    options.ScoreConfig,
    "avpt score-confidence --audio audio --visual visual",
    "--out confidence.safetensors",
    page="masking",
)
def score_confidence(settings: options.ScoreConfig) -> Report:
    """Turn the training dynamics of both modalities into a confidence per clip."""
    from avpt.commands.score_confidence import run

    return run(settings)


@command(
    options.FuseConfig,
    "avpt fuse-train store --audio audio --visual visual",
    "--confidence confidence.safetensors --out fused",
    page="masking",
)
def fuse_train(settings: options.FuseConfig) -> Report:
    """Train both encoders and a fusion head together on masked input (stage 2)."""
    from avpt.commands.fuse_train import run

    return run(settings)


@command(options.EvaluateConfig, "avpt evaluate fused store --split test --drop audio", page="using")
def evaluate(settings: options.EvaluateConfig) -> Report:
    """Measure a trained model on the splits of a store, also with a modality absent or noised."""
    from avpt.commands.evaluate import run

    return run(settings)


@command(options.PredictConfig, "avpt predict fused holiday.mp4 --segment 10 --top 3", page="using")
def predict(settings: options.PredictConfig) -> Report:
    """Label clip files with a trained model."""
    from avpt.commands.predict import run

    return run(settings)


@command(options.ExportConfig, "avpt export fused --format onnx --out fused.onnx", page="export")
def export(settings: options.ExportConfig) -> Report:
    """Write a trained model for use without avpt: torchvision weights, ONNX or torch.export."""
    from avpt.commands.export import run

    return run(settings)


@command(options.InspectConfig, "avpt inspect audio-init.safetensors --after audio", page="diagnosis")
def inspect(settings: options.InspectConfig) -> Report:
    """Show which BatchNorm channels of an encoder are abnormal or dead, before and after training."""
    from avpt.commands.inspect import run

    return run(settings)


@command(options.ProbeConfig, "avpt probe fused store --modality audio", page="diagnosis")
def probe(settings: options.ProbeConfig) -> Report:
    """Measure by a linear probe what an encoder is worth, and what joint training did to it."""
    from avpt.commands.probe import run

    return run(settings)


@command(options.CompareConfig, "avpt compare fused-seed0 fused-seed1 --csv runs.csv", page="diagnosis")
def compare(settings: options.CompareConfig) -> Report:
    """Put runs side by side: what differs, mean and spread over seeds, and whether a difference is one."""
    from avpt.commands.compare import run

    return run(settings)


@command(options.ReportConfig, "avpt report fused --out report.html", page="diagnosis")
def report(settings: options.ReportConfig) -> Report:
    """Write the whole story of an experiment as one self-contained page."""
    from avpt.commands.report import run

    return run(settings)


@command(options.InfoConfig, "avpt info fused", page="files")
def info(settings: options.InfoConfig) -> Report:
    """Show what is in a store, a run folder or an artifact, and how it came about."""
    from avpt.commands.info import run

    return run(settings)


@command(options.VerifyConfig, "avpt verify store --deep", page="preprocess")
def verify(settings: options.VerifyConfig) -> Report:
    """Check every file, checksum and value of a store, and name the shard and the clip that are damaged."""
    from avpt.commands.verify import run

    return run(settings)


@command(options.EncodersConfig, "avpt encoders 'resnet*d'", page="encoders")
def encoders(settings: options.EncodersConfig) -> Report:
    """List the architectures that encoders can have."""
    from avpt.commands.encoders import run

    return run(settings)


@command(options.GuideConfig, "avpt guide training", page="commands")
def guide(settings: options.GuideConfig) -> Report:
    """Read the manual: the list of its pages, or one of them."""
    from avpt.commands.guide import run

    return run(settings)
