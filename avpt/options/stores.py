"""The options of the commands that make and check a store."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from avpt.errors import ConfigError
from avpt.options.base import (
    FAILURES,
    HARDWARE,
    INPUTS,
    MOST_CLIPS,
    MOST_WORKERS,
    OUTPUT,
    PICTURES,
    PIECES,
    SOUND,
    SPLITS,
    ClipTimeout,
    Config,
    DecodingWorkers,
    OutputConfig,
    Suffix,
    Transient,
    WorkerMemory,
    whole_number,
)
from avpt.types import LARGEST_INPUT, MOST_FRAMES, MOST_SPECTROGRAM_FRAMES, FrameCodec


@dataclass(frozen=True, kw_only=True, eq=False)
class ManifestConfig(OutputConfig):
    """The options of `avpt manifest`."""

    name: Annotated[
        Literal["kinetics-sounds", "vggsound", "audioset", "crema-d", "esc50", "image-folder", "folder"],
        Argument(help="Which data set; of your own: a folder, or image-folder, of class folders."),
    ]
    folder: Annotated[Path, Argument(help="Folder in which its media lie, at any depth.")]
    out: Annotated[Path, Option(help="Manifest to write (.csv).", rich_help_panel=OUTPUT), Suffix((".csv",))]
    lists: Annotated[
        list[Path] | None,
        Option(
            "--list",
            help="A list of clips that the data set ships with; repeatable.",
            show_default="those in FOLDER",
            rich_help_panel=INPUTS,
        ),
    ] = None
    classes: Annotated[
        Path | None,
        Option(
            help="AudioSet: its class_labels_indices.csv.",
            show_default="the one in FOLDER or beside a list",
            rich_help_panel=INPUTS,
        ),
    ] = None
    trimmed: Annotated[
        bool,
        Option(
            "--trimmed",
            help="Files named by a YouTube id alone hold the clip, not the whole video.",
            rich_help_panel=INPUTS,
        ),
    ] = False
    test_fold: Annotated[
        int | None,
        Option(
            min=1, max=5, help="ESC-50: which of its five folds to test on.", show_default="5", rich_help_panel=SPLITS
        ),
    ] = None
    val_fraction: Annotated[
        float,
        Option(
            min=0,
            max=0.9,
            help="Share of the training clips that becomes the val split. The names of the clips decide, so it is the "
            "same each time; what was cut from one recording stays together.",
            rich_help_panel=SPLITS,
        ),
    ] = 0.0
    test_fraction: Annotated[
        float | None,
        Option(
            min=0,
            max=0.9,
            help="Share that becomes the test split, where the data set has none.",
            show_default="0; crema-d 0.1",
            rich_help_panel=SPLITS,
        ),
    ] = None

    segment: Annotated[
        float | None,
        Option(
            min=0.1,
            max=100_000,
            help="Class folders: cut files into pieces of so many seconds.",
            show_default="whole",
            rich_help_panel=PIECES,
        ),
    ] = None
    hop: Annotated[
        float | None,
        Option(
            min=0.01,
            max=100_000,
            help="Seconds from the start of a piece to the start of the next.",
            show_default="--segment",
            rich_help_panel=PIECES,
        ),
    ] = None
    last_piece: Annotated[
        Literal["drop", "keep"],
        Option(
            help="What becomes of a last piece that has less than nine tenths of the length: drop or keep.",
            rich_help_panel=PIECES,
        ),
    ] = "drop"
    group_by: Annotated[
        str | None,
        Option(
            help="Class folders and CREMA-D: a regular expression; files in whose paths (CREMA-D: names) it finds the "
            "same text, or the same by its first group in brackets, stay in one split: a speaker's, a camera's.",
            show_default="each file by itself",
            rich_help_panel=SPLITS,
        ),
    ] = None
    folds: Annotated[
        int | None,
        Option(
            min=2,
            max=1000,
            help="Write so many manifests instead of one, for --out m.csv m-fold1.csv, m-fold2.csv, ...: each clip is "
            "in the test split of one of them. Groups stay whole: those of --group-by, CREMA-D's actors; ESC-50 has "
            "5 folds of its own.",
            show_default="one manifest",
            rich_help_panel=SPLITS,
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
            (
                "--group-by",
                self.group_by is not None and not (folders or self.name == "crema-d"),
                "it knows which of its clips belong together",
            ),
            (
                "--folds",
                self.folds is not None and official and self.name != "esc50",
                "its lists say which clips are test",
            ),
        ):
            if unfit:
                raise ConfigError(f"{option} does not go with {self.name}: {why}; leave it out")
        if self.segment is None and (self.hop is not None or self.last_piece != "drop"):
            raise ConfigError("--hop and --last-piece do nothing without --segment; add that, or leave them out")
        if self.hop is not None and self.segment is not None and self.hop > self.segment:
            raise ConfigError(f"--hop {self.hop:g} is over --segment {self.segment:g}: what lies between would be lost")
        if self.group_by == "":
            raise ConfigError("--group-by is empty, which finds nothing in a path; write a pattern, or leave it out")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise ConfigError(f"--group-by is no regular expression ({error}); mend it") from None
        if self.folds is not None:
            self._check_folds(self.folds)
        if self.folds is None and self.test_share + self.val_fraction >= 1:
            raise ConfigError(
                f"--test-fraction {self.test_share:g} and --val-fraction {self.val_fraction:g} leave nothing for train"
            )

    def _check_folds(self, folds: int) -> None:
        for option, given in (("--test-fold", self.test_fold), ("--test-fraction", self.test_fraction)):
            if given is not None:
                raise ConfigError(
                    f"{option} does not go with --folds, each of which is the test split once; leave it out"
                )
        if self.name == "esc50" and folds != 5:
            raise ConfigError(f"--folds is {folds}, but ESC-50 has 5 folds of its own; make it 5")
        if 1 / folds + self.val_fraction >= 1:
            raise ConfigError(f"--folds {folds} and --val-fraction {self.val_fraction:g} leave nothing for train")

    @property
    def fold(self) -> int:
        """The test fold of ESC-50."""
        return 5 if self.test_fold is None else self.test_fold

    @property
    def test_share(self) -> float:
        """The share of clips that the hash gives to the test split; CREMA-D's lists hold out a tenth."""
        if self.test_fraction is not None:
            return self.test_fraction
        return 0.1 if self.name == "crema-d" and not self.lists and self.folds is None else 0.0

    def record(self) -> dict[str, Any]:
        """With defaults filled in: `--test-fold 5` and no --test-fold are the same."""
        return super().record() | {"test_fold": self.fold, "test_fraction": self.test_share}

    def idle(self) -> set[str]:
        """Folds are in the record of each where there are any."""
        return {"folds"}


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessConfig(OutputConfig):
    """The options of `avpt preprocess`."""

    manifest: Annotated[
        Path,
        Argument(
            help="CSV with the columns label, split, and video or audio / frames; also id, start, end, recording."
        ),
    ]
    out: Annotated[Path, Option(help="Folder of the store to write.", rich_help_panel=OUTPUT)]
    root: Annotated[
        Path | None,
        Option(
            help="Folder that the manifest's paths start from.", show_default="the manifest's", rich_help_panel=INPUTS
        ),
    ] = None
    sample_rate: Annotated[
        int,
        Option(min=1000, max=384000, help="Samples a second that sound is resampled to, in Hz.", rich_help_panel=SOUND),
    ] = 16000
    mel_bins: Annotated[
        int, Option(min=4, max=1024, help="Frequency bands (mel bins) of a spectrogram.", rich_help_panel=SOUND)
    ] = 128
    spectrogram_frames: Annotated[
        int,
        Option(
            min=1,
            max=MOST_SPECTROGRAM_FRAMES,
            help="Length of each spectrogram, in frames of 10 ms: longer sound is cut, shorter is filled up.",
            rich_help_panel=SOUND,
        ),
    ] = 1024
    pad: Annotated[
        Literal["zero", "repeat"],
        Option(
            help="What fills up short sound. zero: values of 0 behind it; repeat: the sound again.",
            rich_help_panel=SOUND,
        ),
    ] = "zero"
    audio_dtype: Annotated[
        Literal["float16", "float32"],
        Option(help="Type of the stored numbers; float16 takes half the room.", rich_help_panel=SOUND),
    ] = "float16"
    fps: Annotated[
        float, Option(min=0.001, max=1000, help="Frames kept per second of video.", rich_help_panel=PICTURES)
    ] = 1.0
    max_frames: Annotated[
        int, Option(min=1, max=MOST_FRAMES, help="Frames kept per clip, at most.", rich_help_panel=PICTURES)
    ] = 10
    frame_size: Annotated[
        int,
        Option(
            min=1,
            max=8192,
            help="Short side of a stored frame, in pixels; larger ones are scaled down.",
            rich_help_panel=PICTURES,
        ),
    ] = 256
    frame_codec: Annotated[
        FrameCodec, Option(help="How frames are stored: jpeg, or raw pixels.", rich_help_panel=PICTURES)
    ] = "jpeg"
    frame_accuracy: Annotated[
        Literal["exact", "keyframe"],
        Option(
            help="exact: the frame that is on screen; keyframe: the last key frame before it, several times faster.",
            rich_help_panel=PICTURES,
        ),
    ] = "exact"
    allow_missing: Annotated[
        Literal["none", "audio", "visual", "either"],
        Option(
            help="Keep clips whose sound (audio), pictures (visual) or one of them (either) are broken, with what is "
            "left; none: such clips fail.",
            rich_help_panel=FAILURES,
        ),
    ] = "none"
    require: Annotated[
        Literal["none", "audio", "visual", "both"],
        Option(
            help="Leave out clips that have no sound (audio), no pictures (visual), or not both: training refuses a "
            "store in which clips lack what it needs.",
            rich_help_panel=FAILURES,
        ),
    ] = "none"
    on_truncated: Annotated[
        Literal["keep", "fail"],
        Option(
            help="Sound or pictures that end over 10 % before their file says: keep them and report it, or fail.",
            rich_help_panel=FAILURES,
        ),
    ] = "keep"
    audio_stream: Annotated[
        int | None,
        Option(
            min=0,
            max=1000,
            help="Which sound stream of a file that has several, counted from 0.",
            show_default="FFmpeg's choice",
            rich_help_panel=SOUND,
        ),
    ] = None
    shard_size: Annotated[
        int,
        Option(
            min=1, max=1_000_000, help="Manifest rows per shard, as a file of clips is called.", rich_help_panel=OUTPUT
        ),
    ] = 128
    multi_label: Annotated[
        bool,
        Option("--multi-label", help="`label` holds several names joined by `;`.", rich_help_panel=INPUTS),
    ] = False
    limit: Annotated[
        int | None,
        Option(
            min=1,
            max=MOST_CLIPS,
            help="Take only the first rows of the manifest.",
            show_default="all",
            rich_help_panel=INPUTS,
        ),
    ] = None
    workers: DecodingWorkers = None
    clip_timeout: ClipTimeout = 60.0
    worker_memory: WorkerMemory = 4.0
    max_failures: Annotated[
        float,
        Option(
            min=0, max=1, help="Share of the clips that may fail before the command does.", rich_help_panel=FAILURES
        ),
        Transient,
    ] = 0.05
    retry_failures: Annotated[
        bool,
        Option("--retry-failures", help="Try the clips of failures.csv again.", rich_help_panel=FAILURES),
        Transient,
    ] = False
    shard_range: Annotated[
        str | None,
        Option(
            help="Only shards A to B - 1, counted over all splits, for jobs that share the work; the job that finds "
            "all of them there finishes the store.",
            metavar="A:B",
            show_default="all",
            rich_help_panel=HARDWARE,
        ),
        Transient,
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        Option(
            help="Decode on this machine (local), or on a Ray cluster that shares --out (ray).",
            rich_help_panel=HARDWARE,
        ),
        Transient,
    ] = "local"
    ray_address: Annotated[
        str | None,
        Option(
            help="Address of the cluster's head node.",
            show_default="RAY_ADDRESS, or this machine's",
            rich_help_panel=HARDWARE,
        ),
        Transient,
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

    def idle(self) -> set[str]:
        """Where nothing is required the record is the one of an avpt that had no such option."""
        return super().idle() | ({"require"} if self.require == "none" else set())

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
    deep: Annotated[bool, Option("--deep", help="Decode each JPEG too.", rich_help_panel=INPUTS)] = False
    workers: Annotated[
        int | None,
        Option(min=1, max=MOST_WORKERS, help="Processes that check.", show_default="cores", rich_help_panel=HARDWARE),
        Transient,
    ] = None
