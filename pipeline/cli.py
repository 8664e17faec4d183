"""The command line that all stages share: `python -m pipeline.<stage>`."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.manifest import ManifestError
from pipeline.package import PackageError
from pipeline.params import Params, ParamsError, load_params


def stage(run: Callable[[Params], dict[str, Any]]) -> None:
    """Command line of a stage. It has no options, as all settings are in params.yaml; `--help` and unknown options must not start it."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.{Path(sys.argv[0]).stem}",
        description=sys.modules["__main__"].__doc__,
        epilog="Settings are in params.yaml: `python -m pipeline.settings -S KEY=VALUE` changes one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    checked(run)


def checked(run: Callable[[Params], dict[str, Any]]) -> None:
    """Call `run` with params.yaml; exit with 1 and one clear message on an error that the user can fix."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "alembic", "great_expectations", "mlflow", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        run(load_params())
    except (ParamsError, ManifestError, PackageError, StageError) as error:
        sys.exit(f"error: {error}")
