"""Everything that a user can fix is an AvptError: one line that names the thing and the next step."""

from collections.abc import Sequence

from avpt.text import shortened

LONGEST_NAME = 100  # characters of a name in a message
TOO_LITTLE_MEMORY = (
    "there is too little memory for this; free some, raise its limit (ulimit -v), "
    "or make --batch-size or --workers smaller"
)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: all of a few, the first of many with a count of the rest."""
    shown = [shortened(name, LONGEST_NAME) for name in names[:most]]
    return ", ".join(shown) + (f", and {len(names) - most} more" if len(names) > most else "")


def wants_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, which torch, CUDA and the loader each word differently."""
    words = ("allocate memory", "out of memory", "failed to map segment")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


class AvptError(Exception):
    """A problem with a file or a value that the user can fix; shown in one line, with exit code 1.

    Further arguments are lines of their own below the first, such as the bad rows of a manifest.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class ConfigError(AvptError):
    """An option has a value outside its range, or two options do not go together."""


class ManifestError(AvptError):
    """The manifest can't be read, or has bad rows; the message lists them with line numbers."""


class StoreError(AvptError):
    """A store is missing, unfinished, damaged, or not what the command needs."""


class ArtifactError(AvptError):
    """A safetensors file or a run folder is missing, damaged, or of the wrong kind."""


class OutputError(AvptError):
    """An output path can't be used: taken, locked, foreign, or made with other options."""


class OtherProcessError(AvptError):
    """Another process of the same job failed, died or was stopped; it has no message where that one reports more."""


class MediaError(AvptError):
    """A clip can't be decoded; `stage` is the part of the work that failed.

    `stage` is one of "open", "audio", "visual", as `failures.csv` records it.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
