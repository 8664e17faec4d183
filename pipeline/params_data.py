"""The sections of params.yaml for data: where images come from and how they are ingested."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator

FORGED = "forge"
"""Source name of the forged fakes."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction between 0 and 1."""


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:  # nothing can be drawn from it, which would be noticed only when something is
        raise ValueError(f"the lowest value {low:g} is above the highest, {high:g}")
    return bounds


Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_ordered)]
"""Lowest and highest value of a random draw."""

Shares = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
"""The same of a share."""

Quality = Annotated[int, Field(ge=1, le=100)]
Qualities = Annotated[tuple[Quality, Quality], AfterValidator(_ordered)]
"""The same of the quality of a JPEG or WebP."""


SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Name of a source, and of its folder."""


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def sum_to_one(section: Any, field: str) -> Any:
    """Return the section if the shares in its mapping `field` sum to 1; otherwise raise ValueError, for pydantic."""
    total = sum(getattr(section, field).values())
    if abs(total - 1) > 1e-8:  # numpy's random draws accept no others
        raise ValueError(f"the shares of `{field}` sum to {total:.9g}, not to 1")
    return section


class ProceduralSource(Section):
    """Rendered faces and forgeries of them, deterministic from `seed`."""

    kind: Literal["procedural"]
    name: SourceName = "procedural"
    reals: int = Field(gt=0, description="rendered faces; as many fakes are forged from them")
    size: int = Field(ge=32, le=1024, description="side of each image in pixels")
    jpeg_quality: Qualities = Field(description="lowest and highest; each fake is stored as its real is")
    generators: dict[str, Share] = Field(description="forge method -> share of the fakes; shares sum to 1")
    seed: int = 0

    _sums = model_validator(mode="after")(lambda self: sum_to_one(self, "generators"))


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
    """Images that users labelled through the service (pipeline/monitoring/feedback.py has the format)."""

    kind: Literal["feedback"]
    name: SourceName = "feedback"
    path: Path = Path("var/feedback")
    golden: Path = Field(default=Path("models/champion/golden"), description="known labels: a client that contradicts one is ignored")
    a_day: int = Field(default=200, gt=0, description="statements of one client that count within 24 hours")
    max_share: float = Field(default=0.5, gt=0, lt=1, description="largest share of the counted images from one of several clients")


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

    _sums = model_validator(mode="after")(lambda self: sum_to_one(self, "methods"))


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
            raise ValueError(f"a source cannot be called {FORGED!r} if `forge` is set: the forged fakes have that name")
        return self


class Normalise(Section):
    """Re-encoding of both classes alike, which removes differences in format, size and compression."""

    size: int = Field(ge=32, le=2048, description="pixels; every picture is scaled so that its longer side has this many")
    jpeg_quality: int = Field(ge=30, le=100)


class Ingest(Section):
    """Which images are accepted, and how they are stored and described in the manifest."""

    max_broken: Share = Field(description="share of unreadable files above which the stage stops")
    min_side: int = Field(gt=0, description="pixels; a smaller image is quarantined")
    max_megabytes: float = Field(20, gt=0, description="a larger file is quarantined unread")
    max_megapixels: float = Field(50, gt=0, description="a larger image is quarantined undecoded")
    normalise: Normalise | None = Field(None, description="null keeps each file as it is, byte for byte")
    face_detector: Path | None = Field(
        None,
        description="`yunet`, which is fetched once, or its ONNX file: for face_margin, data.forge, the columns faces "
        "and face_share, and the model package",
    )
    face_margin: float | None = Field(
        None,
        ge=0,
        le=4,
        description="the largest face is cut out upright, with this share of its size on each side, and stored without loss; "
        "a picture without a face stays whole; null leaves all whole",
    )

    @property
    def rewrites(self) -> bool:
        """Whether something else than the source's own files is stored."""
        return self.normalise is not None or self.face_margin is not None

    @model_validator(mode="after")
    def _cuts_out_what_it_can_find(self) -> "Ingest":
        if self.face_margin is not None and self.face_detector is None:
            raise ValueError("face_margin cuts faces out, and face_detector, which finds them, is not set: set it to yunet")
        return self
