"""Names for cached results that depend on settings and code: if either changes, so does the name."""

import hashlib
from pathlib import Path

from pydantic import BaseModel

PACKAGE = Path(__file__).parent


def fingerprint(settings: BaseModel, *code: str, exclude: set[str] | None = None) -> str:
    """12 hex digits of a hash of the settings, without the fields in `exclude`, and of source text.

    Args:
        settings: a section of params.yaml, or other settings.
        code: files and folders of this package, such as "images.py" or "forge".
        exclude: fields of the settings that do not affect the result.
    """
    digest = hashlib.sha256(settings.model_dump_json(exclude=exclude).encode())
    for name in code:
        place = PACKAGE / name
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
