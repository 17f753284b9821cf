"""The record of `avpt inspect` as tables that fit 80 columns, with bars made of characters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avpt.text import bar, format_count
from avpt.types import Table

PER_TABLE = 4  # thresholds that fit into 80 columns
BAR = 4  # characters, beside a number in a cell
MISSING = "-"


def channel_tables(record: dict[str, Any]) -> list[Table]:
    """Tables of abnormal channels at every threshold, of dead ones where they were measured, and of ABRi's blend."""
    tables = [threshold_table(record, start) for start in range(0, len(record["thresholds"]), PER_TABLE)]
    if record["after"] is not None and any(layer["abnormal"] for layer in record["layers"]):
        tables.append(bar_table(record))
    if record["clips"] is not None:
        tables.append(dead_table(record))
    tables += [blend_table(record, side) for side in (record, record["after"]) if side and side["norm"] != "batchnorm"]
    return tables


def threshold_table(record: dict[str, Any], start: int) -> Table:
    """Shares of abnormal channels, with bars; of two encoders the shares before and after, side by side."""
    after, thresholds = record["after"], record["thresholds"][start : start + PER_TABLE]
    numbers = range(start, start + len(thresholds))
    title = f"{record['encoder']}: % of channels with max(|gamma|, |beta|) below"
    if after is not None:
        blended = " (ABRi blended)" if after["norm"] != "batchnorm" else ""
        title += f", before / after in {after['encoder']}{blended}"

    def cell(layer: dict[str, Any], later: dict[str, Any] | None, number: int) -> str:
        share = layer["below"][number] / layer["channels"]
        if later is None:
            return f"{percent(share)} {bar(share, BAR)}"
        return f"{percent(share)} / {percent(_effective(later, 'below')[number] / layer['channels'])}"

    rows = []
    for layer, later in _pair_layers(record):
        rows.append((layer["name"], str(layer["channels"]), *(cell(layer, later, number) for number in numbers)))
    return Table(title, ("layer", "of", *(f"{threshold:g}" for threshold in thresholds)), rows)


def bar_table(record: dict[str, Any]) -> Table:
    """The paper's Figure 2a (arXiv 2302.03533) in characters: abnormal shares before and after."""
    rows = []
    for layer, later in _pair_layers(record):
        assert later is not None
        counts = (layer["abnormal"], _effective(later, "abnormal"))
        shares = [count / layer["channels"] for count in counts]
        rows.append((layer["name"], *(f"{percent(share)} {bar(share, 4 * BAR)}" for share in shares)))
    return Table(f"% of channels below {record['abnormal_threshold']:g}", ("layer", "before", "after"), rows)


def dead_table(record: dict[str, Any]) -> Table:
    """Numbers of dead channels with bars, beside the abnormal ones or the changes."""
    zero = f"at most {record['zero']:g}" if record["zero"] else "zero"
    clips = format_count(record["clips"], "clip")
    title = f"dead channels: {zero} at {record['dead_at']:.1%} or more of the positions of {clips}, "
    title += f"{record['modality']} input; layers that no ReLU follows are not measured nor in the sums"
    columns = ("layer", "of", *(("dead", "after", "awoken", "died") if record["after"] else ("abnormal", "dead")))
    rows = []
    for layer, later in _pair_layers(record, "dead"):
        cells = [layer["name"], str(layer["channels"]), *([] if later else [str(_effective(layer, "abnormal"))])]
        for side in (layer,) if later is None else (layer, later):
            dead = side["dead"]
            cells.append(MISSING if dead is None else f"{dead} {bar(dead / layer['channels'], BAR)}")
        changes = [str(layer.get(change, MISSING)) for change in ("awoken", "died")]
        rows.append((*cells, *(changes if later else ())))
    return Table(title, columns, rows)


def describe_prediction(record: dict[str, Any]) -> str:
    """Say how well abnormal parameters predict dead channels."""
    lines = []
    below = f"abnormal (below {record['abnormal_threshold']:g})"
    for side in (record, record["after"]):
        if record["clips"] is None or side is None:
            continue
        scores = [f"{what} {side[what]:.3f}" for what in ("precision", "recall") if side[what] is not None]
        none = [word for word, what in ((below, "precision"), ("dead", "recall")) if side[what] is None]
        if not none:
            lines.append(f"{below} predicts dead with {', '.join(scores)} in {side['encoder']}")
        else:  # precision is a share of the abnormal channels, recall one of the dead
            lines.append(f"no measured channel is {' or '.join(none)} in {side['encoder']}: nothing to predict")
    return "\n".join(lines)


def describe_blends(record: dict[str, Any]) -> str:
    """Say what blending did in ABRi and in encoders of `init --bn blend`, and what training did then."""
    lines = []
    for side in (record, record["after"]):
        if side is not None and side["blend"] is not None:
            how = "--bn blend" if side["norm"] == "batchnorm" else "ABRi"
            lines.append(f"{side['encoder']} ({how}): {describe_blend(side['blend'])}")
    if record["training"] is not None:
        below = sum(_effective(layer, "abnormal") for layer in record["after"]["layers"])
        lines.append(describe_training(record["training"], below))
        if record["awoken"] is not None:
            lines[-1] += f"; of the dead channels {record['awoken']} came alive, and {record['died']} others died"
    return "\n".join(lines)


def describe_blend(change: dict[str, Any]) -> str:
    """Say how far a blend moved gamma and beta, and how many of the abnormal channels it lifted."""
    return f"blending moved {_moves(change)} from the pre-trained ones; {_lift(change)}"


def describe_training(change: dict[str, Any], below: int) -> str:
    """Say how far training then moved what the blend had made, and how many channels are abnormal after it."""
    moved = f"training moved the blended {_moves(change)}"
    return f"{moved}; {format_count(below, 'channel')} below {change['threshold']:g} after it"


def _moves(change: dict[str, Any]) -> str:
    gamma, beta = change["gamma_moved"], change["beta_moved"]
    return f"gamma by {gamma:.2g} and beta by {beta:.2g} (root mean square over the channels)"


def _lift(change: dict[str, Any]) -> str:
    if not change["abnormal"]:
        return f"no channel was below {change['threshold']:g} before"
    return f"{change['lifted']} of {change['abnormal']} channels below {change['threshold']:g} were lifted above it"


def blend_table(record: dict[str, Any], side: dict[str, Any]) -> Table:
    """What ABRi's blend does to the pre-trained branch, by layer, and the channels that came back to life."""
    title = f"ABRi in {side['encoder']}: how far the blend is from the pre-trained branch (root mean square), and "
    title += f"channels below {record['abnormal_threshold']:g}"
    revived = {layer["name"]: layer.get("revived") for layer in record["layers"]}
    shown = record["after"] is None or side is record["after"]  # channels revive in the later encoder, if there is one
    rows = []
    for layer in side["layers"]:
        moves = [f"{layer[name]:.3g}" for name in ("gamma_moved", "beta_moved")]
        counts = [str(layer["abnormal"]), str(layer["blended_abnormal"]), *([str(revived[layer["name"]])] * shown)]
        rows.append((layer["name"], *moves, *counts))
    return Table(title, ("layer", "gamma", "beta", "abnormal", "blended", *(["revived"] * shown)), rows)


def _pair_layers(record: dict[str, Any], known: str = "name") -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Pair each layer before and after; the last pair is the sum of the layers in which `known` was measured."""
    sides = [side["layers"] for side in (record, record["after"]) if side is not None]
    totals = [_sum_layers([layer for layer in side if layer[known] is not None]) for side in sides]
    for layers in zip(*([*side, total] for side, total in zip(sides, totals, strict=True)), strict=True):
        yield layers[0], (layers[1] if len(layers) > 1 else None)


def _sum_layers(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum these layers into one row."""
    total: dict[str, Any] = {"name": "all"}
    for what in ("channels", "abnormal", "blended_abnormal", "dead", "awoken", "died"):
        counts = [layer[what] for layer in layers if layer.get(what) is not None]
        total |= {what: sum(counts)} if counts else {}
    for what in ("below", "blended_below"):
        if what in layers[0]:
            total[what] = [sum(counts) for counts in zip(*(layer[what] for layer in layers), strict=True)]
    return total


def _effective(layer: dict[str, Any], what: str) -> Any:
    """A count for the parameters that the layer applies: in ABRi the blended ones."""
    return layer.get(f"blended_{what}", layer[what])


def percent(share: float) -> str:
    """A share of 1 as a short percentage: never 0 for more than none, and never 100 for less than all."""
    if 0 < share < 0.001:
        return "<0.1"
    if 0.995 <= share < 1:
        return ">99"
    return f"{share:.1%}"[:-1] if 0 < share < 0.0995 else f"{share:.0%}"[:-1]
