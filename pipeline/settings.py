"""Writes values into params.yaml, keeping comments: `python -m pipeline.settings [PRESET ...] [--data F] [--model M] [-S key=value]`."""

import argparse
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.params import PARAMS_FILE, ParamsError, check_params, parse
from pipeline.params_train import NETWORKS
from pipeline.staging import write


class _Representer(RoundTripRepresenter):
    """Writes None as `null`, as params.yaml does, instead of nothing."""


_Representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))


def apply(values: Mapping[str, Any], path: Path = PARAMS_FILE) -> bool:
    """Set dotted keys in params.yaml, after checking that the result is valid; nothing is written otherwise.

    Returns:
        Whether the file changed.

    Raises:
        ParamsError: if a key does not exist or a value is not allowed.
    """
    yaml = YAML()
    # In params.yaml's own style, so that git shows what was changed and nothing else.
    yaml.width, yaml.preserve_quotes, yaml.Representer = 200, True, _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    before = path.read_text()
    was = parse(before, str(path))
    content = yaml.load(before)
    for key, value in values.items():
        *parents, last = key.split(".") if not key.startswith("gates.") else ["gates", key.removeprefix("gates.")]
        section = content
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                raise ParamsError(f"{path}: there is no section `{parent}` for {key}")
        section[last] = value
    buffer = io.StringIO()
    yaml.dump(content, buffer)
    now = parse(buffer.getvalue(), str(path))
    check_params(now, path)
    if now == was:
        return False
    write(path.resolve(), buffer.getvalue().encode())  # atomically: a full disk must not destroy what the user wrote there
    return True


def preset(name: str, path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The values of a preset, by dotted key.

    Raises:
        ParamsError: naming the presets that exist.
    """
    presets = parse(path.read_text(), str(path))["presets"]
    if name not in presets:
        raise ParamsError(f"{path}: no preset {name!r}; there are: {', '.join(presets)}")
    return {f"{section}.{key}": value for section, values in presets[name].items() for key, value in values.items()}


def folder_source(folder: Path) -> dict[str, Any]:
    """The values that make a folder of images the only data source."""
    if not folder.is_dir():
        raise ParamsError(f"{folder}: no such folder; it should hold real/ and fake/, or a manifest.csv")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._")[:64] or "folder"
    source = {"kind": "folder", "name": name, "path": str(folder)}
    return {"data.sources": [source], "data.watch": str(folder)}


def model_values(name: str) -> dict[str, Any]:
    """The values that make a pretrained model, by hub name or folder, the one that is trained.

    Raises:
        ParamsError: if it is a folder without a model: otherwise one would learn that only after the images are ingested.
    """
    folder = Path(name)
    if (folder.is_dir() or name.startswith((".", "/", "~"))) and not (folder / "config.json").is_file():
        raise ParamsError(f"{name}: there is no config.json; give a hub name, or the folder that has config.json and model.safetensors")
    watch = name if folder.is_dir() else NETWORKS.as_posix()
    return {"model.name": name, "model.init": "pretrained", "model.config": {}, "model.watch": watch}


def pairs(given: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of `-S`: dotted key -> value. Raises ParamsError for one without `=`, and for a value that is not YAML."""
    values = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ParamsError(f"-S {pair}: write it as key=value")
        values[key] = parse(value, f"-S {pair}")
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what to write."""
    parser.add_argument("presets", nargs="*", metavar="preset", help="named values under `presets`; a later one overrides an earlier one")
    parser.add_argument("--data", type=Path, help="folder of images that becomes the only source")
    parser.add_argument("--model", help="hub name or folder of the model")
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="any key, e.g. train.epochs=3")


def write_given(arguments: argparse.Namespace) -> None:
    """Write what the arguments of `add_arguments` say, and print which keys. Exits with a message if a value is not allowed."""
    try:
        values: dict[str, Any] = {}
        for name in arguments.presets:
            values |= preset(name)
        if arguments.data:
            values |= folder_source(arguments.data)
        if arguments.model:
            values |= model_values(arguments.model)
        values |= pairs(arguments.set)
        if apply(values):
            print(f"{PARAMS_FILE} changed: {', '.join(values)}. `git diff {PARAMS_FILE}` shows it.")
    except ParamsError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.settings", description="Write values into params.yaml.")
    add_arguments(parser)
    write_given(parser.parse_args())


if __name__ == "__main__":
    main()
