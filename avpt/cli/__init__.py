"""The command line: a table of its commands, each with an example and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avpt import __version__
from avpt.cli.program import BODIES, EXAMPLES, Command, Program
from avpt.types import Report

if TYPE_CHECKING:  # a command's options are declared when it is asked for them, and the annotation says which
    from avpt import options

app = typer.Typer(
    name="avpt",
    cls=Program,
    help="Adapt pre-trained encoders to sound and picture, and train them together.\n\n`avpt guide` is the manual.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_CONTINUED = " \\\n       "  # between the lines of a command line


def command(*example: str, page: str) -> Callable[[Callable[[Any], Report]], None]:
    """Register a function as a Typer command, whose options are the fields of the config that it takes.

    Args:
        example: a command line that help ends with, as the lines that it is written in.
        page: of `avpt guide`, which has more.
    """

    def register(body: Callable[[Any], Report]) -> None:
        name = body.__name__.replace("_", "-")
        BODIES[name] = body
        EXAMPLES[name] = f"\n Example:\n\n   {_CONTINUED.join(example)}\n\n More: avpt guide {page}\n"
        app.command(name, cls=Command, help=body.__doc__)(lambda: None)

    return register


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
    "avpt manifest folder CLIPS --val-fraction 0.1",
    "--test-fraction 0.2 --out manifest.csv",
    page="datasets",
)
def manifest(settings: options.ManifestConfig) -> Report:
    """Build the manifest of a known data set from its own lists and media."""
    from avpt.commands.manifest import run

    return run(settings)


@command("avpt preprocess manifest.csv --out store", page="preprocess")
def preprocess(settings: options.PreprocessConfig) -> Report:
    """Decode the clips of a manifest into a store."""
    from avpt.commands.preprocess import run

    return run(settings)


@command(
    "avpt init --modality audio --bn abri",
    "--out audio-init.safetensors",
    page="init",
)
def init(settings: options.InitConfig) -> Report:
    """Make an encoder from pre-trained weights, with ABRi or a plain BatchNorm variant."""
    from avpt.commands.init import run

    return run(settings)


@command(
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
    "avpt score-confidence --audio audio --visual visual",
    "--out confidence.safetensors",
    page="masking",
)
def score_confidence(settings: options.ScoreConfig) -> Report:
    """Turn the training dynamics of both modalities into a confidence per clip."""
    from avpt.commands.score_confidence import run

    return run(settings)


@command(
    "avpt fuse-train store --audio audio --visual visual",
    "--confidence confidence.safetensors --out fused",
    page="masking",
)
def fuse_train(settings: options.FuseConfig) -> Report:
    """Train both encoders and a fusion head together on masked input (stage 2)."""
    from avpt.commands.fuse_train import run

    return run(settings)


@command("avpt evaluate fused store --split test --drop audio", page="using")
def evaluate(settings: options.EvaluateConfig) -> Report:
    """Measure a trained model on the splits of a store, also with a modality absent or noised."""
    from avpt.commands.evaluate import run

    return run(settings)


@command("avpt predict fused holiday.mp4 --segment 10 --top 3", page="using")
def predict(settings: options.PredictConfig) -> Report:
    """Label clip files with a trained model."""
    from avpt.commands.predict import run

    return run(settings)


@command("avpt export fused --format onnx --out fused.onnx", page="export")
def export(settings: options.ExportConfig) -> Report:
    """Write a trained model for use without avpt: torchvision weights, ONNX or torch.export."""
    from avpt.commands.export import run

    return run(settings)


@command("avpt inspect audio-init.safetensors --after audio", page="diagnosis")
def inspect(settings: options.InspectConfig) -> Report:
    """Show which BatchNorm channels of an encoder are abnormal or dead, before and after training."""
    from avpt.commands.inspect import run

    return run(settings)


@command("avpt probe fused store --modality audio", page="diagnosis")
def probe(settings: options.ProbeConfig) -> Report:
    """Measure by a linear probe what an encoder is worth, and what joint training did to it."""
    from avpt.commands.probe import run

    return run(settings)


@command("avpt compare fused-seed0 fused-seed1 --csv runs.csv", page="diagnosis")
def compare(settings: options.CompareConfig) -> Report:
    """Put runs side by side: what differs, mean and spread over seeds, and whether a difference is one."""
    from avpt.commands.compare import run

    return run(settings)


@command("avpt report fused --out report.html", page="diagnosis")
def report(settings: options.ReportConfig) -> Report:
    """Write the whole story of an experiment as one self-contained page."""
    from avpt.commands.report import run

    return run(settings)


@command("avpt info fused", page="files")
def info(settings: options.InfoConfig) -> Report:
    """Show what is in a store, a run folder or an artifact, and how it came about."""
    from avpt.commands.info import run

    return run(settings)


@command("avpt verify store --deep", page="preprocess")
def verify(settings: options.VerifyConfig) -> Report:
    """Check every file, checksum and value of a store, and name the shard and the clip that are damaged."""
    from avpt.commands.verify import run

    return run(settings)


@command("avpt encoders 'resnet*d'", page="encoders")
def encoders(settings: options.EncodersConfig) -> Report:
    """List the architectures that encoders can have."""
    from avpt.commands.encoders import run

    return run(settings)


@command("avpt guide training", page="commands")
def guide(settings: options.GuideConfig) -> Report:
    """Read the manual: the list of its pages, or one of them."""
    from avpt.commands.guide import run

    return run(settings)
