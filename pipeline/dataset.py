"""Images as training sees them: decoded once into a memory map, then served in pairs of a real and a fake."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from pipeline.augment import augment
from pipeline.forge import METHODS, Face
from pipeline.images import read
from pipeline.manifest import LABEL2ID
from pipeline.params import Augment, TrainForge
from pipeline.preprocess import Preprocess

CACHE = Path("var/cache")


def pixels(table: pd.DataFrame, preprocess: Preprocess) -> np.ndarray:
    """All images of a table, read-only and memory-mapped: uint8 (n, size, size, 3), in the table's order.

    They are decoded once for each list of images and each setting of the preprocessing, and kept in var/cache.
    """
    key = hashlib.sha256((preprocess.model_dump_json() + "".join(table["image_id"])).encode()).hexdigest()[:24]
    path = CACHE / f"{key}.npy"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        shape = (len(table), preprocess.size, preprocess.size, 3)
        store = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda file: preprocess.pixels(read(Path(file)).rgb), table["path"])
            for index, image in enumerate(tqdm(decoded, total=len(table), desc="decode", unit="image")):
                store[index] = image
        store.flush()
        part.replace(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Pairs(Dataset):
    """Training examples: a real and a fake, changed by the same augmentation.

    An epoch shows every image of the larger class once. The partner comes from the same group where the group has one (with `pairing`),
    otherwise it is any image of the other class, so that batches are balanced whatever the data set. With `forge`, a share of the fakes
    is forged on the spot from the real beside it.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        images: np.ndarray,
        preprocess: Preprocess,
        settings: Augment,
        pairing: bool,
        seed: int,
        forge: TrainForge | None = None,
    ) -> None:
        self.forge = forge
        self.images, self.preprocess, self.settings, self.seed, self.epoch = images, preprocess, settings, seed, 0
        labels = table["label"].map(LABEL2ID).to_numpy()
        self.of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
        self.larger = int(len(self.of_class[1]) > len(self.of_class[0]))
        self.groups = table["group"].to_numpy()
        partners = self.of_class[1 - self.larger]
        self.partners = pd.Series(partners).groupby(self.groups[partners]).agg(list).to_dict() if pairing else {}
        # A fake that was made from one real of its group differs from it in the forgery alone: the file names tell which.
        self.stems = [Path(path).stem for path in table["path"]]

    def __len__(self) -> int:
        return len(self.of_class[self.larger])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """pixel_values float32 (2, 3, size, size) and labels int64 (2,): first the real, then the fake."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        first = int(self.of_class[self.larger][index])
        candidates = self.partners.get(self.groups[first], self.of_class[1 - self.larger])
        same = [candidate for candidate in candidates if self.stems[candidate] == self.stems[first]] if len(candidates) < 50 else []
        second = int(rng.choice(same or candidates))
        real, fake = (first, second) if self.larger == 0 else (second, first)
        pictures = [self.images[real], self.images[fake]]
        if self.forge:
            pictures[1] = self._forged(real, index, self.forge, otherwise=pictures[1])
        changed = augment(pictures, self.settings, rng)
        return {"pixel_values": torch.from_numpy(self.preprocess.normalise(np.stack(changed))), "labels": torch.tensor([0, 1])}

    def _forged(self, real: int, index: int, forge: TrainForge, otherwise: np.ndarray) -> np.ndarray:
        """A fake of the real, or in the other part of the pairs, and where nothing came of it, the one that the data has."""
        rng = np.random.default_rng([self.seed, self.epoch, index, 1])  # of its own: the pair's other draws stay what they are
        if rng.random() >= forge.share:
            return otherwise
        method = METHODS[str(rng.choice(list(forge.methods), p=list(forge.methods.values())))]
        picture, donor = self.images[real], self.images[int(rng.choice(self.of_class[0]))]
        face = Face.centred(self.preprocess.size, self.preprocess.size)
        fake, mask = method(picture, face, donor, face, rng)
        return fake if mask.max() > 0 and not np.array_equal(fake, picture) else otherwise


class Singles(Dataset):
    """Images as they are, for validation."""

    def __init__(self, table: pd.DataFrame, images: np.ndarray, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess
        self.labels = table["label"].map(LABEL2ID).to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """pixel_values float32 (1, 3, size, size) and labels int64 (1,)."""
        image = self.preprocess.normalise(self.images[index][None])
        return {"pixel_values": torch.from_numpy(image), "labels": torch.tensor([self.labels[index]])}


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Join the images of several examples into one batch."""
    return {key: torch.cat([item[key] for item in items]) for key in ("pixel_values", "labels")}


def sheet(pairs: Pairs, path: Path, rows: int = 6) -> None:
    """Write a picture of augmented pairs, real above fake, for a person to look at."""
    columns = []
    for index in np.linspace(0, len(pairs) - 1, rows).astype(int):
        values = pairs[int(index)]["pixel_values"].numpy().transpose(0, 2, 3, 1)
        shown = (values * pairs.preprocess.std + pairs.preprocess.mean) * 255
        columns.append(np.concatenate(list(np.clip(shown, 0, 255).astype(np.uint8))))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(columns, axis=1)).save(path)
