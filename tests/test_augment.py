"""Augmentation: each change has an effect, the same on both images of a pair, and none if it is off."""

import numpy as np
import pytest

from pipeline.params import load_params
from pipeline.params_train import Augment
from pipeline.training.augment import augment
from tests.conftest import ROOT

DEFAULT = load_params(ROOT / "params.yaml").augment
KINDS = "flip warp brightness contrast colour hue saturation value gamma grayscale jpeg webp blur sharpen noise resize thumbnail cutout"
OFF = DEFAULT.model_copy(update=dict.fromkeys([*KINDS.split(), "frequency_mask"], 0))
CHANGES: dict[str, dict[str, object]] = {
    "flip": {"flip": 1.0},
    "rotate": {"warp": 1.0, "rotate": 20, "scale": (1.0, 1.0), "crop": 0},
    "scale": {"warp": 1.0, "rotate": 0, "scale": (1.2, 1.3), "crop": 0},
    "crop": {"warp": 1.0, "rotate": 0, "scale": (1.0, 1.0), "crop": 0.3},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.3},
    "colour": {"colour": 0.3},
    "hue": {"hue": 40},
    "saturation": {"saturation": 0.5},
    "value": {"value": 0.3},
    "gamma": {"gamma": 0.5},
    "grayscale": {"grayscale": 1.0},
    "jpeg": {"jpeg": 1.0},
    "webp": {"webp": 1.0},
    "blur": {"blur": 1.0},
    "sharpen": {"sharpen": 1.0},
    "noise": {"noise": 1.0},
    "resize": {"resize": 1.0},
    "enlarge": {"resize": 1.0, "resize_factor": (1.2, 1.3)},
    "thumbnail": {"thumbnail": 1.0},
    "cutout": {"cutout": 1.0},
    "frequency_mask": {"frequency_mask": 1.0},
}


def picture(seed: int = 0, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)


def changed(pictures: list[np.ndarray], settings: Augment, seed: int = 1) -> list[np.ndarray]:
    return augment(pictures, settings, np.random.default_rng(seed))


def test_where_all_is_off_pictures_stay():
    assert OFF.off and not DEFAULT.off
    assert np.array_equal(changed([picture()], OFF)[0], picture())
    still = OFF.model_copy(update={"warp": 1.0, "rotate": 0, "scale": (1.0, 1.0), "crop": 0})
    assert np.array_equal(changed([picture()], still)[0], picture())


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_does_the_same_to_both_pictures_of_a_pair(name: str):
    settings = Augment.model_validate(OFF.model_dump() | CHANGES[name])
    assert not settings.off
    real, fake = changed([picture(), picture()], settings)
    assert real.shape == picture().shape and real.dtype == np.uint8
    assert np.array_equal(real, fake) and not np.array_equal(real, picture())
    assert np.array_equal(real, changed([picture()], settings)[0])  # the seed determines the draw
    assert any(not np.array_equal(real, changed([picture()], settings, seed)[0]) for seed in range(2, 9)) or name in ("flip", "grayscale")


def test_jpeg_comes_in_two_kinds_of_colour_subsampling():
    settings = Augment.model_validate(OFF.model_dump() | {"jpeg": 1.0, "jpeg_quality": (90, 90), "jpeg_444": 0.5})
    kinds = {changed([picture()], settings, seed)[0].tobytes() for seed in range(16)}
    assert len(kinds) == 2


@pytest.mark.parametrize("name", ["jpeg", "jpeg_444", "webp", "blur", "sharpen", "noise", "resize", "thumbnail", "frequency_mask"])
def test_a_degradation_leaves_the_colours_of_a_picture(name: str):
    orange = np.clip(picture(side=64) // 8 + np.array([200, 110, 10]), 0, 255).astype(np.uint8)
    kind = {"jpeg": 1.0, "jpeg_444": 1.0} if name == "jpeg_444" else {name: 1.0}
    settings = Augment.model_validate(OFF.model_dump() | kind)
    for seed in range(12):
        np.testing.assert_allclose(changed([orange], settings, seed)[0].mean((0, 1)), orange.mean((0, 1)), atol=6)


def test_a_pair_still_differs_in_its_forgery_after_all_changes():
    forged = picture(side=64)
    forged[24:40, 24:40] = 255
    content = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    robust = Augment.model_validate(content["augment"] | content["presets"]["robust"]["augment"] | {"cutout": 0})
    for seed in range(20):
        real, fake = changed([picture(side=64), forged], robust, seed)
        assert not np.array_equal(real, fake)


def test_what_is_off_draws_nothing():
    """A new setting must not change the figures of trainings that do not use it."""
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    augment([picture()], DEFAULT, rng)
    augment([picture()], DEFAULT.model_copy(update={"webp_quality": (1, 2), "cutout_side": (0.5, 0.6)}), other)
    assert rng.bit_generator.state == other.bit_generator.state
