"""Which of several GGUF files is meant, in a repository or a folder, by names and sizes alone.

Owns what the name of a file says of its quantisation, the grouping of parts, and which file is
taken where none is named. Files are neither opened nor fetched here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chatcache.backends.local.model.gguf.parts import SUFFIX, parts_of, stem
from chatcache.formatting import one_line, size

_WORD = re.compile(
    r"(?:^|[-._ ])"
    r"((?:(?:UD|i1)-)?"
    r"(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d(?:_\d)?|BF16|FP?16|FP?32|(?:MX|NV)FP4(?:_MOE)?))"
    r"(?=$|[-._ ])",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"(?:UD|I1)-")
# What lies beside models and is none: the eye of one, statistics for quantising, a vocabulary.
_BESIDE = re.compile(r"mmproj|imatrix|ggml-vocab", re.IGNORECASE)
# What a person who names none gets: small, and close to the original; then the nearest to that.
_PREFERRED = (
    *("Q4_K_M", "Q4_K_S", "Q4_K", "Q4_K_L", "Q4_0", "Q4_1", "Q4", "Q4_K_XL", "IQ4_NL", "IQ4_XS"),
    *("Q5_K_M", "Q5_K_S", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "MXFP4", "MXFP4_MOE"),
    *("Q3_K_M", "Q3_K_L", "Q3_K_S", "BF16", "F16", "F32"),
)
_MAX_LISTED = 40


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A model among files: `names` are its parts in order, as their folder or repository has them.

    `missing`: the parts that are not there."""

    names: tuple[str, ...]
    num_bytes: int
    missing: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        return stem(PurePosixPath(self.names[0]).name)

    @property
    def quantization(self) -> str:
        """What its name, or that of its folder, says: `Q4_K_M`; "" where that says nothing."""
        path = PurePosixPath(self.names[0])
        return quantization_in(self.stem) or quantization_in(path.parent.name)

    @property
    def typed_names(self) -> set[str]:
        """What may be typed for its file, folded."""
        files = {PurePosixPath(name).name for name in self.names}
        return {name.casefold() for name in {self.stem, *self.names, *files}}

    @property
    def words(self) -> str:
        """What somebody types to get it, and its size."""
        return f"{one_line(self.quantization or self.stem)} ({size(self.num_bytes)})"


def quantization_in(name: str) -> str:
    """The last quantisation that a name without a suffix speaks of, in capitals; else ""."""
    found = _WORD.findall(name)
    return _spelt(found[-1]) if found else ""


def _spelt(word: str) -> str:
    return word.upper().replace("FP16", "F16").replace("FP32", "F32")


def models_among(files: Iterable[tuple[str, int]]) -> list[GgufFile]:
    """The models among files of these names (with `/` between folders) and sizes, in order."""
    sizes = {name: num_bytes for name, num_bytes in files if _is_model(name)}
    groups: dict[tuple[str, ...], None] = {}
    for name in sorted(sizes):
        groups[tuple(str(part) for part in parts_of(Path(name)))] = None
    return [
        GgufFile(
            names,
            sum(sizes.get(name, 0) for name in names),
            tuple(name for name in names if name not in sizes),
        )
        for names in groups
    ]


def matching(models: Iterable[GgufFile], wanted: str) -> list[GgufFile]:
    """Those that `wanted` names: a quantisation, or else a file, with its suffix or without."""
    models, word, folded = list(models), _spelt(wanted), wanted.casefold()
    # `UD-` and `i1-` say who quantised, and need not be typed where nothing is without them.
    exact = [model for model in models if model.quantization == word]
    alike = [model for model in models if _PREFIX.sub("", model.quantization) == word]
    named = [model for model in models if folded in model.typed_names]
    return exact or alike or named


def preferred(models: Sequence[GgufFile]) -> GgufFile:
    """The one that is taken where none is named; `models` must not be empty."""

    def rank(model: GgufFile) -> tuple[int, int]:
        word = _PREFIX.sub("", model.quantization)
        known = _PREFERRED.index(word) if word in _PREFERRED else len(_PREFERRED)
        return known, model.num_bytes

    return min(models, key=rank)


def listed(models: Sequence[GgufFile], limit: int = _MAX_LISTED) -> str:
    """The models as a sentence lists them, the smallest first."""
    ordered = sorted(models, key=lambda model: model.num_bytes)
    more = len(ordered) - limit
    words = ", ".join(model.words for model in ordered[:limit])
    return f"{words} and {more} more" if more > 0 else words


def _is_model(name: str) -> bool:
    file = PurePosixPath(name).name
    return file.lower().endswith(SUFFIX) and not _BESIDE.search(file)
