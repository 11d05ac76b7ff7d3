"""What `--quantize` means for each matrix of a model: which kind of blocks, or none.

Owns the choice. 8bit is Q8_0 throughout. 4bit spends more bits where a model feels them most, as
llama.cpp's Q4_K_M does: embeddings and output layer, the values of attention, and half of the
matrices that lead back from the feed-forward layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatcache.backends.local.packed.blocks import KINDS, BlockKind

FOUR_BITS, EIGHT_BITS = "4bit", "8bit"
_FINE = ("Q6_K", "Q8_0")  # the first whose blocks make up a row
_COARSE = ("Q4_K", "Q4_1")
_MIN_WEIGHTS = 1 << 14  # below this nothing is saved
_LAYER = re.compile(r"\.(\d+)\.")
_ROUTER = re.compile(r"\.(router|gate)$")  # of a mixture of experts: a small error picks another


def kind_of(
    module_name: str, shape: Sequence[int], form: str, num_layers: int, *, is_outer: bool
) -> BlockKind | None:
    """`is_outer`: embeddings or output layer. None: the matrix stays exact."""
    num_rows, num_columns = shape
    if num_rows * num_columns < _MIN_WEIGHTS or _ROUTER.search(module_name):
        return None
    if form == EIGHT_BITS:
        names: tuple[str, ...] = ("Q8_0",)
    else:
        names = _FINE if is_outer or _is_sensitive(module_name, num_layers) else _COARSE
    kinds = [KINDS[name] for name in names]
    return next((kind for kind in kinds if num_columns % kind.num_weights == 0), None)


def _is_sensitive(module_name: str, num_layers: int) -> bool:
    if module_name.endswith("v_proj"):
        return True
    layer = _LAYER.search(module_name)
    if layer is None or not module_name.endswith("down_proj"):
        return False
    index, eighth = int(layer[1]), num_layers // 8
    return index < eighth or index >= num_layers - eighth or (index - eighth) % 3 == 2
