"""Imports that are spared what they load for nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision or timm without torch's compiler, which takes longer to load than all the rest of them.

    One of torchvision's operators takes a function from it, which is loaded once that is called. timm keeps it out of
    some functions of its own, which is done when they are called. What has the compiler loaded already, or loads it
    later, is not affected.
    """
    if COMPILER in sys.modules:
        yield
        return
    import torch.compiler

    standing_in = ModuleType(COMPILER)

    def is_compile_supported(device_type: Any) -> Any:
        from torch._dynamo import utils

        return utils.is_compile_supported(device_type)

    standing_in.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    standing_in.__getattr__ = _load  # type: ignore[method-assign]  # for another torchvision, which takes more
    disable = torch.compiler.disable
    if "torchvision" not in sys.modules:
        sys.modules[COMPILER] = standing_in
    torch.compiler.disable = _disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(COMPILER) is standing_in:
            del sys.modules[COMPILER]


def _disable_later(function: Callable[..., Any] | None = None, recursive: bool = True, *, reason: Any = None) -> Any:
    """What torch.compiler.disable does to a function, without loading the compiler before there is one to keep out."""
    if function is None:
        return partial(_disable_later, recursive=recursive, reason=reason)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if COMPILER not in sys.modules:
            return function(*arguments, **options)
        import torch

        return torch.compiler.disable(function, recursive, reason=reason)(*arguments, **options)  # type: ignore[no-untyped-call]

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # the compiler does not look inside
    return call


def _load(name: str) -> Any:
    from importlib import import_module

    if name.startswith("__"):  # which the import system itself asks for
        raise AttributeError(name)
    del sys.modules[COMPILER]
    return getattr(import_module(COMPILER), name)
