"""The options of the commands that make and check a store."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    MOST_CLIPS,
    MOST_WORKERS,
    ClipTimeout,
    Config,
    DecodingWorkers,
    OutputConfig,
    Transient,
    UnusedSeed,
    WorkerMemory,
    whole_number,
)
from avpt.types import LARGEST_INPUT, MOST_FRAMES, MOST_SPECTROGRAM_FRAMES, FrameCodec


@dataclass(frozen=True, kw_only=True, eq=False)
class ManifestConfig(OutputConfig):
    """The options of `avpt manifest`."""

    name: Annotated[
        Literal["kinetics-sounds", "vggsound", "audioset", "crema-d", "esc50", "image-folder", "folder"],
        Argument(help="The data set; folder and image-folder are class folders, perhaps in train, val, test."),
    ]
    folder: Annotated[Path, Argument(help="Where its media lie, at any depth.")]
    out: Annotated[Path, Option(help="Manifest to write (.csv).")]
    seed: UnusedSeed = 0
    lists: Annotated[
        list[Path] | None,
        Option("--list", help="A list that the data set ships; repeatable.", show_default="those in FOLDER"),
    ] = None
    classes: Annotated[
        Path | None,
        Option(help="AudioSet: class_labels_indices.csv.", show_default="the one in FOLDER or beside a list"),
    ] = None
    trimmed: Annotated[
        bool, Option("--trimmed", help="Files named by a YouTube id alone hold the clip, not the whole video.")
    ] = False
    test_fold: Annotated[int | None, Option(min=1, max=5, help="ESC-50: the fold to test on.", show_default="5")] = None
    val_fraction: Annotated[
        float,
        Option(
            min=0,
            max=0.9,
            help="Carved from train by a hash of the YouTube id, ESC-50's src_file, else the id; folders by class.",
        ),
    ] = 0.0
    test_fraction: Annotated[
        float | None,
        Option(min=0, max=0.9, help="The same where there is no test split.", show_default="0; crema-d 0.1"),
    ] = None

    segment: Annotated[
        float | None,
        Option(
            min=0.1, max=100_000, help="Class folders: cut files into pieces of so many seconds.", show_default="whole"
        ),
    ] = None
    hop: Annotated[
        float | None,
        Option(min=0.01, max=100_000, help="Seconds from the start of a piece to the next.", show_default="--segment"),
    ] = None
    last_piece: Annotated[
        Literal["drop", "keep"], Option(help="A last piece of which less than nine tenths are there.")
    ] = "drop"
    group_by: Annotated[
        str | None,
        Option(
            help="Class folders: a regular expression; clips in whose path it finds the same stay in one split.",
            show_default="each file by itself",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        folders = self.name in ("image-folder", "folder")
        youtube = self.name in ("kinetics-sounds", "vggsound", "audioset")
        official = not folders and (self.name != "crema-d" or bool(self.lists))
        for option, unfit, why in (
            ("--list", self.lists and folders, "its folders say which clips there are"),
            ("--classes", self.classes and self.name != "audioset", "only AudioSet's lists need one"),
            ("--trimmed", self.trimmed and not youtube, "its files are not named by YouTube ids"),
            ("--test-fold", self.test_fold is not None and self.name != "esc50", "only ESC-50 has folds"),
            ("--test-fraction", self.test_fraction is not None and official, "its lists say which clips are test"),
            ("--segment", self.segment is not None and self.name != "folder", "its clips are not files of any length"),
            ("--group-by", self.group_by is not None and not folders, "it knows which of its clips belong together"),
        ):
            if unfit:
                raise ConfigError(f"{option} does not go with {self.name}: {why}; leave it out")
        if self.segment is None and (self.hop is not None or self.last_piece != "drop"):
            raise ConfigError("--hop and --last-piece do nothing without --segment; add that, or leave them out")
        if self.hop is not None and self.segment is not None and self.hop > self.segment:
            raise ConfigError(f"--hop {self.hop:g} is over --segment {self.segment:g}: what lies between would be lost")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise ConfigError(f"--group-by is no regular expression ({error}); mend it") from None
        if self.test_share + self.val_fraction >= 1:
            raise ConfigError(
                f"--test-fraction {self.test_share:g} and --val-fraction {self.val_fraction:g} leave nothing for train"
            )

    @property
    def fold(self) -> int:
        """The test fold of ESC-50."""
        return 5 if self.test_fold is None else self.test_fold

    @property
    def test_share(self) -> float:
        """The share of clips that the hash gives to the test split; CREMA-D's lists hold out a tenth."""
        if self.test_fraction is not None:
            return self.test_fraction
        return 0.1 if self.name == "crema-d" and not self.lists else 0.0

    def record(self) -> dict[str, Any]:
        """With defaults filled in: `--test-fold 5` and no --test-fold are the same."""
        return super().record() | {"test_fold": self.fold, "test_fraction": self.test_share}


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessConfig(OutputConfig):
    """The options of `avpt preprocess`."""

    manifest: Annotated[Path, Argument(help="CSV: id, label, split, video / audio / frames, start, end, recording.")]
    out: Annotated[Path, Option(help="Folder of the store.")]
    root: Annotated[
        Path | None,
        Option(help="Folder that the manifest's paths start from.", show_default="the manifest's"),
    ] = None
    seed: UnusedSeed = 0
    sample_rate: Annotated[int, Option(min=1000, max=384000, help="Hz of the resampled sound.")] = 16000
    mel_bins: Annotated[int, Option(min=4, max=1024, help="Mel filters of the spectrogram.")] = 128
    spectrogram_frames: Annotated[
        int, Option(min=1, max=MOST_SPECTROGRAM_FRAMES, help="10 ms frames a clip is padded or cut to.")
    ] = 1024
    pad: Annotated[
        Literal["zero", "repeat"], Option(help="Short clips: log-mel 0.0 behind, or the sound repeated.")
    ] = "zero"
    audio_dtype: Annotated[Literal["float16", "float32"], Option(help="Type of the stored log-mel.")] = "float16"
    fps: Annotated[float, Option(min=0.001, max=1000, help="Frames kept per second.")] = 1.0
    max_frames: Annotated[int, Option(min=1, max=MOST_FRAMES, help="Frames kept per clip at most.")] = 10
    frame_size: Annotated[int, Option(min=1, max=8192, help="Short side of a stored frame is scaled down to this.")] = (
        256
    )
    frame_codec: Annotated[FrameCodec, Option(help="How frames are stored.")] = "jpeg"
    frame_accuracy: Annotated[
        Literal["exact", "keyframe"],
        Option(help="The frame on screen, or the last key frame before it: several times faster."),
    ] = "exact"
    allow_missing: Annotated[
        Literal["none", "audio", "visual", "either"],
        Option(help="Keep clips whose sound or picture is broken, with what is left."),
    ] = "none"
    on_truncated: Annotated[
        Literal["keep", "fail"],
        Option(help="Streams that end over 10 % before their file says: kept and reported, or failed."),
    ] = "keep"
    audio_stream: Annotated[
        int | None,
        Option(
            min=0, max=1000, help="Which sound stream of a file with several, from 0.", show_default="FFmpeg's choice"
        ),
    ] = None
    shard_size: Annotated[int, Option(min=1, max=1_000_000, help="Manifest rows per shard.")] = 128
    multi_label: Annotated[bool, Option("--multi-label", help="`label` holds several names joined by `;`.")] = False
    limit: Annotated[
        int | None, Option(min=1, max=MOST_CLIPS, help="Only the first rows of the manifest.", show_default="all")
    ] = None
    workers: DecodingWorkers = None
    clip_timeout: ClipTimeout = 60.0
    worker_memory: WorkerMemory = 4.0
    max_failures: Annotated[
        float, Option(min=0, max=1, help="Share of clips that may fail before the command does."), Transient
    ] = 0.05
    retry_failures: Annotated[
        bool, Option("--retry-failures", help="Try the clips of failures.csv again."), Transient
    ] = False
    shard_range: Annotated[
        str | None,
        Option(
            help="Only shards A to B - 1 of all splits, for job arrays; the run that finds all finishes the store.",
            metavar="A:B",
            show_default="all",
        ),
        Transient,
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        Option(help="Decode on this machine, or on a Ray cluster that shares --out."),
        Transient,
    ] = "local"
    ray_address: Annotated[
        str | None, Option(help="Of the cluster's head node.", show_default="RAY_ADDRESS, or this machine's"), Transient
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shards
        if (values := 3 * self.spectrogram_frames * self.mel_bins) > LARGEST_INPUT:  # as InputSpec counts them
            raise ConfigError(
                f"--spectrogram-frames {self.spectrogram_frames} of --mel-bins {self.mel_bins} are {values} values a "
                f"clip, {LARGEST_INPUT} are the most that a model is fed; lower one, or cut the clips into segments"
            )
        if self.shard_range is not None and self.overwrite:
            raise ConfigError(
                "--overwrite does not go with --shard-range, whose runs share one store; remove the store instead"
            )
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError("--ray-address does nothing without --engine ray; add that, or leave it out")

    @property
    def shards(self) -> slice:
        """`2:5` -> shards 2, 3 and 4."""
        first, colon, last = (":" if self.shard_range is None else self.shard_range).partition(":")
        if not colon or not all(whole_number(end) >= 0 or not end for end in (first, last)):
            raise ConfigError(f"--shard-range is {self.shard_range!r}; it must be A:B, such as 0:10, 10:20 or 20:")
        shards = slice(int(first or 0), int(last) if last else None)
        if shards.stop is not None and shards.stop <= shards.start:
            raise ConfigError(f"--shard-range is {self.shard_range!r}; B is the shard after the last, over A")
        return shards


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifyConfig(Config):
    """The options of `avpt verify`."""

    store: Annotated[Path, Argument(help="Store written by `avpt preprocess`.")]
    deep: Annotated[bool, Option("--deep", help="Decode each JPEG too.")] = False
    workers: Annotated[
        int | None, Option(min=1, max=MOST_WORKERS, help="Checking processes.", show_default="cores"), Transient
    ] = None
