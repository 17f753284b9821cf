"""Imports that are spared what they load for nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

COMPILER = "torch._dynamo.utils"


def announce_torch() -> None:
    """Say that torch is being loaded, which takes seconds, before a command's first work; nothing where it is."""
    if "torch" not in sys.modules:
        log.info("loading torch")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision without torch's compiler, which takes longer to load than all the rest of it.

    One of torchvision's operators takes a function from it, which is loaded once that is called. What has the compiler
    loaded already, or loads it later, is not affected.
    """
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        yield
        return
    standing_in = ModuleType(COMPILER)

    def is_compile_supported(device_type: Any) -> Any:
        from torch._dynamo import utils

        return utils.is_compile_supported(device_type)

    standing_in.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    standing_in.__getattr__ = _load  # type: ignore[method-assign]  # for another torchvision, which takes more
    sys.modules[COMPILER] = standing_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is standing_in:
            del sys.modules[COMPILER]


@contextmanager
def compiler_kept_off_later() -> Iterator[None]:
    """Import timm without torch's compiler, which its decorators would load to keep it off some of its methods.

    It is kept off such a method when that is first called. Where the compiler is loaded already, nothing is changed.
    """
    import torch

    if "torch._dynamo" in sys.modules:
        yield
        return
    compiler: Any = torch.compiler
    disable = compiler.disable

    def disable_later(function: Callable[..., Any]) -> Callable[..., Any]:
        real = cache(lambda: disable(function))

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            return real()(*args, **options)

        return call

    compiler.disable = disable_later
    try:
        yield
    finally:
        compiler.disable = disable


def _load(name: str) -> Any:
    from importlib import import_module

    if name.startswith("__"):  # which the import system itself asks for
        raise AttributeError(name)
    del sys.modules[COMPILER]
    return getattr(import_module(COMPILER), name)
