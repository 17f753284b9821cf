"""Audio-visual pre-training: ABRi and FusT from a folder of clips to a fused classifier.

The program is `avpt`; for notebooks and other people's training loops there are the names below, which `avpt guide
library` shows in use. Everything else in this package is private and may change with any version.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from avpt import masking as masking
    from avpt.library import abri as abri
    from avpt.library import fold as fold
    from avpt.library import inspect as inspect
    from avpt.library import load_model as load_model
    from avpt.library import open_store as open_store

__all__ = ["__version__", "abri", "fold", "inspect", "load_model", "masking", "open_store"]


def __getattr__(name: str) -> Any:
    """A public name, loaded on its first use: torch is not needed before."""
    from importlib import import_module

    if name == "masking":
        return import_module("avpt.masking")
    if name in __all__:
        return getattr(import_module("avpt.library"), name)
    raise AttributeError(f"module 'avpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
