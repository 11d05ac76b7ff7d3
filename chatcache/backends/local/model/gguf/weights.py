"""Puts the weights of a GGUF file into a model of transformers, where they stay as they are.

Owns the way from a name in the file to a module, and what has to be undone of what the conversion
to GGUF did: rows in another order, norms with one added. Matrices are views of the mapped file.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from chatcache.backends.local.model.gguf.derived import GgufModel
from chatcache.backends.local.model.gguf.experts import layer_of, take_experts
from chatcache.backends.local.model.gguf.header import GgufHeader, GgufTensor
from chatcache.backends.local.packed.blocks import KINDS, KINDS_BY_TYPE, BlockMatrix
from chatcache.backends.local.packed.install import is_experts, replace_with_blocks
from chatcache.errors import ModelLoadError

ANEW = "Download the file again, or choose another with --model."

# Architectures in which the two halves of a rotated head lie interleaved in the file.
_INTERLEAVED = frozenset({"llama", "granitemoe"})
# Those whose norms have one added in the file.
_NORMS_PLUS_ONE = frozenset({"gemma2", "gemma3"})
# Tensors that the config was made of.
_IN_CONFIG = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROWS_AT_ONCE = 1 << 22  # weights that are unpacked together on the way to another kind


def load_packed(
    gguf_model: GgufModel,
    build: Callable[[dict[str, torch.Tensor]], Any],
    skeleton: Any,
    dtype: torch.dtype,
    *,
    is_unpacked: bool,
) -> tuple[Any, list[str]]:
    """The model, and what is to be said of its weights. Raises ModelLoadError.

    `skeleton` is the model without weights, on `meta`; `build` makes it with those given."""
    source = MappedTensors(gguf_model)
    found = {tensor.name: tensor for tensor in gguf_model.tensors}
    experts = take_experts(skeleton, found, gguf_model.header.path)
    names = _names(gguf_model, skeleton, found)
    shapes, state = skeleton.state_dict(), dict[str, torch.Tensor]()
    matrices: dict[str, GgufTensor] = {}
    for target, tensor in names.items():
        is_matrix = _is_matrix(skeleton, target)
        shape = shapes[target].shape
        if not is_matrix or is_unpacked or _DTYPES.get(tensor.type.name) == dtype:
            state[target] = source.unpacked(tensor, dtype).view(shape)
        else:
            matrices[target] = tensor
            # It takes no memory, and is replaced below.
            state[target] = torch.zeros((), dtype=dtype).expand(shape)
    for layer in experts:
        state |= layer.unpacked(source, dtype) if is_unpacked else layer.stand_ins(dtype)
    model = build(state)
    for layer in experts if not is_unpacked else ():
        layer.install(model, source)
    for target, tensor in matrices.items():
        replace_with_blocks(model, target.rpartition(".")[0], source.matrix(tensor), dtype)
    tied = getattr(model, "all_tied_weights_keys", {}) if matrices else {}
    for target, origin in tied.items():
        if origin in matrices:
            matrix = source.matrix(matrices[origin])
            replace_with_blocks(model, target.rpartition(".")[0], matrix, dtype)
    return model, source.remarks


class MappedTensors:
    """The mapped files of a model, and the tensors in them."""

    def __init__(self, model: GgufModel) -> None:
        self._header = model.header
        self._maps: dict[str, mmap.mmap] = {}
        self._files = {tensor.name: header for header in model.headers for tensor in header.tensors}
        self._matrices: dict[str, BlockMatrix] = {}
        self._changed_kinds: set[str] = set()

    @property
    def remarks(self) -> list[str]:
        if not self._changed_kinds:
            return []
        kinds = ", ".join(sorted(self._changed_kinds))
        return [f"Its weights in {kinds} were turned into Q8_0, which takes more memory."]

    def matrix(self, tensor: GgufTensor) -> BlockMatrix:
        """A matrix in its own blocks, or in Q8_0 where nothing here multiplies those."""
        if tensor.name not in self._matrices:
            data = self._rows(tensor)
            kind = KINDS_BY_TYPE.get(tensor.type.number)
            if kind is None:
                self._changed_kinds.add(tensor.type.name)
                kind, data = KINDS["Q8_0"], _as_q8_0(tensor, data)
            order = self._row_order(tensor)
            data = data if order is None else data[order]
            self._matrices[tensor.name] = BlockMatrix(kind, data, tensor.shape[-1])
        return self._matrices[tensor.name]

    def unpacked(self, tensor: GgufTensor, dtype: torch.dtype) -> torch.Tensor:
        """All weights of a tensor."""
        rows = self._rows(tensor)
        plain = _DTYPES.get(tensor.type.name)
        if plain is not None:
            weights = rows.view(plain)
        else:
            weights = torch.empty((len(rows), tensor.shape[-1]), dtype=dtype)
            for part in _parts(tensor):
                weights[part] = _dequantized(rows[part], tensor)
        order = self._row_order(tensor)
        weights = weights.reshape(tensor.shape)
        weights = weights if order is None else weights[order]
        if tensor.name.endswith("norm.weight") and self._header.architecture in _NORMS_PLUS_ONE:
            weights = weights.float() - 1
        return weights.to(dtype)

    def _rows(self, tensor: GgufTensor) -> torch.Tensor:
        """The bytes of a tensor, uint8 `[num_rows, row_bytes]`, as a view of the file."""
        header = self._files[tensor.name]
        data = torch.frombuffer(
            self._mapped(header), dtype=torch.uint8, count=tensor.num_bytes, offset=tensor.offset
        )
        return data.view(tensor.num_weights // tensor.shape[-1], -1)

    def _mapped(self, header: GgufHeader) -> mmap.mmap:
        key = str(header.path)
        if key not in self._maps:
            with header.path.open("rb") as file:
                # Private, not read-only: torch wants memory that it could write to.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if len(mapped) != header.num_file_bytes:
                raise ModelLoadError(f"{header.path} changed while it was read.", ANEW)
            self._maps[key] = mapped
        return self._maps[key]

    def _row_order(self, tensor: GgufTensor) -> torch.Tensor | None:
        """Which row of the file each row of the model is; None: they lie as they should."""
        name = tensor.name
        if self._header.architecture not in _INTERLEAVED:
            return None
        if ".attn_q." not in name and ".attn_k." not in name:
            return None
        heads = _num_heads(self._header, is_query=".attn_q." in name)
        num_rows = tensor.shape[0]
        pairs = torch.arange(num_rows).view(heads, num_rows // heads // 2, 2)
        return pairs.transpose(1, 2).reshape(-1)


def _num_heads(header: GgufHeader, *, is_query: bool) -> int:
    heads = header.integer(header.of_model("attention.head_count")) or 1
    if is_query:
        return heads
    key = header.of_model("attention.head_count_kv")
    array = header.array(key)
    if array is not None and len(array):
        return int(array.numbers()[0])
    return header.integer(key) or heads


# names and places


def _names(
    gguf_model: GgufModel, skeleton: Any, found: dict[str, GgufTensor]
) -> dict[str, GgufTensor]:
    """The tensor of the file for each weight of the model, all of them and no others, but for the
    experts' weights, which are taken out of `found` by now.

    Raises ModelLoadError."""
    import gguf

    path = gguf_model.header.path
    (architecture,) = (
        number
        for number, name in gguf.MODEL_ARCH_NAMES.items()
        if name == gguf_model.header.architecture
    )
    mapping = gguf.get_tensor_name_map(architecture, skeleton.config.num_hidden_layers)
    tied = getattr(skeleton, "all_tied_weights_keys", {})
    names: dict[str, GgufTensor] = {}
    missing = []
    for target, meta in skeleton.state_dict().items():
        name = _name_of(target, mapping)
        if (target in tied and name not in found) or is_experts(_parent(skeleton, target)):
            continue
        if name not in found:
            missing.append(name)
            continue
        names[target] = found.pop(name)
        if _without_ones(meta.shape) != _without_ones(names[target].shape):
            raise ModelLoadError(
                f"{path} has {name} as {_shape(names[target].shape)}, where its metadata say "
                f"{_shape(meta.shape)}.",
                ANEW,
            )
    left = sorted(found.keys() - _IN_CONFIG)
    if missing:
        raise ModelLoadError(
            f"{path} lacks {len(missing)} tensors, the first is {missing[0]}.", ANEW
        )
    if left:
        raise ModelLoadError(
            f"{path} has {len(left)} tensors that models of the architecture "
            f"{gguf_model.header.architecture!r} do not have, the first is {left[0]!r:.80}.",
            "Choose a copy of the model as safetensors, or another model.",
        )
    return names


def _name_of(target: str, mapping: Any) -> str:
    """The name in the file of a weight of the model."""
    base, _, suffix = target.rpartition(".")
    if base.endswith(".block_sparse_moe.router"):
        return f"blk.{layer_of(base)}.ffn_gate_inp.{suffix}"
    if suffix == "sinks":
        return f"{mapping.get_name(target)}.weight"
    return f"{mapping.get_name(base)}.{suffix}"


def _parent(model: Any, target: str) -> Any:
    return model.get_submodule(target.rpartition(".")[0])


def _without_ones(shape: Any) -> tuple[int, ...]:
    """A matrix of one row is a vector in the file."""
    return tuple(length for length in shape if length != 1)


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape))


def _is_matrix(skeleton: Any, target: str) -> bool:
    """Whether a weight is that of a linear layer or of embeddings."""
    module = _parent(skeleton, target)
    is_plain = type(module) is torch.nn.Linear or isinstance(module, torch.nn.Embedding)
    return target.endswith(".weight") and is_plain


# other kinds of blocks


def _parts(tensor: GgufTensor) -> list[slice]:
    num_rows = tensor.num_weights // tensor.shape[-1]
    step = max(1, _ROWS_AT_ONCE // tensor.shape[-1])
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _dequantized(rows: torch.Tensor, tensor: GgufTensor) -> torch.Tensor:
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(tensor.type.number)
        return torch.from_numpy(gguf.dequantize(rows.numpy(), kind))
    except (NotImplementedError, ValueError) as error:
        raise ModelLoadError(
            f"The tensor {tensor.name!r} is in {tensor.type.name}, which nothing here reads.",
            "Choose a copy of the model in another quantisation.",
        ) from error


def _as_q8_0(tensor: GgufTensor, rows: torch.Tensor) -> torch.Tensor:
    """The nearest blocks of Q8_0, made a part at a time."""
    import gguf

    kind = KINDS["Q8_0"]
    data = torch.empty((len(rows), kind.row_bytes(tensor.shape[-1])), dtype=torch.uint8)
    for part in _parts(tensor):
        weights = _dequantized(rows[part], tensor).numpy()
        blocks: np.ndarray[Any, Any] = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        data[part] = torch.from_numpy(blocks)
    return data
