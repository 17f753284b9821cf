"""What `avpt preprocess` costs: against decoding the same streams and throwing the result away, and against a script.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import av
from clips import make_films

METHOD = (
    "Every file is a clip, whose first 10.265 s are used (1024 frames of log-mel), with the paper's settings. A round "
    "runs, each in as many processes: `avpt preprocess` from the manifest to the finished store, as a whole command; "
    "PyAV, which decodes the best picture and sound streams in one pass over the file, with one thread, and drops the "
    "frames; and, where installed, one `ffmpeg` a clip that writes a wav file and a JPEG a second. The ratios compare "
    "rates once the command has started: what it takes for its first file alone (`start_seconds`) is taken off. "
    "`whole_drop_ratio` is that of the whole command, which depends on how many clips there are. "
    "The order turns from round to round; ratios are medians over rounds. "
    "Memory is the most that the command, and that any of its workers, had of its own (RssAnon, looked at five times a "
    "second)."
)
TARGET = 0.80
SECONDS = 10.265


def decode_and_drop(path: str) -> int:
    """Decode the start of both streams; returns how many frames there were."""
    count = 0
    with av.open(path, metadata_errors="replace") as container:
        best = (container.streams.best("video"), container.streams.best("audio"))
        streams = [stream for stream in best if stream is not None and stream.codec_context is not None]
        for stream in streams:
            stream.codec_context.thread_count = 1
        origin = Fraction(container.start_time or 0, 1_000_000)
        going = {stream.index for stream in streams}
        for packet in container.demux(*streams):
            if not going:
                break
            if packet.stream_index not in going or not packet.size:
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in cast(list[Any], frames):
                count += 1
                if frame.pts is not None and frame.pts * packet.time_base - origin > SECONDS:
                    going.discard(packet.stream_index)
    return count


def drop_all(paths: list[str], workers: int) -> float:
    """Seconds that decode-and-drop takes over all clips."""
    with get_context("spawn").Pool(workers) as pool:
        pool.map(abs, range(workers))  # the processes are there
        began = time.perf_counter()
        for _ in pool.imap_unordered(decode_and_drop, paths):
            pass
        return time.perf_counter() - began


def preprocess_all(paths: list[str], workers: int, folder: Path, options: list[str], memory: dict[str, int]) -> float:
    """Seconds that `avpt preprocess` takes over all clips, as a whole process; `memory` gets its peaks, in MiB."""
    folder.mkdir(exist_ok=True)
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label", "split", "video"])
        rows.writerows([i, "a", "train", path] for i, path in enumerate(paths))
    command = [sys.executable, "-m", "avpt", "preprocess", str(manifest), "--out", str(folder / "store")]
    began = time.perf_counter()
    command += ["--workers", str(workers), "--quiet", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watch = threading.Thread(target=watch_memory, args=(process, memory))
        watch.start()
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
        seconds = time.perf_counter() - began
        watch.join()
    return seconds


def watch_memory(process: subprocess.Popen[bytes], memory: dict[str, int]) -> None:
    """Note the most memory that a process and that its descendants have, until it ends."""
    while process.poll() is None:
        for pid in (process.pid, *descendants(process.pid)):
            what = "command" if pid == process.pid else "worker"
            memory[what] = max(memory[what], anonymous(pid))
        time.sleep(0.2)


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process started, and those started by them; none where there is no /proc."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def anonymous(pid: int) -> int:
    """MiB that a process has of its own."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def script_all(paths: list[str], workers: int, folder: Path) -> float:
    """Seconds that one ffmpeg a clip takes."""

    def one(job: tuple[int, str]) -> None:
        number, path = job
        out = folder / str(number)
        out.mkdir()
        command = ["ffmpeg", "-v", "quiet", "-threads", "1", "-t", str(SECONDS), "-i", path]
        sound = ["-map", "0:a:0?", "-ac", "1", "-ar", "16000", str(out / "sound.wav")]
        scale = "fps=1,scale='if(gt(iw,ih),-2,256)':'if(gt(iw,ih),256,-2)'"
        pictures = ["-map", "0:v:0?", "-vf", scale, "-q:v", "2", "-frames:v", "10", str(out / "%d.jpg")]
        subprocess.run([*command, *sound, *pictures], check=False, stdin=subprocess.DEVNULL)

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, enumerate(paths)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder of files (default: films made for the run)")
    parser.add_argument("--repeat", type=int, default=10, help="rows of the manifest per file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-script", action="store_true", help="leave ffmpeg out")
    parser.add_argument("--frame-accuracy", choices=["exact", "keyframe"], default="exact")
    options = parser.parse_args()
    av.logging.set_level(av.logging.PANIC)

    with tempfile.TemporaryDirectory() as name:
        compare(options, decodable(options.clips or make_films(Path(name))))


def decodable(folder: Path) -> list[str]:
    """The files of a folder of which anything decodes."""
    files = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            if decode_and_drop(str(path)):
                files.append(str(path.absolute()))
        except (av.FFmpegError, OSError):
            continue
    return files


def compare(options: argparse.Namespace, files: list[str]) -> None:
    """Time every way of reading the files, and print what was found."""
    paths = files * options.repeat
    ours = ["--max-failures", "1", "--frame-accuracy", options.frame_accuracy]
    seconds: dict[str, list[float]] = {}
    memory: dict[str, int] = defaultdict(int)
    for turn in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "script").mkdir()
            ways: dict[str, Callable[[], float]] = {
                "start": partial(preprocess_all, paths[:1], options.workers, folder / "one", ours, memory),
                "preprocess": partial(preprocess_all, paths, options.workers, folder, ours, memory),
                "drop": partial(drop_all, paths, options.workers),
            }
            if not options.no_script and shutil.which("ffmpeg"):
                ways["script"] = partial(script_all, paths, options.workers, folder / "script")
            names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            for way in names:
                seconds.setdefault(way, []).append(ways[way]())
            store_bytes = sum(path.stat().st_size for path in (folder / "store").glob("*.h5"))
    start = seconds.pop("start")
    whole = seconds["preprocess"]
    seconds["preprocess"] = [took - begun for took, begun in zip(whole, start, strict=True)]
    rate = {way: len(paths) / statistics.median(took) for way, took in seconds.items()}

    def ratio(way: str, own: list[float]) -> float:
        return round(statistics.median(theirs / ours for ours, theirs in zip(own, seconds[way], strict=True)), 3)

    ratios = {f"{way}_ratio": ratio(way, seconds["preprocess"]) for way in seconds if way != "preprocess"}
    ratios["whole_drop_ratio"] = ratio("drop", whole)
    record: dict[str, Any] = {
        "benchmark": "preprocess",
        "target": {"drop_ratio": TARGET},
        **ratios,
        "start_seconds": round(statistics.median(start), 2),
        "clips_per_second": {way: round(value, 2) for way, value in rate.items()},
        "clips": len(paths),
        "files": len(files),
        "bytes_per_clip": round(store_bytes / len(paths)),
        "memory_mib": memory,
        "settings": {name: str(value) for name, value in vars(options).items()},
        "method": METHOD,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
