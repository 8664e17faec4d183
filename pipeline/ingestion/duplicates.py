"""Finds images that belong together: same person or source, same picture, a fake and its parents."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

EXTRA_BLOCKS = 3
FOLD = 4_000_000
"""Pairs held in memory at a time: 64 MB."""


class Links(NamedTuple):
    """A graph of images and what they share.

    Nodes 0..images-1 are the rows of the table; each further node is a group, a picture or a cluster of near-duplicates, linked to the
    rows that have it.
    """

    images: int
    nodes: int
    edges: dict[str, np.ndarray]
    """`group`, `pixel_hash`, `near_duplicates`, `parents` -> int (edges, 2), pairs of nodes, an image first."""

    def components(self, *kinds: str) -> np.ndarray:
        """Label the connected components: a number 0.. for each image. Only edges of the named kinds count, or all if none is named."""
        edges = np.concatenate([self.edges[kind] for kind in kinds or self.edges])
        return np.unique(join(edges, self.nodes)[: self.images], return_inverse=True)[1]


def links(table: pd.DataFrame, radius: int) -> Links:
    """Link the rows of a manifest that belong together.

    Args:
        table: rows of the manifest, with unique image_ids. Parents that are not among them are ignored.
        radius: images whose perceptual hashes, or that of one and of the other's mirror image, differ in at most this many of 64 bits are
            near-duplicates.
    """
    images = len(table)
    row, parent = _parents(table)
    shared = {
        "group": pd.factorize(table["group"])[0],
        "pixel_hash": pd.factorize(table["pixel_hash"].where(table["pixel_hash"] != ""))[0],
        "near_duplicates": clusters(table, radius).to_numpy(),
    }
    nodes = images
    edges = {}
    for kind, codes in shared.items():
        known = np.flatnonzero(codes >= 0)
        edges[kind] = np.stack([known, nodes + codes[known]], axis=1)
        nodes += int(codes.max(initial=-1)) + 1
    return Links(images, nodes, edges | {"parents": np.stack([row, parent], axis=1)})


def clusters(table: pd.DataFrame, radius: int) -> pd.Series:
    """The cluster of near-duplicates of each row: a number 0.., equal for rows that a chain of near-duplicates connects.

    A near-duplicate of a picture's mirror image counts as one of the picture: training flips pictures at random.
    """
    hashes = np.concatenate([_numbers(table["phash"]), _numbers(table["mirrored_phash"])])
    distinct, inverse = np.unique(hashes, return_inverse=True)
    upright, mirrored = np.split(inverse, 2)
    cluster = np.arange(len(distinct))
    held = [np.stack([upright, mirrored], axis=1)]
    for pairs in near_duplicates(distinct, radius):
        held.append(pairs)
        if sum(map(len, held)) > FOLD:  # merging them now and then keeps memory flat however many there are
            cluster = _fold(cluster, held)
            held = []
    return pd.Series(_fold(cluster, held)[upright], index=table.index)


def near_duplicates(hashes: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """All pairs of hashes that differ in at most `radius` bits: exact, each pair once, in chunks.

    The 64 bits are cut into `radius + EXTRA_BLOCKS` blocks. Two near hashes agree on all but at most `radius` of them, so it is enough to
    compare hashes that agree on EXTRA_BLOCKS blocks, for every choice of these (Manku et al., WWW 2007, "Detecting near-duplicates for
    web crawling").

    Args:
        hashes: uint64 (n,). Equal ones form pairs, too: remove duplicates first if there are many.
        radius: largest number of differing bits.

    Yields:
        int (pairs, 2) of indices.
    """
    blocks = min(radius + EXTRA_BLOCKS, 64)
    masks = [np.uint64(sum(1 << bit for bit in range(block, 64, blocks))) for block in range(blocks)]
    for chosen in itertools.combinations(range(blocks), blocks - radius):
        mask = np.bitwise_or.reduce([masks[block] for block in chosen])
        earlier = [masks[block] for block in range(chosen[-1]) if block not in chosen]
        order = np.argsort(hashes & mask)
        values = hashes[order]
        agrees = (values[1:] ^ values[:-1]) & mask == 0
        run = np.flatnonzero(agrees)  # positions whose neighbour `step` further on agrees with them
        for step in itertools.count(1):
            if not len(run):
                break
            difference = values[run] ^ values[run + step]
            near = np.flatnonzero(np.bitwise_count(difference) <= radius)
            for other in earlier:  # pairs that agree there were found with an earlier choice
                near = near[difference[near] & other != 0]
            if len(near):
                yield np.stack([order[run[near]], order[run[near] + step]], axis=1)
            run = run[run + step < len(agrees)]
            run = run[agrees[run + step]]


def join(edges: np.ndarray, nodes: int) -> np.ndarray:
    """Label the connected components of a graph, int (edges, 2) of nodes: a number 0.. for each node."""
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1]


def positions(values: pd.Series | pa.Array, among: pd.Series | pa.Array) -> np.ndarray:
    """Index of each string in `among`: int (values,), -1 if it is not there."""
    return pc.index_in(_flat(values), value_set=_flat(among)).fill_null(-1).to_numpy()


def _numbers(hashes: pd.Series) -> np.ndarray:
    """Hashes of 16 hex digits as uint64."""
    return np.frombuffer(bytes.fromhex("".join(hashes.to_numpy())), ">u8").astype(np.uint64)


def _fold(cluster: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    """The clusters after merging those of each pair."""
    return join(cluster[np.concatenate(pairs)], cluster.max() + 1)[cluster] if pairs else cluster


def _parents(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of fakes and, beside each, the row of one of its parents."""
    named = pc.utf8_split_whitespace(_flat(table["parents"]))
    row = pc.list_parent_indices(named).to_numpy()
    parent = positions(pc.list_flatten(named), table["image_id"])
    return row[parent >= 0], parent[parent >= 0]


def _flat(values: pd.Series | pa.Array) -> pa.Array:
    array = pa.array(values)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
