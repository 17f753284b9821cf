"""The figures of `avpt inspect`: the names of their files, with the bytes of each."""

from __future__ import annotations

import logging
from typing import Any

from avpt.commands._inspect_activations import Measurements
from avpt.commands._inspect_parameters import Side
from avpt.options import InspectConfig

log = logging.getLogger(__name__)


def draw_parameters(config: InspectConfig, before: Side, after: Side | None) -> dict[str, bytes]:
    """Draw the figures that need no clips."""
    from avpt.figures import channels, style

    layers = list(before.own)
    pairs = {"before" if after else "": before.own}
    if after is not None:
        pairs["after, ABRi blended" if after.alpha else "after"] = after.acting
    elif before.alpha:
        pairs = {"pre-trained branch": before.own, "ABRi blended": before.acting}

    def shares(limits: list[float]) -> dict[str, list[list[float]]]:
        return {
            name: [[float(pair.below(limit).float().mean()) for pair in own.values()] for limit in limits]
            for name, own in pairs.items()
        }

    one, all_of = [config.abnormal_threshold], config.thresholds
    gammas = {name: [float(v) for pair in own.values() for v in pair.gamma.abs()] for name, own in pairs.items()}
    figures = {
        "abnormal": channels.draw_abnormal(layers, all_of, shares(all_of)),
        f"abnormal-{one[0]:g}": channels.draw_abnormal(layers, one, shares(one), row_height=1.7),
        "gamma": channels.draw_gamma(gammas),
    }
    for name, side in _named(before, after).items():
        if side.alpha:
            alphas = [alpha.numpy() for alpha in side.alpha.values()]
            figures[f"alpha-{name}" if name else "alpha"] = channels.draw_alpha(layers, alphas)
    return style.render_all(figures)


def draw_first_layer(
    config: InspectConfig, before: Side, after: Side | None, measured: Measurements | None
) -> dict[str, bytes]:
    """Draw the first layer's filters and, where clips were fed, its feature maps of one clip."""
    from avpt.figures import channels, style
    from avpt.models.encoder import first_convolutions

    sides, stem, limit = _named(before, after), next(iter(before.own)), config.abnormal_threshold
    words = {"dead": f"dead: {f'at most {config.zero:g}' if config.zero else 'zero'} nearly everywhere"}
    words["abnormal"] = f"abnormal: max(|γ|, |β|) < {limit:g}"
    if measured is not None:
        words["abnormal"] += ", but not dead" if config.zero else ", but not exactly zero"
    abnormal = {name: side.acting[stem].below(limit).numpy() for name, side in sides.items()}
    dead: dict[str, Any] = dict.fromkeys(sides)
    figures = {}
    if measured is not None and any(activity.maps is None for activity in measured.sides):
        log.warning("feature maps are left out: no activation with a zero half follows %s", stem)
    elif measured is not None:
        dead = {name: layers[stem].numpy() for name, layers in zip(sides, measured.dead, strict=True)}
        maps = {}
        for name, activity in zip(sides, measured.sides, strict=True):
            assert activity.maps is not None
            maps[name] = (activity.maps.numpy(), dead[name], abnormal[name])
        figures["feature-maps"] = channels.draw_feature_maps(measured.picture.numpy(), maps, measured.example, words)
    elif config.store is None:
        log.warning("feature maps are left out: they are measured on clips, which --store names")
    convolution = first_convolutions(before.loaded.spec)[0]
    weights = {name: side.loaded.encoder.get_parameter(f"{convolution}.weight") for name, side in sides.items()}
    if any(len(weights[name]) != len(abnormal[name]) or weights[name].shape[1] not in (1, 3) for name in sides):
        log.warning("the filters of %s are left out: no BatchNorm follows them", convolution)
    else:
        filters = {name: (weights[name].detach().cpu().numpy(), dead[name], abnormal[name]) for name in sides}
        figures["filters"] = channels.draw_filters(filters, words)
    return style.render_all(figures)


def _named(before: Side, after: Side | None) -> dict[str, Side]:
    return {"": before} if after is None else {"before": before, "after": after}
