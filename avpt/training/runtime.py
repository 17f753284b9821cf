"""Device, seeds and determinism."""

from __future__ import annotations

import os
from typing import Any

import torch

from avpt.errors import ConfigError
from avpt.training.world import World, this_machine

ALONE = World()
LONGEST_REASON = 120  # characters of torch's message


def start(seed: int, device: str, precision: str = "fp32", world: World = ALONE, *, fast: bool = False) -> torch.device:
    """Fix the global generators, ask for deterministic kernels unless fast ones are wanted, and resolve the device.

    Each of several processes takes a CUDA device of its own. float32 is that in full, but for `tf32`.

    Raises:
        ConfigError: the device does not exist here, can't calculate in that precision, or is used by another process.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    # of some operations torch has no deterministic kernel: `avpt.training.repeatable` sees whether that matters
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    # filling is a debugging aid that costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = fast  # what is measured to be fastest differs from run to run
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # by default convolutions are, whatever they are called
    torch.manual_seed(seed)
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        # a launcher may show each process one device only
        resolved = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    if world.size > 1:
        _check_own_devices(resolved, device, world)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    if precision in ("fp16", "tf32") and resolved.type != "cuda":
        raise ConfigError(f"--precision {precision} needs a CUDA device, not {resolved.type}; use bf16 or fp32")
    return resolved


def _check_own_devices(device: torch.device, asked: str, world: World) -> None:
    """Check that the processes have devices of one type, and no two of them one CUDA device."""
    mine = device.type
    if device.type == "cuda":
        mine += f" {this_machine()} {torch.cuda.get_device_properties(device).uuid}"
    all_of_them = world.gather(mine)
    if len(types := sorted({one.partition(" ")[0] for one in all_of_them})) > 1:
        raise ConfigError(f"--device {asked} is {' here and '.join(types)} there; name one that all processes have")
    if device.type != "cuda" or len(set(all_of_them)) == world.size:
        return
    if asked not in ("auto", "cuda"):
        raise ConfigError(f"--device {asked} is one device for several processes; with --device cuda each has its own")
    raise ConfigError(
        f"{world.size} processes have {len(set(all_of_them))} CUDA device(s) between them; "
        "start one for each device, or give --device cpu"
    )


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (NotImplementedError, ImportError):  # torch's message is a page long
        raise ConfigError(f"--device {name} can't be used here (not in this build of torch); try auto or cpu") from None
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        why = why if len(why) <= LONGEST_REASON else why[:LONGEST_REASON] + " ..."
        raise ConfigError(f"--device {name} can't be used here ({why}); try auto or cpu") from None
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """What the bytes of a result depend on besides options and inputs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
