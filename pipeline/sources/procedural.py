"""The built-in data set: rendered faces, photographed by a simulated camera, and fakes that differ from them only in the forgery."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pipeline.fingerprint import fingerprint
from pipeline.forge import METHODS
from pipeline.forge.face import Face
from pipeline.ingestion import engine
from pipeline.manifest import NO_GENERATOR
from pipeline.params_data import ProceduralSource
from pipeline.sources.camera import photograph
from pipeline.sources.faces import render
from pipeline.staging import write

CODE = ("camera", "faces", "procedural")
GROUP_SIZE = 3
"""Reals per group. A swap takes its donor from the same group, so that a fake's parents are never separated."""


def listing(source: ProceduralSource, staging: Path) -> pd.DataFrame:
    """Render the data set into `staging`; existing files are kept.

    Image i depends only on the settings, the code and i, not on the number of workers or on earlier runs.

    Returns:
        One row per image: file, path, label, generator, group, skin, light.
    """
    out = staging / fingerprint(source, "forge", *(f"sources/{name}.py" for name in CODE), exclude={"name", "reals"})
    for label in ("real", "fake"):
        (out / label).mkdir(parents=True, exist_ok=True)
    groups = range(-(-source.reals // GROUP_SIZE))
    made = engine.run(partial(_group, source, out), groups, "local")
    table = pd.DataFrame([row for rows in tqdm(made, total=len(groups), desc="render", unit="group") for row in rows])
    return table.assign(file=out.as_posix() + "/" + table["path"])


def _group(source: ProceduralSource, out: Path, group: int) -> list[dict[str, str]]:
    return list(_rows(source, out, group))


def _rows(source: ProceduralSource, out: Path, group: int) -> Iterator[dict[str, str]]:
    indices = range(group * GROUP_SIZE, min((group + 1) * GROUP_SIZE, source.reals))
    shots = [_shot(source, index) for index in indices]
    for position, index in enumerate(indices):
        picture, own_face, attributes = shots[position]
        donor, donor_face, _ = shots[(position + 1) % len(shots)]
        rng = np.random.default_rng([source.seed, index, 1])
        generator = str(rng.choice(list(source.generators), p=list(source.generators.values())))
        quality = int(rng.integers(source.jpeg_quality[0], source.jpeg_quality[1] + 1))
        for label, made_by in (("real", NO_GENERATOR), ("fake", generator)):
            path = f"{label}/{index:06d}.jpg"
            if not (out / path).exists():
                pixels = picture if label == "real" else METHODS[generator](picture, own_face, donor, donor_face, rng)[0]
                _save(pixels, out / path, quality)
            yield {"path": path, "label": label, "generator": made_by, "group": f"{group:05d}", **attributes}


def _shot(source: ProceduralSource, index: int) -> tuple[np.ndarray, Face, dict[str, str]]:
    rng = np.random.default_rng([source.seed, index, 0])
    scene = render(rng, 2 * source.size)
    picture = photograph(scene.light, source.size, rng)
    shown = Face(scene.face.x / 2, scene.face.y / 2, scene.face.half_width / 2, scene.face.half_height / 2, scene.face.tilt)
    return picture, shown, {"skin": scene.skin, "light": scene.lighting}


def _save(pixels: np.ndarray, path: Path, quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    write(path, buffer.getvalue())
