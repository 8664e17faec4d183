"""Images as training sees them: decoded once into a memory map, then served in pairs of a real and a fake."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.fingerprint import fingerprint
from pipeline.forge import METHODS, Face, changed
from pipeline.images import OWN, read
from pipeline.labels import LABEL2ID
from pipeline.manifest import origins
from pipeline.params_train import Augment, Forging
from pipeline.preprocess import Preprocess
from pipeline.staging import CACHE, make_once
from pipeline.training.augment import augment, jpeg

TRIES = 3
"""Attempts at a forgery that changes anything; if all fail, the fake of the data set is used."""
SHEET_PAIRS = 6
STORED = (60, 95)
"""Range of JPEG qualities for pairs whose fake is forged on the fly."""


def pixels(table: pd.DataFrame, preprocess: Preprocess) -> np.ndarray:
    """All images of a table, read-only and memory-mapped: uint8 (n, size, size, 3), in the table's order.

    They are decoded once per list of images and per settings and code of the preprocessing, and kept in var/cache.
    """
    path = CACHE / f"{cache_key(table, preprocess)}.npy"

    def decode(part: Path) -> None:
        shape = (len(table), preprocess.size, preprocess.size, 3)
        store = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda file: preprocess.pixels(read(Path(file), OWN).rgb), table["path"])
            for index, image in enumerate(tqdm(decoded, total=len(table), desc="decode", unit="image")):
                store[index] = image
        store.flush()

    make_once(path, decode)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def cache_key(table: pd.DataFrame, preprocess: Preprocess) -> str:
    """Prefix of names in var/cache: 24 hex digits that depend on the list of images and on settings and code of the preprocessing."""
    made = fingerprint(preprocess, "images.py", "preprocess.py")
    return hashlib.sha256((made + "".join(table["image_id"])).encode()).hexdigest()[:24]


def keep_cached(tables: Iterable[pd.DataFrame], preprocess: Preprocess) -> None:
    """Remove other lists of images from var/cache: each version of the data leaves another copy of all its images there.

    A process that has them open can read them until it ends.
    """
    kept = {cache_key(table, preprocess) for table in tables}
    for path in CACHE.glob("*.npy"):
        if path.name[:24] not in kept:
            path.unlink(missing_ok=True)


def rehearsed(table: pd.DataFrame, shares: Mapping[str, float]) -> pd.DataFrame:
    """The training images to use: a share of each source, in whole groups, selected by a hash of the group's name.

    So a smaller share is a subset of a larger one, and new groups do not change which old ones are used.

    Args:
        table: the training part.
        shares: name of a source -> share of its groups; sources not named are used in full.

    Raises:
        StageError: if no real or no fake is left.
    """
    lots = table["group"].map(lambda group: int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64)
    shown = table[lots < [shares.get(source, 1.0) for source in table["source"]]].reset_index(drop=True)
    for label in LABEL2ID:
        if not (shown["label"] == label).any():
            raise StageError(f"train.rehearsal: with {dict(shares)} no {label} image is left to train on; raise a share")
    return shown


class Pairs(Dataset):
    """Training examples: a real and a fake, changed by the same augmentation.

    An epoch shows every image of the larger class once, each with a random partner from the other class, so that batches are always
    balanced. With `pairing`, the partner comes from the same group if the group has one. Images of the smaller class that can then be
    nobody's partner, usually because their group has no image of the larger class, get examples of their own at the end. With `forging`,
    a share of the fakes is forged from the pair's real on the fly, anew in each epoch.

    All draws depend only on seed, epoch and index: it does not matter which process makes an example, and a resumed training sees the
    same examples as one that was never interrupted.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        images: np.ndarray,
        settings: Augment,
        pairing: bool,
        seed: int,
        forging: Forging | None = None,
    ) -> None:
        self.images, self.settings, self.seed, self.forging = images, settings, seed, forging
        # In shared memory, because data loader workers live through all epochs.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.labels = table["label"].map(LABEL2ID).to_numpy()
        self.of_class = [np.flatnonzero(self.labels == label) for label in (0, 1)]
        self.groups = table["group"].to_numpy()
        self.partners = [pd.Series(found).groupby(self.groups[found]).agg(list).to_dict() if pairing else {} for found in self.of_class]
        # A fake differs from the real that it was made from in the forgery alone.
        self.made: dict[int, list[int]] = {}
        if pairing:
            rows, fakes = {path: row for row, path in enumerate(table["path"])}, self.of_class[1].tolist()
            for fake, origin in zip(fakes, origins(table.iloc[fakes], table), strict=True):
                if origin is not None:
                    self.made[fake] = [rows[origin]]
                    self.made.setdefault(rows[origin], []).append(fake)
        larger = int(len(self.of_class[1]) > len(self.of_class[0]))
        self.firsts = self.of_class[larger]
        if pairing:
            chosen: set[int] = set().union(*map(self._candidates, self.firsts.tolist()))
            left = [image for image in self.of_class[1 - larger] if image not in chosen]
            self.firsts = np.concatenate([self.firsts, np.array(left, np.int64)])

    def __len__(self) -> int:
        return len(self.firsts)

    @property
    def epoch(self) -> int:
        """Number of the epoch, on which all draws depend."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch[0] = number

    def __getitem__(self, index: int) -> dict[str, Any]:
        """pixel_values uint8 (2, size, size, 3) and labels int64 (2,): first the real, then the fake.

        Bytes, not floats: workers send them in a quarter of the time, and the trainer normalises them on its own device.
        """
        rng = self.draw(index)
        real, fake = self.choose(index, rng)
        forged = self.forge(index, real) if self.forging else None
        shown = augment(forged or [self.images[real], self.images[fake]], self.settings, rng)
        return {"pixel_values": torch.from_numpy(np.stack(shown)), "labels": torch.tensor([0, 1])}

    def draw(self, index: int) -> np.random.Generator:
        """Random generator of an example in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, index])

    def choose(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """Indices of the real and the fake of an example."""
        first = int(self.firsts[index])
        label = self.labels[first]
        second = int(rng.choice(self._candidates(first) or self.of_class[1 - label]))
        return (first, second) if label == 0 else (second, first)

    def _candidates(self, first: int) -> list[int]:
        """Possible partners: the real that a fake was made from, or the fakes made from a real; if unknown, all of the image's group."""
        return self.made.get(first) or self.partners[1 - self.labels[first]].get(self.groups[first], [])

    def forge(self, index: int, real: int) -> list[np.ndarray] | None:
        """The example's real and a fake forged from it, each uint8 (size, size, 3); None for examples that keep the fake of the data set.

        Half of the reals first get another colour and sharpness themselves (Shiohara and Yamasaki 2022 change either source or target), so
        that such a change alone does not make a fake. Both images are then saved as JPEG alike: otherwise the JPEG blocks of the real would
        end where the forgery begins, which no forgery in the wild shows.
        """
        assert self.forging is not None
        # A separate generator, so that the other draws of an example are the same with and without forging.
        rng = np.random.default_rng([self.seed, self.epoch, index, 1])
        if rng.random() >= self.forging.share:
            return None
        target, donor = self.images[real], self.images[int(rng.choice(self.of_class[0]))]
        if rng.random() < 0.5:
            target = changed(target, rng)
        face = Face.centred(target.shape[1], target.shape[0])
        method = METHODS[str(rng.choice(list(self.forging.methods), p=list(self.forging.methods.values())))]
        for _ in range(TRIES):
            fake, mask = method(target, face, donor, face, rng)
            if mask.max() > 0 and not np.array_equal(fake, target):
                store = jpeg(self.settings.jpeg_444, rng.uniform(*STORED), rng)
                return [store(target), store(fake)]
        return None


class Singles(Dataset):
    """Single images without augmentation, for validation."""

    def __init__(self, table: pd.DataFrame, images: np.ndarray) -> None:
        self.images = images
        self.labels = table["label"].map(LABEL2ID).to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """pixel_values uint8 (1, size, size, 3) and labels int64 (1,)."""
        return {"pixel_values": torch.from_numpy(self.images[[index]]), "labels": torch.tensor([self.labels[index]])}


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Join the images of several examples into one batch."""
    return {key: torch.cat([item[key] for item in items]) for key in ("pixel_values", "labels")}


def sheet(pairs: Pairs, path: Path) -> None:
    """Write a contact sheet of augmented pairs, real above fake, for visual inspection."""
    shown = np.linspace(0, len(pairs) - 1, SHEET_PAIRS).astype(int).tolist()
    columns = [np.concatenate(list(pairs[index]["pixel_values"].numpy())) for index in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(columns, axis=1)).save(path)
