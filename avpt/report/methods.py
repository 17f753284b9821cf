"""What was done in a joint run, in the words of its own options: a method needs no entry here to be named."""

from __future__ import annotations

from avpt.report.experiment import Experiment
from avpt.runs.groups import balance_in_words
from avpt.runs.lineage import Node


def describe_method(experiment: Experiment, run: Node) -> str:
    """Describe how a joint run starts, what it masks and how it balances: masked: adaptive, balanced: uniform(gamma=2).

    That it starts from encoders of stage 1 goes without saying.
    """
    mask, rule, balance = (run.option(name) for name in ("mask", "mask_rule", "balance"))
    words = [f"masked: {mask}"] if mask != "none" else []
    words += [f"{rule} rule"] if mask != "none" and rule != "dominant" else []
    words += [f"balanced: {balance_in_words(run.config)}"] if balance != "none" else []
    words += [f"fusion: {run.option('fusion')}"] if run.option("fusion") != "concat" else []
    words += [f"modality dropout {run.option('modality_dropout'):g}"] if run.option("modality_dropout") else []
    start = ["straight from the start"] if experiment.is_straight(run) else []
    return ", ".join([*start, *(words or ["nothing masked"])])


def is_plain(run: Node) -> bool:
    """Whether a joint run is plain joint training, without any method."""
    return run.option("mask") == run.option("balance") == "none" and not run.option("modality_dropout")
