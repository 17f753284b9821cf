"""The options of a balancing method: what its constructor takes, and what of it was given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from avpt.errors import ConfigError, listed
from avpt.training.balancing.method import Balancing

YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_settings(method: type[Balancing], name: str, typed: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a method, out of `NAME=VALUE` and of values that have an option to themselves.

    Args:
        method: its constructor's keyword arguments say what there is, and of which type.
        name: of the method, for messages.
        typed: from `--balance-set`.
        given: from other options, by the method's name for them.

    Raises:
        ConfigError: the method has no such option, or a value is not of its type.
    """
    parameters = inspect.signature(method).parameters
    known = {key: one for key, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    try:
        kinds = get_type_hints(method.__init__)
    except NameError as error:
        raise ConfigError(f"--balance {name}: types of its options can't be read ({error}); import them") from None
    if odd := [key for key in known if _kind(kinds.get(key)) is None or known[key].default is inspect.Parameter.empty]:
        raise ConfigError(
            f"--balance {name}: option {odd[0]} needs a default, and a type: int, float, bool, str or a tuple of these"
        )
    there = listed([f"{key} ({_shown(one.default)})" for key, one in known.items()]) or "none"
    values = dict(given)
    for words in typed:
        key, equals, text = words.partition("=")
        if not equals or not key:
            raise ConfigError(f"--balance-set {words} is not NAME=VALUE; options of {name}: {there}")
        if key in given:
            raise ConfigError(f"--balance-set {key} has an option of its own; use --ogm-... or --balance-... alone")
        if key in values:
            raise ConfigError(f"--balance-set {key} was given before; leave one out")
        if key in parameters and key not in known:
            raise ConfigError(
                f"--balance {name}: {key} is no option, not being behind the * of __init__(joint, *, ...)"
            )
        if key not in known:
            raise ConfigError(f"--balance {name} has no option {key}; it has {there}")
        try:
            values[key] = _read(text, kinds[key])
        except ValueError:
            raise ConfigError(
                f"--balance-set {words}: {key} is {_kind(kinds[key])}, as in {key}={_shown(known[key].default)}"
            ) from None
        low, high = method.ranges.get(key, (-math.inf, math.inf))
        numbers = values[key] if isinstance(values[key], tuple) else (values[key],)
        if any(isinstance(one, float | int) and not (low <= one <= high and math.isfinite(one)) for one in numbers):
            within = f"{low:g} to {high:g}" if math.isfinite(low) else "finite"
            raise ConfigError(f"--balance-set {words}: {key} must be {within}")
        if key == "window" and list(numbers) != sorted(numbers):
            raise ConfigError(f"--balance-set {words}: the first epoch of a window comes first")
    if foreign := [key for key in given if key not in known]:
        raise ConfigError(f"--balance {name} has no option {foreign[0]}; it has {there}")
    return values


def as_recorded(values: Mapping[str, Any], typed: Sequence[str]) -> tuple[str, ...]:
    """The `NAME=VALUE` of a record: as `typed`, but each value spelt in one way, so that 1.50 and 1.5 are the same."""
    names = [words.partition("=")[0] for words in typed]
    return tuple(f"{name}={_spelt(values[name])}" for name in names)


def _spelt(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_spelt, value))
    if isinstance(value, str):
        return value
    return repr(value).removesuffix(".0").lower()


def _read(text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        parts, kinds = text.replace(",", " ").split(), get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(parts)
        if not parts or len(parts) != len(kinds):
            raise ValueError(text)
        return tuple(_read(part, one) for part, one in zip(parts, kinds, strict=True))
    if kind is bool:
        if text.lower() not in YES_NO:
            raise ValueError(text)
        return YES_NO[text.lower()]
    return kind(text)


def _kind(kind: Any) -> str | None:
    """What a type takes, in words; None for one that no text is read as."""
    if get_origin(kind) is tuple and all(one is Ellipsis or _kind(one) for one in get_args(kind)):
        return "several values with commas between them"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(kind)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
