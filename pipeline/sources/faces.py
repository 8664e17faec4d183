"""Renders stylised faces in linear light: a shaded head with features, hair and background, a different person in every picture."""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.forge.face import Face

SKIN = np.array([[0.86, 0.63, 0.50], [0.74, 0.50, 0.37], [0.58, 0.36, 0.24], [0.40, 0.23, 0.15], [0.24, 0.13, 0.09]])
SKIN_NAMES = ("very light", "light", "medium", "dark", "very dark")
HAIR = np.array([[0.03, 0.02, 0.02], [0.09, 0.05, 0.03], [0.24, 0.13, 0.06], [0.50, 0.36, 0.16], [0.38, 0.37, 0.36], [0.32, 0.09, 0.03]])
FRONT = np.array([0.0, 0.0, 1.0])
EYES = np.array([[0.10, 0.05, 0.03], [0.16, 0.25, 0.34], [0.16, 0.24, 0.12], [0.22, 0.14, 0.06]])


@dataclass(frozen=True)
class Scene:
    """A rendered picture before any camera.

    Attributes:
        light: float32 (side, side, 3), linear, about 0..1.
        face: the ellipse of the face in pixels of `light`.
        skin: name of the skin tone.
        lighting: "front" or "side".
    """

    light: np.ndarray
    face: Face
    skin: str
    lighting: str


class _Canvas:
    """A picture painted from back to front with soft-edged ellipses, in coordinates of the head (half width 1)."""

    def __init__(self, side: int, face: Face) -> None:
        rows, columns = np.mgrid[:side, :side].astype(np.float32)
        self.face = face
        self.u, self.v = (axis.astype(np.float32) for axis in face.axes(columns, rows))
        self.edge = 1.5 / face.half_width
        self.picture = np.zeros((side, side, 3), np.float32)

    def ellipse(self, u: float, v: float, a: float, b: float, tilt: float = 0.0) -> np.ndarray:
        """Coverage in 0..1 of an ellipse at (u, v) with half axes a and b."""
        cos, sin = float(np.cos(tilt)), float(np.sin(tilt))
        soft = self.edge / min(a, b)
        window = self._around(u, v, max(a, b) * (1 + 0.5 * soft))
        du, dv = self.u[window] - u, self.v[window] - v
        radius = np.sqrt(((du * cos + dv * sin) / a) ** 2 + ((dv * cos - du * sin) / b) ** 2)
        cover = np.zeros_like(self.u)
        cover[window] = np.clip((1 - radius) / soft + 0.5, 0, 1)
        return cover

    def paint(self, cover: np.ndarray, colour: np.ndarray) -> None:
        """Paint a colour, or a picture of colours, over what is there; only within the covered window, as most features are small."""
        rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
        if not len(rows):
            return
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        below = self.picture[window]
        below += cover[window][..., None] * ((colour[window] if colour.ndim == 3 else colour) - below)

    def _around(self, u: float, v: float, reach: float) -> tuple[slice, slice]:
        """A window of the pixels up to `reach` head units from (u, v), with some margin."""
        (x, y), pixels = self.face.place(u, v), reach * max(self.face.half_width, self.face.half_height) + 1
        return slice(max(0, int(y - pixels)), max(0, int(y + pixels) + 2)), slice(max(0, int(x - pixels)), max(0, int(x + pixels) + 2))


def render(rng: np.random.Generator, side: int) -> Scene:
    """Draw one person, `side` pixels square."""
    half_width = side * rng.uniform(0.25, 0.31)
    face = Face(
        side * rng.uniform(0.46, 0.54), side * rng.uniform(0.48, 0.55), half_width, half_width * rng.uniform(1.22, 1.42), rng.uniform(-9, 9)
    )
    canvas = _Canvas(side, face)
    tone = int(rng.integers(len(SKIN)))
    skin = SKIN[tone] * rng.uniform(0.88, 1.1) * rng.uniform(0.95, 1.05, 3)
    hair = HAIR[rng.integers(len(HAIR))] * rng.uniform(0.7, 1.4)
    turn = rng.uniform(-0.22, 0.22)

    canvas.picture[:] = _background(rng, side)
    long_hair = rng.random() < 0.5
    canvas.paint(canvas.ellipse(0, 0.15 if long_hair else -0.25, 1.22, 1.45 if long_hair else 0.95), _strands(rng, canvas, hair))
    canvas.paint(canvas.ellipse(0, 2.15, 2.1, 0.95), rng.uniform(0.02, 0.7, 3))
    canvas.paint(canvas.ellipse(0, 1.05, 0.5, 0.6), skin * 0.62)
    for way in (-1, 1):
        canvas.paint(canvas.ellipse(way * 1.0 - turn * 0.3, 0.05, 0.13, 0.2), skin * 0.8)

    lighting = "side" if rng.random() < 0.4 else "front"
    head = canvas.ellipse(0, 0, 1, 1)
    canvas.paint(head, _skin(rng, canvas, skin, turn, lighting))
    _features(rng, canvas, skin, hair, turn)
    fringe = rng.uniform(-0.95, -0.6)
    top = np.clip((fringe + 0.25 * (canvas.u * rng.uniform(-1, 1)) - canvas.v) / (canvas.edge * 2), 0, 1) * canvas.ellipse(
        0, -0.1, 1.12, 1.1
    )
    if rng.random() < 0.9:
        canvas.paint(top, _strands(rng, canvas, hair))
    return Scene(np.clip(canvas.picture, 0, 1.5), face, SKIN_NAMES[tone], lighting)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    across = np.linspace(0, 1, side, dtype=np.float32)
    one, other = rng.uniform(0.05, 0.8, (2, 3))
    ramp = across[None, :, None] if rng.random() < 0.5 else across[:, None, None]
    picture = np.broadcast_to(one + (other - one) * ramp, (side, side, 3)).astype(np.float32)
    cells = int(rng.integers(3, 12))
    clutter = cv2.resize(rng.uniform(-0.3, 0.3, (cells, cells, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + clutter * rng.uniform(0.2, 1), 0.01, 1)


def _strands(rng: np.random.Generator, canvas: _Canvas, hair: np.ndarray) -> np.ndarray:
    waves = np.sin(canvas.u * rng.uniform(25, 45) + np.sin(canvas.v * rng.uniform(2, 6)) * rng.uniform(1, 4))
    gloss = np.exp(-(((canvas.v + rng.uniform(0.5, 0.9)) / 0.25) ** 2))
    return hair * (1 + 0.25 * waves + 0.8 * gloss)[..., None]


def _skin(rng: np.random.Generator, canvas: _Canvas, skin: np.ndarray, turn: float, lighting: str) -> np.ndarray:
    side = canvas.u.shape[0]
    depth = np.sqrt(np.clip(1.15 - canvas.u**2 - canvas.v**2 * 0.8, 0.05, None))
    normal = np.stack([canvas.u, canvas.v * 0.8, depth], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    across = rng.choice([-1, 1]) * rng.uniform(0.6, 1.0) if lighting == "side" else rng.uniform(-0.3, 0.3)
    towards = np.array([across, rng.uniform(-0.7, -0.1), 0.9])
    towards /= np.linalg.norm(towards)
    diffuse = np.clip(normal @ towards, 0, 1)
    shine = np.clip(normal @ ((towards + FRONT) / np.linalg.norm(towards + FRONT)), 0, 1) ** rng.uniform(20, 50)
    pores = rng.normal(0, 1, (side, side)).astype(np.float32)
    pores = 0.02 * pores + 0.04 * cv2.GaussianBlur(pores, (0, 0), side / 60) * side / 30
    nose = 0.16 * np.exp(-(((canvas.u - turn) / 0.09) ** 2)) * ((canvas.v > -0.3) & (canvas.v < 0.3))
    blush = sum(np.exp(-((canvas.u - way * 0.5 - turn * 0.5) ** 2 + (canvas.v - 0.3) ** 2) / 0.05) for way in (-1, 1))
    colour = skin * (0.30 + 0.85 * diffuse + pores + nose)[..., None]
    colour[..., 0] += 0.05 * blush
    return colour + (rng.uniform(0.02, 0.2) * shine)[..., None]


def _features(rng: np.random.Generator, canvas: _Canvas, skin: np.ndarray, hair: np.ndarray, turn: float) -> None:
    apart, level = rng.uniform(0.36, 0.44), rng.uniform(-0.22, -0.12)
    width, open_ = rng.uniform(0.15, 0.2), rng.uniform(0.06, 0.105)
    iris, gaze = EYES[rng.integers(len(EYES))], rng.uniform(-0.05, 0.05)
    slant, brow = rng.uniform(-0.15, 0.15), rng.uniform(0.03, 0.065)
    for way in (-1, 1):
        u = way * apart + turn
        canvas.paint(0.35 * canvas.ellipse(u, level - 0.02, width * 1.5, open_ * 2.4), skin * 0.45)
        eye = canvas.ellipse(u, level, width, open_)
        canvas.paint(eye, np.array([0.82, 0.80, 0.78]))
        canvas.paint(eye * canvas.ellipse(u + gaze, level, 0.085, 0.085), iris)
        canvas.paint(eye * canvas.ellipse(u + gaze, level, 0.042, 0.042), np.array([0.01, 0.01, 0.01]))
        canvas.paint(canvas.ellipse(u + gaze + 0.03, level - 0.03, 0.018, 0.018), np.array([1.2, 1.2, 1.2]))
        canvas.paint(0.8 * canvas.ellipse(u, level - open_, width * 1.05, 0.022), skin * 0.2)
        canvas.paint(0.85 * canvas.ellipse(u, level - 0.22, width * 1.3, brow, way * slant), hair * 0.8)
        canvas.paint(0.75 * canvas.ellipse(way * 0.085 + turn, 0.33, 0.045, 0.03), skin * 0.25)
    canvas.paint(0.4 * canvas.ellipse(turn, 0.37, 0.17, 0.05), skin * 0.55)
    mouth, lips = rng.uniform(0.25, 0.36), skin * np.array([0.9, 0.5, 0.5])
    canvas.paint(0.9 * canvas.ellipse(turn * 0.8, 0.60, mouth, rng.uniform(0.06, 0.1)), lips)
    if rng.random() < 0.4:
        canvas.paint(canvas.ellipse(turn * 0.8, 0.60, mouth * 0.8, 0.035), np.array([0.85, 0.83, 0.78]))
    canvas.paint(0.9 * canvas.ellipse(turn * 0.8, 0.595, mouth * 0.95, 0.014), skin * 0.15)
    if rng.random() < 0.2:
        beard = canvas.ellipse(0, 0.55, 0.8, 0.55) * (1 - canvas.ellipse(turn * 0.8, 0.6, mouth, 0.09)) * canvas.ellipse(0, 0, 0.97, 0.99)
        canvas.paint(0.75 * beard * (canvas.v > 0.3), _strands(rng, canvas, hair))
    if rng.random() < 0.2:
        for way in (-1, 1):
            u = way * apart + turn
            rim = canvas.ellipse(u, level, 0.29, 0.22) - canvas.ellipse(u, level, 0.255, 0.185)
            canvas.paint(np.clip(rim, 0, 1), np.full(3, 0.03))
        canvas.paint(canvas.ellipse(turn, level - 0.02, 0.14, 0.02), np.full(3, 0.03))
