"""The sections of params.yaml for training: model, recipe, augmentation, search."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.params_data import Qualities, Range, Section, Share, Shares, sum_to_one

NETWORKS = Path("pipeline/network")
"""The code of our own networks, which DVC watches if the weights are not in a local folder."""


class Model(Section):
    """Which network, and its initial weights."""

    name: str = Field(description="hub name, local folder or, with init scratch, a transformers model type such as `vit`")
    init: Literal["pretrained", "scratch"]
    config: dict[str, Any] = Field(default_factory=dict, description="overrides of the transformers config; `image_size` is the input's")
    watch: Path = Field(default=NETWORKS, description="folder whose change makes DVC train again: that of local weights, or our networks")


class Lora(Section):
    """Low-rank updates of linear layers (Hu et al., ICLR 2022), merged into the weights after training."""

    r: int = Field(default=8, gt=0, description="rank")
    alpha: int = Field(default=16, gt=0, description="a change counts alpha / r times")
    targets: Literal["auto"] | list[str] = Field(
        default="auto", description="names of linear layers; `auto` is queries and values of attention"
    )


class Forging(Section):
    """Fakes forged from the training part's reals during training, new ones in each epoch."""

    share: Share = Field(description="of the pairs whose fake is forged on the spot")
    methods: dict[Literal["self_blend", "swap", "resynthesis"], Share] = Field(description="method -> share of these; shares sum to 1")

    _sums = model_validator(mode="after")(lambda self: sum_to_one(self, "methods"))

    @property
    def shown(self) -> set[str]:
        """Names of the methods whose fakes training sees."""
        return {method for method, share in self.methods.items() if self.share * share}

    def without(self, method: str) -> "Forging | None":
        """The same without one method; None if no other has a share."""
        rest = {name: share for name, share in self.methods.items() if name != method and share}
        return Forging(share=self.share, methods={name: share / sum(rest.values()) for name, share in rest.items()}) if rest else None


class Adversarial(Section):
    """Training on attacked pictures (Madry et al., ICLR 2018). A step of the attack costs as much as a training step."""

    eps: float = Field(gt=0, le=32, description="largest change of a pixel value, out of 255")
    steps: int = Field(gt=0, description="of the attack")


class Train(Section):
    """The training recipe."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=1, description="images in a batch, half of them real, over all processes together")
    tune: Literal["full", "head", "last_blocks", "layernorm", "lora"] = Field(
        "full", description="which weights are trained; `layernorm` is every norm layer and a head on normalised features"
    )
    last_blocks: int = Field(2, gt=0, description="blocks that are trained with tune: last_blocks, with all layers after them")
    lora: Lora = Lora()
    lr: float | Literal["auto"] = Field(
        description="`auto`: 1100 / parameters, 2e-4 for ViT-tiny and 1.3e-5 for ViT-base; 3e-4 if few weights are trained, 1e-3 for a head"
    )
    weight_decay: float = Field(ge=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup", "polynomial", "inverse_sqrt"] = Field(
        "cosine", description="of the learning rate after the warm-up, as transformers' Trainer knows it"
    )
    warmup: Share = Field(description="share of the steps with a rising learning rate")
    patience: int | None = Field(None, gt=0, description="epochs without a better validation AUC after which training ends")
    patch_dropout: float = Field(
        0, ge=0, lt=1, description="share of the patches that each batch leaves out of a ViT; with half of them a step takes half the time"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a moving average of the weights, which is then evaluated and kept")
    pairing: bool = Field(description="each real beside a fake of its own group, with the same augmentation")
    rank_weight: float = Field(ge=0, description="weight of softplus(-(s_fake - s_real)) over the pairs of a batch")
    rehearsal: dict[str, Share] = Field(
        default_factory=dict, description="source -> share of its training images that are used; sources not named are used in full"
    )
    forge: Forging | None = None
    adversarial: Adversarial | None = None
    label_smoothing: Share = Field(description="of the cross-entropy; 0 is none")
    bf16: bool | Literal["auto"] = Field(description="`auto`: if the processor has it in hardware")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="processes that prepare batches; 0: between the steps; `auto`: with a GPU all cores but two, else 0",
    )
    checkpoints_per_epoch: int = Field(gt=0, description="a killed run resumes from the last of them")
    seed: int


class Augment(Section):
    """Random changes of training images, the same for both pictures of a pair. Probabilities are per pair."""

    flip: Share = Field(description="probability")
    warp: Share = Field(description="probability of rotation, zoom and crop together: they resample, which wipes the finest traces")
    rotate: float = Field(ge=0, le=180, description="degrees either way")
    scale: Range = Field(description="zoom factor")
    crop: Share = Field(description="largest share of a side that a random crop takes away")
    brightness: Share = Field(description="largest shift, either way, as a share of 255")
    contrast: Share = Field(description="largest change of the factor, either way")
    colour: Share = Field(description="largest shift of each channel, either way, as a share of 127")
    hue: float = Field(0, ge=0, le=180, description="degrees either way")
    saturation: Share = Field(0, description="largest change of the factor, either way; so is `value`")
    value: Share = 0
    gamma: Share = Field(0, description="largest change of the exponent, either way")
    grayscale: Share = Field(description="probability")
    jpeg: Share = Field(description="probability")
    jpeg_quality: Qualities
    jpeg_444: Share = Field(0, description="share of all JPEG copies that keep full colour resolution (4:4:4, OpenCV; else 4:2:0, Pillow)")
    webp: Share = Field(0, description="probability")
    webp_quality: Qualities = (50, 95)
    blur: Share = Field(description="probability")
    blur_sigma: Range
    sharpen: Share = Field(0, description="probability")
    sharpen_strength: Range = (0.2, 1.0)
    noise: Share = Field(description="probability")
    noise_sigma: Range = Field(description="in units of 0..255")
    resize: Share = Field(description="probability of scaling and back, with interpolations drawn at random")
    resize_factor: Range
    thumbnail: Share = Field(0, description="probability of a small copy, stored as JPEG and shown large again")
    thumbnail_factor: Range = (0.3, 0.6)
    cutout: Share = Field(0, description="probability of a rectangle of one colour")
    cutout_side: Shares = Field((0.1, 0.4), description="its sides, as shares of the picture's")
    frequency_mask: Share = Field(0, description="probability of frequencies set to 0 (Doloriel and Cheung, ICASSP 2024)")
    frequency_share: Shares = Field((0.05, 0.15), description="of all frequencies")

    @property
    def off(self) -> bool:
        """Whether pictures stay as they are."""
        probabilities = (self.flip, self.warp, self.grayscale, self.jpeg, self.webp, self.blur, self.sharpen, self.noise, self.resize)
        more = (self.thumbnail, self.cutout, self.frequency_mask)
        amplitudes = (self.brightness, self.contrast, self.colour, self.hue, self.saturation, self.value, self.gamma)
        return not any(probabilities + more + amplitudes)


class Choice(Section):
    """One of several values."""

    choices: list[Any] = Field(min_length=2)


class Span(Section):
    """A range of numbers."""

    low: float
    high: float
    log: bool = Field(False, description="as many draws between 1e-5 and 1e-4 as between 1e-4 and 1e-3")
    whole: bool = Field(False, description="whole numbers")

    @model_validator(mode="after")
    def _spans(self) -> "Span":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}, and above 0 with `log`")
        return self


class Tune(Section):
    """The search of the flow `tune`."""

    trials: int = Field(gt=0)
    space: dict[str, Span | Choice] = Field(min_length=1, description="dotted key of a setting -> the values that are tried")
    seed: int
