"""A package is exactly the files that it lists."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.package import META, PackageError, verify


def of_another_format(folder: Path) -> None:
    content = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(content | {"format": content["format"] + 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "card.md").unlink(), r"card\.md is missing"),
        (lambda folder: (folder / "card.md").write_text("# Trust me"), r"card\.md was changed"),
        (lambda folder: (folder / "model" / "weights.pkl").write_bytes(b"code"), r"weights\.pkl does not belong to the package"),
        (lambda folder: (folder / META).write_text("{}"), r"package\.json cannot be read"),
        (lambda folder: (folder / META).unlink(), r"is not a model package: it has no package\.json"),
        (of_another_format, r"package\.json has format \d+; this version reads format \d+"),
    ],
)
def test_a_package_that_is_not_as_it_was_sealed_is_refused(package: Path, tmp_path: Path, change: Callable[[Path], object], message: str):
    folder = Path(shutil.copytree(package, tmp_path / "package"))
    verify(folder)
    change(folder)
    with pytest.raises(PackageError, match=message):
        verify(folder)
