"""params.yaml as frozen, strict models: the only place where a setting has a type."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

PARAMS_FILE = Path("params.yaml")

FORGED = "forge"
"""Name that the forged fakes have as a source."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction between 0 and 1."""

Range = tuple[float, float]
"""Lowest and highest value of a random draw."""


SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Of a source: it becomes a folder's name."""


class ParamsError(ValueError):
    """params.yaml is missing, is not YAML, or holds a key or value that is not allowed."""


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _sum_to_one(section: Any, field: str) -> Any:
    total = sum(getattr(section, field).values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of `{field}` sum to {total:g}, not to 1")
    return section


class ProceduralSource(Section):
    """Rendered faces and forgeries of them, deterministic from `seed`."""

    kind: Literal["procedural"]
    name: SourceName = "procedural"
    reals: int = Field(gt=0, description="rendered faces; as many fakes are forged from them")
    size: int = Field(ge=32, le=1024, description="side of each image in pixels")
    jpeg_quality: tuple[int, int] = Field(description="lowest and highest; each fake is stored as its real is")
    generators: dict[str, Share] = Field(description="forge method -> share of the fakes; shares sum to 1")
    seed: int = 0

    _sums = model_validator(mode="after")(lambda self: _sum_to_one(self, "generators"))


class FolderSource(Section):
    """A folder with `real/` and `fake/` in it, or with a `manifest.csv` of `path,label[,generator,group,...]`."""

    kind: Literal["folder"]
    name: SourceName = "folder"
    path: Path
    in_place: bool = Field(False, description="leave the images where they are; DVC then versions their hashes, not the images")


class HuggingFaceSource(Section):
    """A dataset in the hub's format, by name or local folder, read as a stream."""

    kind: Literal["huggingface"]
    name: SourceName = "huggingface"
    dataset: str
    config: str | None = None
    revision: str | None = Field(None, description="git revision on the hub: a tag or commit pins the data")
    split: str = "train"
    image: str = Field("image", description="column of the images")
    label: str = Field("label", description="column of the labels")
    labels: dict[str, Literal["real", "fake"]] = Field(
        description="value or class name in that column -> label; rows of others are left out"
    )
    generator: str | None = Field(None, description="column that names what made a fake")
    group: str | None = Field(None, description="column of the person, video or source picture")
    attributes: list[str] = Field(default_factory=list, description="further columns to keep")


class LfwSource(Section):
    """Labeled Faces in the Wild through scikit-learn's fetcher: real faces, each person a group."""

    kind: Literal["lfw"]
    name: SourceName = "lfw"
    data_home: Path | None = Field(None, description="where scikit-learn keeps its data sets; null is its own default")


class FeedbackSource(Section):
    """Images that users labelled through the service (pipeline/feedback.py has the format)."""

    kind: Literal["feedback"]
    name: SourceName = "feedback"
    path: Path = Path("var/feedback")


Source = Annotated[
    ProceduralSource | FolderSource | HuggingFaceSource | LfwSource | FeedbackSource,
    Field(discriminator="kind"),
]


class Forge(Section):
    """Fakes made from the real images of the sources."""

    sources: list[str] | None = Field(None, description="names of the sources whose reals are forged; null is all")
    per_real: Share = Field(1.0, description="share of the reals that get a fake")
    methods: dict[str, Share] = Field(description="forge method -> share of the fakes; shares sum to 1")
    seed: int = 0

    _sums = model_validator(mode="after")(lambda self: _sum_to_one(self, "methods"))


class Data(Section):
    """Where the images come from."""

    sources: list[Source] = Field(min_length=1)
    forge: Forge | None = Field(None, description="null makes none")
    shard: bool = Field(False, description="pack the images into tar files, so that DVC tracks hundreds of files instead of millions")
    engine: Literal["local", "ray"] = Field("local", description="where ingest and forge run: processes here, or a Ray cluster")
    watch: Path = Field(
        description="file or folder whose change makes DVC ingest again: the folder of the images, or the code that renders them"
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Data":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {sorted(names)}")
        unknown = set(self.forge.sources or ()) - set(names) if self.forge else set()
        if unknown:
            raise ValueError(f"forge.sources: no source is called {', '.join(sorted(unknown))}; there are: {', '.join(sorted(names))}")
        if self.shard and any(isinstance(source, FolderSource) and source.in_place for source in self.sources):
            raise ValueError("a source that is read in place cannot be packed into shards: set `in_place: false` or `shard: false`")
        if self.forge and FORGED in names:
            raise ValueError(f"a source cannot be called {FORGED!r} beside `forge`: the forged fakes have that name")
        return self


class Normalise(Section):
    """Re-encoding of both classes alike, which takes differences of format, size and compression away."""

    size: int = Field(ge=32, le=2048, description="pixels; every picture is scaled so that its longer side has this many")
    jpeg_quality: int = Field(ge=30, le=100)


class Ingest(Section):
    """Bringing images into data/raw and describing each in the manifest."""

    max_broken: Share = Field(description="share of unreadable files above which the stage stops")
    min_side: int = Field(gt=0, description="pixels; a smaller image is quarantined")
    max_megabytes: float = Field(20, gt=0, description="a larger file is quarantined unread")
    max_megapixels: float = Field(50, gt=0, description="a larger image is quarantined undecoded")
    normalise: Normalise | None = Field(None, description="null keeps each file as it is, byte for byte")
    face_detector: Path | None = Field(None, description="ONNX file of YuNet, for the columns faces and face_share; null leaves them empty")


class Shortcut(Section):
    """Bounds on the AUC of a model that sees metadata only."""

    warn: Share
    refuse: Share


class Validate(Section):
    """What the manifest has to satisfy."""

    min_images: int = Field(gt=0, description="of each class")
    max_imbalance: float = Field(ge=1, description="largest count of a class over the smallest; above it, a warning")
    min_per_generator: int = Field(20, gt=0, description="fakes of each generator; below it, a warning")
    ranges: dict[str, tuple[float | None, float | None]] = Field(description="column of the manifest -> lowest and highest usual value")
    usual: Share = Field(0.98, description="share of the images that have to be inside each of `ranges`; below it, a warning")
    max_divergence: float = Field(0.1, gt=0, description="Kullback-Leibler divergence from the last accepted data version that warns")
    shortcut: Shortcut

    @model_validator(mode="after")
    def _ranges_bound_something(self) -> "Validate":
        for column, (low, high) in self.ranges.items():
            if low is None and high is None:
                raise ValueError(f"ranges.{column} needs a lowest value, a highest one or both")
            if low is not None and high is not None and low > high:
                raise ValueError(f"ranges.{column}: the lowest value {low:g} is over the highest, {high:g}")
        return self


class Split(Section):
    """Grouped and stratified parts."""

    shares: dict[Literal["train", "val", "test"], Share]
    duplicate_radius: int = Field(ge=0, le=10, description="Hamming distance of perceptual hashes that counts as one picture")
    holdout_generators: list[str] = Field(description="generators kept out of train and val, judged as the part `unseen`")
    seed: int

    @model_validator(mode="after")
    def _three_parts_of_a_whole(self) -> "Split":
        if set(self.shares) != {"train", "val", "test"} or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"`shares` needs train, val and test, which sum to 1; it has {dict(self.shares)}")
        return self


class Model(Section):
    """Which network, and from where its weights start."""

    name: str = Field(description="hub name, local folder or, with init scratch, a transformers model type such as `vit`")
    init: Literal["pretrained", "scratch"]
    config: dict[str, Any] = Field(default_factory=dict, description="overrides of the transformers config")


class Train(Section):
    """The recipe."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=1)
    lr: float | Literal["auto"] = Field(description="`auto`: 1100 / parameters, 2e-4 for ViT-tiny and 1.3e-5 for ViT-base")
    weight_decay: float = Field(ge=0)
    warmup: Share = Field(description="share of the steps with a rising learning rate; cosine decay after it")
    pairing: bool = Field(description="each real beside a fake of its own group, with the same augmentation")
    rank_weight: float = Field(ge=0, description="weight of softplus(-(s_fake - s_real)) over the pairs of a batch")
    label_smoothing: Share
    bf16: bool | Literal["auto"] = Field(description="`auto`: where the processor has it")
    checkpoints_per_epoch: int = Field(gt=0, description="how often a killed run can go on from")
    seed: int


class Augment(Section):
    """Random changes of training images, the same kinds for both classes. Probabilities are per image."""

    flip: Share
    warp: Share = Field(description="probability of rotation, zoom and crop together: they resample, which wipes the finest traces")
    rotate: float = Field(ge=0, le=180, description="degrees either way")
    scale: Range = Field(description="zoom factor")
    crop: Share = Field(description="largest share of a side that a random crop takes away")
    brightness: Share
    contrast: Share
    colour: Share
    grayscale: Share
    jpeg: Share = Field(description="probability")
    jpeg_quality: tuple[int, int]
    blur: Share = Field(description="probability")
    blur_sigma: Range
    noise: Share = Field(description="probability")
    noise_sigma: Range = Field(description="in units of 0..255")
    resize: Share = Field(description="probability of scaling down and up again")
    resize_factor: Range


class Evaluate(Section):
    """How the test part is judged."""

    bootstrap: int = Field(ge=100, description="draws over groups for the 95% intervals")
    max_fpr: Share = Field(description="`fake_above`: the validation threshold with this false-positive rate")
    max_fnr: Share = Field(description="`real_below`: the validation threshold with this false-negative rate")
    attack_images: int = Field(ge=0, description="test images attacked with FGSM and PGD; 0 leaves the attacks out")
    robustness_images: int = Field(gt=0, description="test images that are degraded for the robustness grid")
    seed: int


class Export(Section):
    """What goes into the model package besides the weights."""

    golden: int = Field(gt=0, description="golden examples of each class")
    reference: int = Field(gt=0, description="validation images whose embeddings and statistics are the drift reference")
    tolerance: float = Field(gt=0, description="largest difference of a logit between PyTorch and the exported graph")


class Bound(Section):
    """Lowest and highest value that a figure may have."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> "Bound":
        if self.min is None and self.max is None:
            raise ValueError("a gate needs `min`, `max` or both")
        return self


class Drift(Section):
    """When the traffic counts as different from the reference."""

    min_window: int = Field(ge=50, description="predictions below which a check ends as 'not enough data'")
    max_window: int = Field(gt=0, description="newest predictions that a check looks at")
    alpha: Share = Field(description="false-alarm rate of one check, held by permutation at the window's own size")
    permutations: int = Field(ge=99)
    cron: str

    @model_validator(mode="after")
    def _can_find_drift(self) -> "Drift":
        if self.max_window < self.min_window:
            raise ValueError(f"max_window {self.max_window} is below min_window {self.min_window}: no check would ever have enough data")
        least = 1 / (self.permutations + 1)
        if self.alpha < least:
            raise ValueError(
                f"alpha {self.alpha:g} is below {least:.2g}, the smallest p-value of {self.permutations} permutations: "
                "drift could never be found; raise `permutations` or `alpha`"
            )
        return self


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    split: Split
    model: Model
    train: Train
    augment: Augment
    evaluate: Evaluate
    export: Export
    gates: dict[str, Bound] = Field(description="dotted path of a figure in reports/evaluation.json -> its bounds")
    drift: Drift
    presets: dict[str, dict[str, Any]] = Field(description="named sets of values, applied with `python -m pipeline.settings NAME`")

    @model_validator(mode="after")
    def _normalises_copies(self) -> "Params":
        if self.ingest.normalise and any(isinstance(source, FolderSource) and source.in_place for source in self.data.sources):
            raise ValueError(
                "ingest.normalise re-encodes copies: a source that is read in place cannot be normalised; set `in_place: false`"
            )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: naming the file, each wrong key or value, and the keys that are allowed there.
    """
    if not path.is_file():
        raise ParamsError(f"{path}: no such file; run from the project's root folder")
    return check_params(YAML(typ="safe").load(path.read_text()), path)


def check_params(content: Any, path: Path) -> Params:
    """The content of params.yaml as Params. Raises ParamsError as `load_params` does; `path` is for its message."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            lines.append(f"  {where}: {problem['msg']}{_allowed(problem)}")
        raise ParamsError(f"{path} is not valid:\n" + "\n".join(lines)) from None


def _allowed(problem: Any) -> str:
    if problem["type"] != "extra_forbidden":
        return f" (it is {problem['input']!r})"
    section: Any = Params
    for part in problem["loc"][:-1]:
        fields = {field.alias or name: field.annotation for name, field in getattr(section, "model_fields", {}).items()}
        section = fields.get(part)
    names = sorted(field.alias or name for name, field in getattr(section, "model_fields", {}).items())
    return f"; allowed here: {', '.join(names)}" if names else ""
