"""The files of a model: which hold its weights, how many there are, and what their headers say.

Owns reading them without torch and without trusting them. What a directory is good for is decided
in `loadable`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from chatcache.backends.local.model.gguf.header import read_gguf
from chatcache.backends.local.model.gguf.parts import whole_parts
from chatcache.errors import ModelLoadError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"model-(\d{1,6})-of-(\d{1,6})\.safetensors")
_MAX_HEADER_BYTES = 100_000_000


def weight_files(path: Path) -> list[Path]:
    """The files with the weights of a model, safetensors in a directory or the parts of a GGUF
    file, in a fixed order. Raises ModelLoadError like the check."""
    if path.is_file():
        return whole_parts(path)
    single = path / WEIGHTS
    if single.is_file():
        return [single]
    if not (path / INDEX).is_file() and (parts := _numbered_parts(path)):
        return parts
    weight_map = read_object(path / INDEX).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelLoadError(f"{path / INDEX} does not say which file has which weights.")
    return [path / name for name in sorted(set(names))]


def weights_are_named(path: Path) -> bool:
    """Whether it is clear which files of a directory are the weights of its model."""
    is_described = (path / WEIGHTS).is_file() or (path / INDEX).is_file()
    return is_described or bool(_numbered_parts(path))


def has_no_index(path: Path) -> bool:
    """Whether the weights are in several files, and nothing but their names says which ones."""
    is_described = (path / WEIGHTS).is_file() or (path / INDEX).is_file()
    return path.is_dir() and not is_described and bool(_numbered_parts(path))


def _numbered_parts(path: Path) -> list[Path]:
    """The files of weights that count themselves, if all of them are there."""
    found = {
        int(match[1]): (file, int(match[2]))
        for file in path.glob("*.safetensors")
        if (match := _NUMBERED.fullmatch(file.name))
    }
    totals = {total for _, total in found.values()}
    is_whole = len(totals) == 1 and set(found) == set(range(1, max(totals) + 1))
    return [found[number][0] for number in sorted(found)] if is_whole else []


def count_parameters(path: Path) -> int:
    """The number of stored weights, from the file headers alone."""
    if path.is_file():
        return sum(read_gguf(part).num_parameters for part in whole_parts(path))
    total = 0
    for file in weight_files(path):
        total += sum(math.prod(tensor["shape"]) for tensor in read_header(file).values())
    return total


def count_bytes(path: Path) -> int:
    """The size of a model's weights on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def architecture_of(config: Mapping[str, Any]) -> str:
    """The name of the class that a config asks for; else the family."""
    declared = config.get("architectures")
    named = declared if isinstance(declared, list) else []
    return str(next(iter(named), config.get("model_type", "unknown")))


def read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path} is missing.") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # the latter: brackets nested by the thousand
        raise ModelLoadError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object.")
    return content


def read_header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, once its length is what the header promises.

    A file that is too short must never be memory-mapped: reading behind its end kills the process.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelLoadError(f"{path} is not a whole safetensors file.")
            tensors = _tensors(json.loads(file.read(length)))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} has a broken safetensors header.") from error
    ends = (entry["data_offsets"][1] for entry in tensors.values())
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelLoadError(
            f"{path} is truncated: it has {size:,} bytes instead of {expected:,}."
            if size < expected
            else f"{path} has {size - expected:,} bytes too many."
        )
    return tensors


def _tensors(header: Any) -> dict[str, Any]:
    """The entries of a safetensors header. Raises ValueError if it is another thing."""
    if not isinstance(header, dict):
        raise ValueError("not an object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for entry in tensors.values():
        shape, offsets = (
            entry.get(key) if isinstance(entry, dict) else None for key in ("shape", "data_offsets")
        )
        if not (_are_lengths(shape) and _are_lengths(offsets) and len(offsets) == 2):
            raise ValueError("no tensor")
    return tensors


def _are_lengths(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(length, int) and length >= 0 for length in value
    )
