"""`avpt encoders`: the architectures that an encoder can have, and what each is like; nothing is downloaded."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

from avpt.errors import AvptError, ConfigError
from avpt.machine.progress import track
from avpt.options import EncodersConfig
from avpt.types import Report, Table

log = logging.getLogger(__name__)

IMAGENET_WORDS = "0.485 0.456 0.406 / 0.229 0.224 0.225"
MOST_BUILT = 60  # architectures; building one to count takes up to a second


def run(config: EncodersConfig) -> Report:
    """List the architectures that fit a pattern; a few of them are built, without memory, and counted."""
    from avpt.models.architectures import list_architectures

    names = list_architectures(config.pattern or "")
    if not names:
        more = "" if find_spec("timm") else " (timm, which has 1,300 more, is not installed: pip install 'avpt[timm]')"
        raise ConfigError(f"no architecture fits {config.pattern!r:.60}; `avpt encoders` lists all of them{more}")
    counted = len(names) <= MOST_BUILT
    with track(len(names), "encoders") as show:
        encoders = []
        for number, name in enumerate(names):
            show(number, 0)
            encoders.append(describe(name, counted=counted))
    if not counted:
        log.info("parameters, width and BatchNorm of up to %d are counted; narrow it with a PATTERN", MOST_BUILT)
    problems = [encoder["problem"] for encoder in encoders if encoder["problem"] is not None]
    table = table_of(encoders, counted=counted)
    return Report({"encoders": encoders}, tables=[table], words="\n".join(problems))


def describe(name: str, *, counted: bool) -> dict[str, Any]:
    """What there is to know of an architecture; where it can't be an encoder, or none of sound, why in `problem`."""
    from avpt.models.architectures import find_architecture
    from avpt.models.encoder import check_sound, count_encoder

    facts = find_architecture(name)
    described: dict[str, Any] = {
        "name": name,
        "library": facts.library,
        "picture_size": list(facts.picture_size),
        "fixed_size": facts.fixed_size,
        "mean": list(facts.colours[0]),
        "std": list(facts.colours[1]),
        "parameters": None,
        "width": None,
        "batchnorm": None,
        "problem": None,
    }
    if counted:
        try:
            described |= count_encoder(name)
            check_sound(name)
        except AvptError as error:
            described["problem"] = str(error)
    return described


def table_of(encoders: list[dict[str, Any]], *, counted: bool) -> Table:
    """One row for each architecture."""
    rows = []
    some_can_not = any(encoder["problem"] is not None for encoder in encoders)
    for encoder in encoders:
        size = "x".join(map(str, encoder["picture_size"])) + (" only" if encoder["fixed_size"] else "")
        counts: tuple[str, ...] = ("-", "-", "-")
        if encoder["parameters"] is not None:
            counts = (f"{encoder['parameters'] / 1e6:.1f} M", str(encoder["width"]), str(encoder["batchnorm"]))
        colours = " / ".join(_numbers(encoder[part]) for part in ("mean", "std"))
        colours = "ImageNet's" if colours == IMAGENET_WORDS else colours
        lacks = "" if encoder["problem"] is None else "sound" if encoder["parameters"] is not None else "anything"
        row = (encoder["name"], *(counts if counted else ()), size, colours, *((lacks,) if some_can_not else ()))
        rows.append(row)
    columns = ("weights", "width", "BatchNorm") if counted else ()
    last = ("can't take",) if some_can_not else ()
    title = f"{len(rows)} architecture{'s' if len(rows) > 1 else ''}; size, and mean / deviation, of the pictures"
    return Table(title, ("name", *columns, "size", "normalised by", *last), rows)


def _numbers(values: list[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else " ".join(f"{value:.3g}" for value in values)
