"""Everything that is asked of a CUDA device, step after step; `tests/cuda.sh` starts it and says how."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MADE = ROOT / ".cuda"
COMPARED = ("model.safetensors", "last.safetensors", "dynamics.safetensors", "metrics.jsonl", "predictions.safetensors")
LONGEST_WORDS = 600  # characters of an error that are kept


@dataclass(frozen=True)
class Sizes:
    """How much is trained, on what."""

    source: str  # the store that is made larger
    large: int  # clips that speed is measured on
    small: int  # clips that bytes are compared on
    batch: int
    epochs: int  # of a run whose speed is measured; the first is not counted
    steps: int  # that a bare loop takes
    image: int
    frames: int  # pictures of a clip
    spectrogram: tuple[int, int]
    workers: tuple[int, ...]
    abri: tuple[int, int]  # side of the pictures, clips


FULL = Sizes("store", 1024, 96, 64, 3, 20, 224, 3, (1024, 128), (1, 4, 8, 16), (224, 64))
TINY = Sizes("tiny", 32, 16, 8, 2, 2, 32, 1, (64, 64), (1, 2), (32, 2))


@dataclass
class Checks:
    """The results so far, written anew with each, and how steps are run."""

    out: Path
    device: str
    sizes: Sizes
    until: float  # by the monotonic clock
    limit: float = 120  # seconds that a step may take
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """What the steps make."""
        return self.out / "work"

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def keep(self, name: str, value: dict[str, Any]) -> None:
        """Write a result down, and print it."""
        self.results[name] = self.results.get(name, {}) | value
        beside = self.out / ".results.tmp"
        beside.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        beside.replace(self.out / "results.json")
        print(f"[{self.until - time.monotonic():4.0f} s left] {name}: {json.dumps(value)[:400]}", flush=True)

    def begin(self, name: str, *command: object, several: bool = False) -> subprocess.Popen[str]:
        """Start avpt, or another script with its interpreter's arguments; its words go to a file."""
        words = [str(word) for word in command]
        environment = os.environ | {"AVPT_AS_SEVERAL": "1" if several else ""}
        if not self.on_cuda:
            environment["OMP_NUM_THREADS"] = "1"
        log = (self.work / f"{slug(name)}.log").open("w", encoding="utf-8")
        return subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment, start_new_session=True
        )

    def avpt(self, name: str, *command: object) -> list[object]:
        """The words that run an avpt command and note its memory."""
        return [sys.executable, HERE / "measured.py", self.work / f"{slug(name)}.json", *command]

    def wait(self, name: str, process: subprocess.Popen[str], began: float) -> bool:
        """Wait for a step to end, and keep what it says."""
        try:
            code = process.wait(timeout=max(1.0, min(self.limit, self.until - time.monotonic())))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = 124
        record: dict[str, Any] = {"code": code, "seconds": round(time.monotonic() - began, 1)}
        notes = self.work / f"{slug(name)}.json"
        if notes.exists():
            record |= json.loads(notes.read_text(encoding="utf-8"))
        if code:
            record["said"] = self.said(name)[-LONGEST_WORDS:]
        self.keep(name, record)
        return code == 0

    def said(self, name: str) -> str:
        """What a step said; nothing where it was skipped."""
        log = self.work / f"{slug(name)}.log"
        return log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""

    def run(self, name: str, *command: object, several: bool = False) -> bool:
        """Run one step to its end, if there is time for it."""
        return self.run_beside({name: list(command)}, several=several)

    def run_beside(self, commands: dict[str, list[object]], several: bool = False) -> bool:
        """Run steps side by side, if there is time for them."""
        if time.monotonic() > self.until - 5:
            for name in commands:
                self.keep(name, {"skipped": "no time left"})
            return False
        began = time.monotonic()
        processes = {name: self.begin(name, *command, several=several) for name, command in commands.items()}
        fine = [self.wait(name, process, began) for name, process in processes.items()]
        return all(fine)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines that a step printed."""
        return [json.loads(line) for line in self.said(name).splitlines() if line.startswith("{")]

    def options(self, batch: int, workers: int = 2) -> list[object]:
        sizes = self.sizes
        words = f"--lr 0.01 --schedule constant --quiet --image-size {sizes.image} --num-frames {sizes.frames}"
        return [*words.split(), "--device", self.device, "--batch-size", batch, "--workers", workers]

    def tune(self, store: Path, modality: str, out: str, *more: object) -> list[object]:
        init = self.work / f"{modality}-init.safetensors"
        command = ["finetune-unimodal", store, "--modality", modality, "--init", init, "--out", self.work / out, *more]
        return self.avpt(out, *command)

    def fuse(self, store: Path, out: str, *more: object) -> list[object]:
        encoders = ["--audio", self.work / "audio", "--visual", self.work / "visual", "--mask", "none"]
        return self.avpt(out, "fuse-train", store, *encoders, "--out", self.work / out, *more)


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def digests(folder: Path) -> dict[str, str]:
    """A short checksum of each artifact of a run."""
    paths = [folder / name for name in COMPARED if (folder / name).exists()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in paths}


def same(first: Path, second: Path) -> dict[str, bool]:
    """Whether two runs' artifacts have the same bytes."""
    ours, theirs = digests(first), digests(second)
    return {name: ours.get(name) == theirs.get(name) for name in sorted(ours | theirs)}


def prepare(checks: Checks) -> tuple[Path, Path]:
    """What is there, the stores, and the encoders that training starts from."""
    code = """
import json, os, torch, torchvision, torchaudio
there = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__, "cores": os.cpu_count(),
    "torchaudio": torchaudio.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    "device": torch.cuda.get_device_name() if there else "cpu",
    "memory_mib": torch.cuda.get_device_properties(0).total_memory >> 20 if there else None}))
"""
    if checks.run("environment", sys.executable, "-c", code):
        checks.keep("environment", checks.lines("environment")[-1])
    began = time.monotonic()
    from cuda_store import enlarge

    source, sizes = MADE / checks.sizes.source, checks.sizes
    small = enlarge(source, checks.work / "small", {"train": sizes.small, "val": 16, "test": 16})
    large = enlarge(source, checks.work / "large", {"train": sizes.large, "val": 16, "test": 16})
    checks.keep("stores", {"code": 0, "seconds": round(time.monotonic() - began, 1)})
    visual, audio = (checks.work / f"{modality}-init.safetensors" for modality in ("visual", "audio"))
    init = ["init", "--quiet", "--modality"]
    checks.run("init", *checks.avpt("init", *init, "visual", "--weights", "random", "--out", visual))
    abri = [*init, "audio", "--weights", visual, "--bn", "abri", "--out", audio]
    checks.run("init, ABRi", *checks.avpt("init, ABRi", *abri))
    return small, large


def stage1(checks: Checks, small: Path) -> None:
    """Both stage-1 runs, one of them twice."""
    options = [*checks.options(16), "--epochs", 2]
    runs = {out: out.partition("-")[0] for out in ("audio", "visual", "visual-again")}
    checks.run_beside({out: checks.tune(small, modality, out, *options) for out, modality in runs.items()})
    checks.keep("stage 1, same bytes", same(checks.work / "visual", checks.work / "visual-again"))


def bytes_of(checks: Checks, small: Path, precision: str) -> None:
    """Two runs side by side, and one that is killed and goes on."""
    options = [*checks.options(16), "--epochs", 3, "--precision", precision, "--checkpoint-every", 1]
    names = [f"{precision}-{which}" for which in ("first", "again", "killed")]
    if time.monotonic() > checks.until - 20:
        checks.keep(f"{precision}, same bytes", {"skipped": "no time left"})
        return
    began = time.monotonic()
    first, again, killed = (checks.begin(name, *checks.fuse(small, name, *options)) for name in names)
    folder = checks.work / names[2]
    while killed.poll() is None and time.monotonic() < began + checks.limit:
        if (folder / "checkpoint/previous.pt").exists():  # the second is written, so the first step is over
            os.killpg(killed.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    killed.wait()
    ended = {"killed in time": not (folder / "summary.json").exists()}
    fine = [checks.wait(name, process, began) for name, process in zip(names[:2], (first, again), strict=True)]
    if all(fine) and checks.run(names[2], *checks.fuse(small, names[2], *options)):
        work = checks.work
        checks.keep(f"{precision}, same bytes", same(work / names[0], work / names[1]))
        checks.keep(f"{precision}, killed, same bytes", same(work / names[0], folder) | ended)


def more_options(checks: Checks, small: Path) -> None:
    """Other kernels, and one process that works as several do."""
    options = [*checks.options(16), "--epochs", 3]
    commands: dict[str, list[object]] = {
        "channels-last": ["--channels-last"],
        "fast": ["--fast"],
        "accumulate": ["--accumulate", 2],
    }
    checks.run_beside({out: checks.fuse(small, out, *options, *more) for out, more in commands.items()})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1]
    for name in ("torchrun", "torchrun, as several"):
        command = [*launcher, *checks.fuse(small, slug(name), *options)[1:]]
        if checks.run(name, *command, several=name != "torchrun"):
            checks.keep(f"{name}, same bytes as fp32", same(checks.work / slug(name), checks.work / "fp32-first"))


def use(checks: Checks, small: Path) -> None:
    """What is done with a trained model."""
    device: list[object] = ["--device", checks.device, "--quiet"]
    work = checks.work
    confidence: list[object] = ["--audio", work / "audio", "--visual", work / "visual", "--quiet"]
    patches: list[object] = [] if checks.on_cuda else ["--audio-patch", "8x8", "--visual-patch", "4"]
    confidence += [*patches, "--out", work / "confidence.safetensors"]
    commands: dict[str, list[object]] = {
        "score-confidence": ["score-confidence", *confidence],
        "evaluate": ["evaluate", work / "fp32-first", small, *device],
        "inspect": ["inspect", work / "audio-init.safetensors", "--store", small, *device],
        "probe": ["probe", work / "fp32-first", small, "--modality", "audio", *device],
    }
    checks.run_beside({name: checks.avpt(name, *command) for name, command in commands.items()})
    masked = ["--audio", work / "audio", "--visual", work / "visual", "--confidence", work / "confidence.safetensors"]
    command = ["fuse-train", small, *masked, *checks.options(16), *patches, "--epochs", 2, "--out", work / "masked"]
    ogm = checks.fuse(small, "ogm-ge", *checks.options(16), "--epochs", 2, "--balance", "ogm-ge")
    report = ["report", work / "fp32-first", "--out", work / "report.html", "--quiet"]
    more = {"masked": checks.avpt("masked", *command), "ogm-ge": ogm, "report": checks.avpt("report", *report)}
    checks.run_beside(more)


def speed(checks: Checks, large: Path, precisions: list[str]) -> None:
    """Clips a second of the commands, and of the bare loop of the same model on one batch."""
    sizes = checks.sizes
    configurations = [f"{kind}:{precision}" for kind in ("joint", "audio", "visual") for precision in precisions]
    configurations += ["joint:fp32:fast", "joint:fp32:channels-last"]
    fastest = "bf16" if "bf16" in precisions else "fp32"
    configurations += [f"joint:{fastest}:fast", f"joint:{fastest}:channels-last,fast"]
    numbers = [sizes.batch, sizes.steps, sizes.image, sizes.frames, *sizes.spectrogram]
    for name, some in {"bare loops": configurations, "bare loop, compiled": [f"joint:{fastest}:compile"]}.items():
        checks.run(name, sys.executable, HERE / "bare_steps.py", checks.device, *numbers, *some)
        for line in checks.lines(name):
            checks.keep(f"bare {line.pop('configuration')}", line)
    workers = min(16, os.cpu_count() or 1) - 1
    options = [*checks.options(sizes.batch, workers), "--epochs", sizes.epochs]
    runs: dict[str, list[object]] = {f"joint:{precision}": ["--precision", precision] for precision in precisions}
    runs |= {"joint:fp32:fast": ["--fast"], f"joint:{fastest}:channels-last,fast": ["--channels-last", "--fast"]}
    runs[f"joint:{fastest}:channels-last,fast"] += ["--precision", fastest]
    runs[f"joint:{fastest}:compile"] = ["--compile", "--precision", fastest]
    runs |= {f"{kind}:fp32": [] for kind in ("audio", "visual")}
    runs |= {f"{kind}:{fastest}": ["--precision", fastest] for kind in ("audio", "visual")}
    for configuration, more in runs.items():
        kind, out = configuration.partition(":")[0], f"speed {configuration}"
        joint = kind == "joint"
        words = (
            checks.fuse(large, slug(out), *options, *more) if joint else checks.tune(large, kind, slug(out), *options)
        )
        if checks.run(slug(out), *words, *([] if joint else more)):
            timing = (checks.work / slug(out) / "timing.jsonl").read_text(encoding="utf-8").splitlines()
            last = json.loads(timing[-1])
            mine = {"clips_per_second": last["clips_per_second"], "waiting": last["waiting"]}
            bare = checks.results.get(f"bare {configuration}", {}).get("clips_per_second")
            checks.keep(
                f"train {configuration}",
                mine | ({"of_bare": round(mine["clips_per_second"] / bare, 3)} if bare else {}),
            )
        shutil.rmtree(checks.work / slug(out) / "checkpoint", ignore_errors=True)


def loader(checks: Checks, large: Path) -> None:
    """Batches of the training input alone, by the number of workers."""
    code = """
import json, sys, time
from pathlib import Path
from avpt.loading.dataset import Augmentation, ClipDataset
from avpt.loading.loader import Loader
from avpt.store.store import Store
from avpt.training.runtime import start
device, store = start(0, sys.argv[1]), Store(Path(sys.argv[2]))
batch, side, frames = map(int, sys.argv[3:6])
for workers in map(int, sys.argv[6:]):
    augmentation = Augmentation((0.08, 1.0), True, (0, 0))
    index, codec = store.indices["train"], store.settings["frame_codec"]
    clips = ClipDataset(index, ("audio", "visual"), store.input_spec(side, frames), codec, augmentation=augmentation)
    began, seen, first = time.perf_counter(), 0, 0.0
    for item in Loader(clips, batch, device=device, workers=workers, shuffle_seed=0).epoch(0):
        first = first or time.perf_counter()
        seen += len(item.labels)
    if device.type == "cuda":
        import torch
        torch.cuda.synchronize()
    now = time.perf_counter()
    rest = (seen - batch) / (now - first) if seen > batch else None
    print(json.dumps({"workers": workers, "clips_per_second": round(seen / (now - began), 1),
        "after_the_first_batch": rest and round(rest, 1)}), flush=True)
"""
    sizes = checks.sizes
    numbers = [sizes.batch, sizes.image, sizes.frames, *sizes.workers]
    checks.run("loader", sys.executable, "-c", code, checks.device, large, *numbers)
    for line in checks.lines("loader"):
        checks.keep(f"loader, {line.pop('workers')} worker(s)", line)


def abri(checks: Checks) -> None:
    """ABRi against plain BatchNorm."""
    script = ROOT / "tests/benchmarks/abri.py"
    side, batch = checks.sizes.abri
    for name, more in {f"ABRi, {side}": [side, batch], "ABRi, 32": [32, batch]}.items():
        words = [
            "--device",
            checks.device,
            "--image-size",
            more[0],
            "--batch-size",
            more[1],
            "--pairs",
            9 if checks.on_cuda else 1,
        ]
        if checks.run(name, sys.executable, script, *words):
            record = checks.lines(name)[-1]
            checks.keep(name, {key: value for key, value in record.items() if key.endswith("_ratio")})


def cuda_tests(checks: Checks) -> None:
    """The tests marked `cuda`; without tests/conftest.py, which decodes."""
    files = [ROOT / "tests/test_cuda.py"]
    if importlib.util.find_spec("hypothesis"):
        files.append(ROOT / "tests/test_abri.py")
    which = ["-m", "cuda"] if checks.on_cuda else ["-k", "cuda"]
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", *which, *files]
    checks.run("tests marked cuda", sys.executable, "-m", "pytest", *options)
    checks.keep("tests marked cuda", {"result": checks.said("tests marked cuda").splitlines()[-1:]})


def table(results: dict[str, dict[str, Any]]) -> str:
    """All results, one line each."""
    rows = []
    for name, result in results.items():
        bad = (
            result.get("code")
            or result.get("error")
            or result.get("skipped")
            or any(value is False for value in result.values())
        )
        said = {key: value for key, value in result.items() if key not in ("code", "said")}
        rows.append((" " if not bad else "!", name, "  ".join(f"{key} {value}" for key, value in said.items())))
    width = max(len(name) for _, name, _ in rows)
    return "\n".join(f"{mark} {name:{width}}  {said[:150]}" for mark, name, said in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for results.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no further step begins")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a step may take")
    options = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    until = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()
    checks = Checks(out, options.device, TINY if options.rehearse else FULL, until, options.limit)
    shutil.rmtree(checks.work, ignore_errors=True)
    checks.work.mkdir(parents=True)
    precisions = ["fp32", "tf32", "bf16", "fp16"] if checks.on_cuda else ["fp32", "bf16"]
    try:
        small, large = prepare(checks)
        cuda_tests(checks)
        stage1(checks, small)
        for precision in precisions:
            bytes_of(checks, small, precision)
        abri(checks)
        more_options(checks, small)
        speed(checks, large, precisions if checks.on_cuda else ["fp32"])  # CPUs without bf16 take minutes
        loader(checks, large)
        use(checks, small)
    finally:
        print(table(checks.results), flush=True)
        shutil.rmtree(checks.work / "large", ignore_errors=True)


if __name__ == "__main__":
    main()
