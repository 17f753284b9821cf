"""Audio-visual pre-training: ABRi and FusT from a folder of clips to a fused classifier.

The program is `avpt`; for notebooks and other people's training loops there are the names in `__all__`, which `avpt
guide library` shows in use. Everything else in this package is private and may change with any version.
"""

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "abri",
    "balancing",
    "errors",
    "fold",
    "inspect",
    "load_model",
    "masking",
    "open_store",
]  # typed in __init__.pyi


def __getattr__(name: str) -> object:
    """A public name, loaded on its first use: neither torch nor anything else is needed before."""
    from importlib import import_module

    if name in ("balancing", "errors", "masking"):
        return import_module(f"avpt.{name}")
    if name in __all__:
        return getattr(import_module("avpt.library"), name)
    raise AttributeError(f"module 'avpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
