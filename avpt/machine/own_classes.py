"""Classes of the user's own, named as `package.module:Class`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TypeVar

from avpt.errors import ConfigError

Base = TypeVar("Base")


def import_class(named: str, base: type[Base], option: str, public: str = "") -> type[Base]:
    """The class that `package.module:Class` names; modules in the current directory are found too.

    Args:
        named: the module and the class, between them a colon.
        base: what the class must derive from.
        option: the option that names it, for messages.
        public: what `base` is called where users import it from, for messages.

    Raises:
        ConfigError: there is no such module or class, it can't be imported, or it is of another kind.
    """
    module_name, _, name = named.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # where it stays: the class may import more when it is used
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module itself raises
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(f"{option} {named} can't be imported ({reason}); it is package.module:Class") from error
    found = getattr(module, name, None)
    if found is None:
        own = [
            key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module_name
        ]
        raise ConfigError(f"{option} {named}: {module_name} has no {name}; it has {', '.join(own) or 'no class'}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{option} {named} is not a class that derives from {public or base.__qualname__}")
    return found
