"""What every stage does when it is called as `python -m pipeline.<stage>`."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from pipeline.errors import StageError
from pipeline.manifest import ManifestError
from pipeline.package import PackageError
from pipeline.params import Params, ParamsError, load_params


def stage(run: Callable[[Params], dict[str, Any]]) -> None:
    """Run a stage with params.yaml; end the process with 1 and one clear message where the user can put things right."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "alembic", "great_expectations", "mlflow", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        run(load_params())
    except (ParamsError, ManifestError, PackageError, StageError) as error:
        sys.exit(f"error: {error}")
