"""The records that files hold, as types; `checking` checks what it reads against them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, TypedDict

import msgspec

from avpt.errors import ConfigError
from avpt.types import LARGEST_IMAGE, LARGEST_INPUT, MOST_FRAMES, MOST_SPECTROGRAM_FRAMES, FrameCodec, Modality, Split

if TYPE_CHECKING:
    from avpt.files.artifacts import Kind

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Finite = Annotated[float, msgspec.Meta(ge=-1e38, le=1e38)]
AboveZero = Annotated[float, msgspec.Meta(gt=0, le=1e38)]
Colour = tuple[Finite, Finite, Finite]  # red, green and blue, where 1 is the brightest
Deviation = tuple[AboveZero, AboveZero, AboveZero]
# mean and standard deviation of ImageNet's training pictures (torchvision's documentation of its weights)
IMAGENET: tuple[Colour, Deviation] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Scores = dict[str, float | None]  # metrics of a split; None where one is not defined


class Options(TypedDict, total=False):
    """The recorded options that are read back and used; those that are merely shown or compared may have any value."""

    seed: int
    epochs: Count
    modality: Modality | None
    mask: str
    mask_rule: str
    mask_threshold: Finite
    balance: str
    missing: str
    bn: str
    alpha: Finite
    abnormal_threshold: Finite
    drop: Modality | None
    noise: Modality | None
    snr: Finite | None


class Provenance(TypedDict):
    """How something was made, as every record states it."""

    config: Options
    inputs: dict[str, str]  # name -> checksum or fingerprint


class NamedProvenance(Provenance):
    """The provenance in a file that is not an artifact, such as an evaluation or a page."""

    kind: str


class TypedPath(TypedDict):
    """An input's path as it was typed."""

    path: str
    checksum: NotRequired[str]  # as the record of what was made from it has it
    size: NotRequired[Count]  # in bytes, of a plain file


class TypedPaths(TypedDict):
    """`paths.json` of a store or a run folder, and in the JSON file beside an encoder or a manifest."""

    folder: str  # the working directory, which relative paths start from
    paths: dict[str, TypedPath]


class Fingerprinted(TypedDict):
    """A store's `store.json`, of which other files record the fingerprint."""

    fingerprint: str


class Loss(TypedDict):
    """The results of an epoch's training pass."""

    loss: float
    accuracy: float


class Epoch(TypedDict):
    """A line of `metrics.jsonl`."""

    epoch: Count
    lr: float
    train: Loss
    val: Scores
    gradient_norm: NotRequired[dict[str, float]]


class Timing(TypedDict):
    """A line of `timing.jsonl`."""

    epoch: Count
    seconds: float
    training_seconds: float
    evaluation_seconds: float
    clips: Count
    clips_per_second: float | None
    waiting: float | None


class RunSummary(TypedDict):
    """`summary.json` of a run folder."""

    best_epoch: Count
    epochs: Count
    val: Scores
    test: Scores | None


class ClassScores(TypedDict):
    """Results by class, in the order of the classes: accuracy, or average precision where clips have several labels."""

    count: list[Count]
    confusion: NotRequired[list[list[Count]]]
    accuracy: NotRequired[list[float | None]]
    average_precision: NotRequired[list[float | None]]


class Evaluation(TypedDict):
    """What `evaluate` measured."""

    val: Scores | None
    test: Scores | None
    clips: dict[str, Count]
    classes: NotRequired[list[str]]
    per_class: NotRequired[dict[Split, ClassScores]]


class EvaluationRecord(NamedProvenance, Evaluation):
    """An evaluation as a file, with its provenance."""


class Layer(TypedDict):
    """How many channels of a BatchNorm layer are abnormal."""

    name: str
    channels: Positive
    abnormal: Count


class ManifestSummary(TypedDict):
    """What `manifest` found."""

    clips: Count
    unlisted: Count
    unfit: NotRequired[Count]
    classes: Count
    multi_label: bool
    splits: dict[Split, dict[Literal["listed", "found", "missing"], Count]]
    by_class: NotRequired[dict[str, dict[Split, Count]]]  # an older avpt wrote neither this nor `unfit`


class ManifestRecord(Provenance):
    """The JSON file beside a manifest."""

    files: dict[str, str]  # name -> checksum
    summary: ManifestSummary
    folder: NotRequired[str]  # this and `paths` are those of `TypedPaths`, which an older avpt did not write
    paths: NotRequired[dict[str, TypedPath]]


class SelectionRecord(NamedProvenance):
    """The JSON file beside a manifest of selected clips."""

    files: dict[str, str]  # name -> checksum


class LoadedWeights(TypedDict):
    """What became of each key of a checkpoint, and how the adapted ones were changed."""

    loaded: list[str]
    adapted: dict[str, str]
    dropped: list[str]
    new: list[str]
    wrapper: NotRequired[str]  # these four where there is something to say, and since avpt reads all layouts
    prefix: NotRequired[str]
    left: NotRequired[list[str]]
    dtype: NotRequired[str]


class Blend(TypedDict):
    """What `init --bn blend` changed: root mean squares of the moves, and how many abnormal channels no longer are."""

    gamma_moved: float
    beta_moved: float
    threshold: float
    abnormal: Count
    lifted: Count


class Metrics(TypedDict, total=False):
    """The metrics in an artifact's header, as far as they are read back."""

    layers: list[Layer]
    abnormal_share: float | None
    weights: LoadedWeights
    blend: Blend


class EncoderMetrics(TypedDict):
    """The metrics of an encoder as `init` writes them."""

    layers: list[Layer]
    weights: NotRequired[LoadedWeights]
    blend: NotRequired[Blend]


class HeldOut(TypedDict):
    """A metric on both held-out splits."""

    val: float | None
    test: float | None


class McNemar(TypedDict):
    """McNemar's test between the probes of two encoders."""

    joint_only: Count
    stage1_only: Count
    p: float


class ProbedAlone(TypedDict, total=False):
    """A linear probe: its accuracy, or mAP where clips have several labels."""

    accuracy: HeldOut
    map: HeldOut


class ProbeMetrics(ProbedAlone, total=False):
    """What `probe` measured of an encoder, and of the one that it started from."""

    modality: Required[Modality]
    clips: Required[dict[str, Count]]
    stage1: ProbedAlone
    difference: HeldOut
    mcnemar: McNemar


# the metrics of an artifact that a command may find at its --out, by kind
METRICS: dict[Kind, Any] = {"encoder": EncoderMetrics, "probe": ProbeMetrics, "predictions": Evaluation}


@dataclass(frozen=True)
class InputSpec:
    """How stored values become a model's input; part of every model's spec. Ranges are those of the options."""

    sample_rate: Annotated[int, msgspec.Meta(ge=1000, le=384_000)]
    mel_bins: Annotated[int, msgspec.Meta(ge=4, le=1024)]
    spectrogram_frames: Annotated[int, msgspec.Meta(ge=1, le=MOST_SPECTROGRAM_FRAMES)]
    pad: Literal["zero", "repeat"]
    fps: Annotated[float, msgspec.Meta(ge=0.001, le=1000)]
    max_frames: Annotated[int, msgspec.Meta(ge=1, le=MOST_FRAMES)]
    frame_size: Annotated[int, msgspec.Meta(ge=1, le=8192)]
    mean: Finite  # of the training split's log-mel
    std: AboveZero
    image_size: Annotated[int, msgspec.Meta(ge=8, le=LARGEST_IMAGE)]
    num_frames: Annotated[int, msgspec.Meta(ge=1, le=MOST_FRAMES)]
    audio_dtype: Literal["float16", "float32"] = (
        "float16"  # with these four a clip's file gives the same input as a store
    )
    frame_codec: FrameCodec = "jpeg"
    frame_accuracy: Literal["exact", "keyframe"] = "exact"
    audio_stream: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None  # None: FFmpeg's choice
    picture_mean: Colour | None = None  # that pictures are normalised with; None: ImageNet's
    picture_std: Deviation | None = None

    def __post_init__(self) -> None:
        """Check that a clip fits into memory.

        Raises:
            ConfigError: it has more values than any model is fed.
        """
        if self.num_values > LARGEST_INPUT:
            raise ConfigError(
                f"a clip would be {self.num_values} values, {LARGEST_INPUT} are the most; lower --image-size or "
                "--num-frames, or preprocess with fewer --spectrogram-frames"
            )

    def record(self) -> dict[str, Any]:
        """The spec as a header holds it; what nobody chose is left out, as older versions did."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def colours(self) -> tuple[Colour, Deviation]:
        """Mean and standard deviation that pictures are normalised with."""
        return self.picture_mean or IMAGENET[0], self.picture_std or IMAGENET[1]

    @property
    def num_values(self) -> int:
        """Values of a clip's larger modality; audio counts as if it had three channels, as it costs as much memory."""
        return 3 * max(self.spectrogram_frames * self.mel_bins, self.num_frames * self.image_size**2)


class EncoderRecord(TypedDict):
    """An encoder's spec."""

    arch: str
    modality: Modality
    norm: str
    size: NotRequired[list[Count]]
    mean: NotRequired[list[Finite]]
    std: NotRequired[list[Finite]]


class ExportSpec(TypedDict):
    """The spec in an exported model's header."""

    encoders: dict[Modality, EncoderRecord]
    input: InputSpec | None
    inputs: dict[Modality, list[int | str]]
    output: Literal["logits", "features"]
    num_classes: NotRequired[Count]
