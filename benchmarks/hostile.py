"""Reproducible files made to break a decoder: damaged ones, false headers, decompression bombs, and two formats in one file."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from benchmarks.load import photograph
from pipeline.images import FORMATS

LOOP = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
"""An EXIF directory whose next page and only entry both point back to it."""


def damaged(count: int, seed: int = 0) -> Iterator[bytes]:
    """Files of every format, each truncated, with bytes changed anywhere or in its header, or with a part of itself appended."""
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    image = Image.open(io.BytesIO(photograph(96, seed)))
    files = [_saved(image, kind) for kind in FORMATS]
    for number in range(count):
        yield _mutated(files[number % len(files)], rng)


def special() -> dict[str, bytes]:
    """Description -> file."""
    small = Image.new("RGB", (8, 8), "gray")
    jpeg, png = _saved(small, "JPEG"), _saved(small, "PNG")
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    frames = [Image.new("P", (8, 8), index % 2) for index in range(10_000)]
    many = io.BytesIO()
    frames[0].save(many, "GIF", save_all=True, append_images=frames[1:])
    return {
        "bomb of 10,000 x 10,000 zeros": png_of(10_000, 10_000, zlib.compress(bytes(30_010_000), 9)),
        "bomb within the limit": png_of(7_000, 7_000, zlib.compress(bytes((7_000 * 3 + 1) * 7_000), 9)),
        "header that promises 60,000 x 60,000": png_of(60_000, 60_000, zlib.compress(bytes(1000))),
        "header that promises 2**31 pixels a side": png_of(2**31 - 1, 2**31 - 1, zlib.compress(bytes(1000))),
        "header that promises nothing": png_of(0, 0, b""),
        "JPEG that promises 65,500 x 65,500": _jpeg_claiming(jpeg, 65_500, 65_500),
        "JPEG of 1,000 scans": _jpeg_scanned(_saved(Image.new("L", (1000, 1000)), "JPEG", progressive=True), 1000),
        "JPEG with a script behind it": jpeg + b"<script>alert(1)</script>" * 1000,
        "ZIP behind a PNG": png + b"PK\x03\x04" + bytes(1000),
        "PDF before a JPEG": b"%PDF-1.7\n" + jpeg,
        "10,000 frames": many.getvalue(),
        "colour profile of 4 MB": _saved(small, "PNG", icc_profile=bytes(4_000_000)),
        "colour profile that is none": _saved(small, "JPEG", icc_profile=b"\xff" * 60_000),
        "EXIF of 60 kB": _saved(small, "JPEG", exif=exif),
        "EXIF that points at itself": _saved(small, "JPEG", exif=LOOP),
        "TIFF that is its own next page": b"II*\0\x08\0\0\0\x00\0\x08\0\0\0",
        "TIFF of 16 x 16 in a tile of 16,384 x 16,384": _tiff_tiled(4, 16_384),
        "TIFF whose tile is hidden from Pillow": _tiff_tiled(17, 16_384),
        "text of 10 MB in 10 kB": png[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000), 9)) + png[33:],
        "10,000 chunks": png[:33] + chunk(b"tEXt", b"a\0b") * 10_000 + png[33:],
        "1 x 50,000,000 pixels": png_of(1, 50_000_000, zlib.compress(bytes(1000))),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """An 8-bit RGB PNG with this size in its header and these compressed rows, whether or not they match."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _jpeg_claiming(data: bytes, width: int, height: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def _jpeg_scanned(data: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan repeated this many times more."""
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]


def _tiff_tiled(kind: int, side: int) -> bytes:
    """A gray TIFF of 16 x 16 in one tile, whose side is stored as TIFF type `kind`: 4 has 32 bits, 17 has 64."""
    packed = zlib.compress(bytes(side * side), 9)
    tags = {256: (4, 16), 257: (4, 16), 258: (3, 8), 259: (3, 8), 262: (3, 1), 273: (4, 0), 277: (3, 1), 278: (4, 16)}
    tags |= {279: (4, len(packed)), 284: (3, 1), 322: (kind, side), 323: (kind, side), 324: (4, 0), 325: (4, len(packed))}
    behind = 10 + 12 * len(tags) + 4
    file = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, (form, value) in tags.items():
        stands = behind if form == 17 else behind + 8 if tag in (273, 324) else value
        file += struct.pack("<HHII", tag, form, 1, stands)
    return file + bytes(4) + struct.pack("<q", side) + packed


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    kind = rng.choice(("cut", "flip", "header", "appended"))
    if kind == "cut":
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == "appended":
        return data + data[: rng.randrange(len(data))]
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(changed) if kind == "flip" else min(200, len(changed)))] = rng.randrange(256)
    return bytes(changed)
