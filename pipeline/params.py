"""params.yaml as frozen, strict models: the only place where a setting has a type."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.params_data import FORGED, Data, FolderSource, Ingest, Section, Share
from pipeline.params_loop import Drift, Feedback, Notifications, Promotion, Retrain
from pipeline.params_train import Augment, Model, Train, Tune

PARAMS_FILE = Path("params.yaml")


class ParamsError(ValueError):
    """params.yaml is missing, is not YAML, or holds a key or value that is not allowed."""


class Shortcut(Section):
    """Bounds on the AUC of a model that sees only metadata: above `warn` validation warns, above `refuse` it fails."""

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
                raise ValueError(f"ranges.{column}: the lowest value {low:g} is above the highest, {high:g}")
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


class Evaluate(Section):
    """How the test part is judged."""

    bootstrap: int = Field(ge=100, description="draws over groups for the 95% intervals")
    max_fpr: Share = Field(lt=1, description="`fake_above`: the validation threshold with this false-positive rate")
    max_fnr: Share = Field(lt=1, description="`real_below`: the validation threshold with this false-negative rate")
    attack_images: int = Field(ge=0, description="test images attacked with FGSM and PGD; 0 leaves the attacks out")
    robustness_images: int = Field(gt=0, description="test images that are degraded for the robustness grid")
    baseline_images: int = Field(1000, ge=20, description="images of the training part that baselines learn from, and of the test part")
    explain_images: int = Field(40, ge=0, description="fakes of the test part whose heat maps are judged; 0 leaves that out")
    transfer_from: Path | None = Field(None, description="package or trained folder of another model, for attacks that transfer")
    seed: int


class Export(Section):
    """What goes into the model package besides the weights."""

    golden: int = Field(gt=0, description="golden examples of each class")
    reference: int = Field(gt=0, description="validation images in the drift reference at most, one of each group")
    tolerance: float = Field(gt=0, description="largest difference of a logit between PyTorch and the exported graph")
    int8: bool = Field(description="a graph in 8-bit integers for CPUs with VNNI, kept if AUC and calibration hold")
    onnx: bool = Field(description="an ONNX graph beside OpenVINO's, for other runtimes")
    golden_from: Literal["test", "rendered"] = Field(
        "test", description="golden examples from the test part, or rendered ones, so that the package shows no real person"
    )
    note: str | None = Field(None, description="shown at the top of the model card")


class Bound(Section):
    """Lowest and highest value that a figure may have."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> "Bound":
        if self.min is None and self.max is None:
            raise ValueError("a gate needs `min`, `max` or both")
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
    promotion: Promotion
    drift: Drift
    retrain: Retrain
    feedback: Feedback
    notifications: Notifications
    tune: Tune
    presets: dict[str, dict[str, Any]] = Field(description="named sets of values, applied with `python -m pipeline.settings NAME`")

    @model_validator(mode="after")
    def _rehearses_what_there_is(self) -> "Params":
        names = [source.name for source in self.data.sources] + ([FORGED] if self.data.forge else [])
        unknown = sorted(set(self.train.rehearsal) - set(names))
        if unknown:
            raise ValueError(f"train.rehearsal: no source is called {', '.join(unknown)}; there are: {', '.join(sorted(names))}")
        return self

    @model_validator(mode="after")
    def _forges_nothing_that_is_held_out(self) -> "Params":
        forge = self.train.forge
        both = sorted(forge.shown & set(self.split.holdout_generators)) if forge else []
        if both:
            raise ValueError(
                f"split.holdout_generators and train.forge.methods both name {', '.join(both)}: training would see forgeries "
                "of the kind that is supposed to be new in the part `unseen`. Remove it from one of them, or hold out none: "
                "python -m pipeline.settings -S 'split.holdout_generators=[]'"
            )
        return self

    @model_validator(mode="after")
    def _rewrites_copies(self) -> "Params":
        if self.ingest.rewrites and any(isinstance(source, FolderSource) and source.in_place for source in self.data.sources):
            raise ValueError(
                "ingest.normalise and ingest.face_margin make copies: the images of a source that is read in place stay as they are; "
                "set `in_place: false`"
            )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: naming the file, each wrong key or value, and the keys that are allowed there.
    """
    if not path.is_file():
        raise ParamsError(f"{path}: no such file; run from the project's root folder")
    return check_params(parse(path.read_text(), str(path)), path)


def parse(text: str, origin: str) -> Any:
    """Parse YAML. Raises ParamsError naming `origin` and the place of the error."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ParamsError(f"{origin}{place}: {what}") from None


def check_params(content: Any, path: Path) -> Params:
    """Validate the content of params.yaml. Raises ParamsError as `load_params` does; `path` is for its message."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            # An error between two sections has no location, and its input is the whole file.
            lines.append(f"  {where}: {problem['msg']}{_allowed(problem)}" if where else f"  {problem['msg']}")
        raise ParamsError(f"{path} is not valid:\n" + "\n".join(lines)) from None


def _allowed(problem: Any) -> str:
    if problem["type"] != "extra_forbidden":
        return f" (it is {problem['input']!r})"
    sections: list[type[Section]] = [Params]
    for part in problem["loc"][:-1]:
        kinds = [field.annotation for section in sections for name, field in section.model_fields.items() if part in (name, field.alias)]
        if kinds:
            sections = [section for kind in kinds for section in _sections(kind)]
        else:  # the member of a union or, if none has this name, a key or an index
            sections = [section for section in sections if _is_called(section, part)] or sections
    names = sorted({field.alias or name for section in sections for name, field in section.model_fields.items()})
    return f"; allowed here: {', '.join(names)}"


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation names, also inside a list, a mapping or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _is_called(section: type[Section], part: str | int) -> bool:
    """Whether Pydantic means this section of a union: by its `kind`, or by the name of its class."""
    kind = section.model_fields.get("kind")
    return part in get_args(kind.annotation) if kind else section.__name__ in str(part)
