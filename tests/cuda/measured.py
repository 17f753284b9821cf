"""An avpt command in this process, without PyAV, whose peak memory is noted: `measured.py NOTES COMMAND ...`.

With AVPT_AS_SEVERAL=1 one process, started by torchrun, takes the paths of several: groups, exchanged gradients, NCCL.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


class Refusal:
    """Fails each import of PyAV."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "av":
            raise ModuleNotFoundError("PyAV is not to be needed here", name=name)


class Several(int):
    """1, but not equal to it, and greater: as 2 is to who asks whether there are several."""

    def __eq__(self, other: object) -> bool:
        return False

    def __gt__(self, other: int) -> bool:
        return int(self) + 1 > other

    __hash__ = int.__hash__


def note(path: Path) -> None:
    record: dict[str, Any] = {"host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        record["device_mib"] = torch.cuda.max_memory_allocated() >> 20
    path.write_text(json.dumps(record), encoding="utf-8")


def main() -> None:
    sys.meta_path.insert(0, Refusal())
    atexit.register(note, Path(sys.argv.pop(1)))
    if os.environ.get("AVPT_AS_SEVERAL"):
        from avpt.training import runtime, world

        vars(runtime)["_check_own_devices"] = lambda *_: None  # it counts the processes

        def place_in_job() -> tuple[int, int, int, int]:
            return 0, Several(1), 0, 1

        vars(world)["place_in_job"] = place_in_job
    from avpt.cli import app

    app(prog_name="avpt")


if __name__ == "__main__":
    main()
