"""HTML pages and Markdown cards from their templates. Pages work offline: their pictures are embedded."""

import base64
import io
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from pipeline.evaluation.metrics import figure_text, percent_text
from pipeline.images import ImageError, read

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 144
"""Pixels of a thumbnail's longer side."""


def render(template: str, **values: Any) -> str:
    """Render a template; values are escaped in .html. Raises jinja2.UndefinedError for a name without a value."""
    of_html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=of_html,  # noqa: S701 - the others are Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=not of_html,
        lstrip_blocks=not of_html,
    )
    environment.filters |= {"figure": figure_text, "percent": percent_text, "number": _number, "signed": partial(figure_text, sign="+")}
    return environment.get_template(template).render(values)


def data_uri(image: Image.Image) -> str:
    """A picture as a PNG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(path: Path) -> str | None:
    """A small copy of a picture as a data URI; None if it cannot be read."""
    try:
        image = read(path).rgb
    except (ImageError, OSError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return data_uri(image)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
