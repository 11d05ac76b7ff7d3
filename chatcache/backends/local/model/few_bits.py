"""Makes ordinary weights of those that other programs saved in few bits.

Owns the layouts of GPTQ, AWQ, bitsandbytes, FP8, compressed-tensors, modelopt and MLX, as their
packages write them into safetensors files. What they compute with is not needed for it: each weight
is an integer or a small float, times a scale of its group. The names of the tensors tell the layout
of each; what is not packed is passed on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from chatcache.backends.local.model.files import weight_files
from chatcache.backends.local.model.quantization import Quantization
from chatcache.errors import ModelLoadError

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # OCP Microscaling Formats, 2023, section 5.3.3
# In a word of AWQ's the weights are not in order: the one at bit 4 is the third, and so on.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
# What belongs to a packed weight, by the last part of its name.
_COMPANIONS = frozenset(
    {
        *("qzeros", "scales", "biases", "g_idx", "SCB", "weight_format"),
        *("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point"),
        *("weight_shape", "weight_g_idx", "weight_global_scale"),
        *("input_scale", "input_global_scale", "activation_scale"),
        *("k_scale", "v_scale", "output_scale"),
    }
)

Get = Callable[[str], torch.Tensor]


def unpacked_weights(
    path: Path,
    quantization: Quantization,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """All weights of the model in `path` in `dtype`, by the names of ordinary ones. Raises
    ModelLoadError for what is not as its layout should be."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(file, framework="pt")) for file in weight_files(path)
        ]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        layout = _Layout(where, lambda name: where[name].get_tensor(name), quantization)
        weights: dict[str, torch.Tensor] = {}
        for name in sorted(where):
            try:
                found = layout.weight(name)
            except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
                raise ModelLoadError(
                    f"{name} in {path} is not laid out as {quantization.words} should be: {error}.",
                    "Download the model again, or choose a copy of it that is not quantised.",
                ) from error
            if found is not None:
                weight = found[1]
                weights[found[0]] = weight.to(dtype) if weight.is_floating_point() else weight
        return weights


class _Layout:
    """Reads one checkpoint. `names` are its tensors, `get` reads one."""

    def __init__(self, names: Mapping[str, Any], get: Get, quantization: Quantization) -> None:
        self._names, self._get, self._quantization = names, get, quantization

    def weight(self, name: str) -> tuple[str, torch.Tensor] | None:
        """The ordinary weight that a tensor stands for, and its name; None: it only belongs to
        another one."""
        base, _, last = name.rpartition(".")
        if last == "qweight":
            return f"{base}.weight", self._gptq(base)
        if last == "weight_packed":
            return f"{base}.weight", self._compressed(base)
        if last in _COMPANIONS or ".weight." in name:
            return None
        if last == "scale" and f"{base}.weight" in self._names:  # as DeepSeek names them
            tensor = self._get(f"{base}.weight")
            if tensor.dtype in (torch.float8_e4m3fn, torch.int8):
                return None
        return name, self._scaled(name)

    def _scaled(self, name: str) -> torch.Tensor:
        """A weight that has its own name, times the scales beside it, if there are any."""
        weight, base = self._get(name), name.rpartition(".")[0]
        if f"{name}.absmax" in self._names:
            return self._bitsandbytes(name, weight)
        if f"{base}.SCB" in self._names and weight.dtype == torch.int8:
            return weight.float() * (self._get(f"{base}.SCB").float() / 127)[:, None]
        if f"{base}.scales" in self._names and weight.dtype in (torch.uint32, torch.int32):
            return self._mlx(base, weight)
        if weight.dtype == torch.uint8 and f"{base}.weight_scale_2" in self._names:
            scales = self._get(f"{base}.weight_scale").float()
            return _times(_small_floats(weight), scales * self._get(f"{base}.weight_scale_2"))
        for scale in (f"{name}_scale_inv", f"{name}_scale", f"{base}.scale"):
            if scale in self._names and weight.dtype in (
                *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int8),
            ):
                return self._by_blocks(base, weight, _scales(self._get(scale)))
        return weight

    def _by_blocks(self, base: str, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        values = weight.float()
        if f"{base}.weight_zero_point" in self._names:
            zeros = self._get(f"{base}.weight_zero_point").float()
            values = values - _spread(zeros, values.shape, self._block())
        return _times(values, scales, self._block())

    def _block(self) -> tuple[int, int]:
        """The size of a block that has a scale, where the config says it."""
        settings = self._quantization.settings
        block = settings.get("weight_block_size") or self._quantization.group.get("block_structure")
        return (int(block[0]), int(block[1])) if block else (128, 128)

    def _gptq(self, base: str) -> torch.Tensor:
        """Of GPTQ `[in / n, out]` words of weights that follow each other downwards, of AWQ
        `[in, out / 8]` words of eight that are side by side; zeros side by side in both."""
        packed, words = self._get(f"{base}.qweight"), self._get(f"{base}.qzeros")
        scales = self._get(f"{base}.scales").float()
        bits = self._quantization.bits or 4
        if self._quantization.method == "awq":
            order = torch.tensor(_AWQ_ORDER)
            weight, zeros = (
                _fields(word, bits).reshape(len(word), -1, 8)[..., order].flatten(-2)
                for word in (packed, words)
            )
        else:
            weight, zeros = _fields(packed.T, bits).T, _fields(words, bits)
            if self._quantization.format != "gptq_v2":
                zeros = zeros + 1  # the first version keeps them one too small
        num_in, size = weight.shape[0], -(-weight.shape[0] // scales.shape[0])
        groups = torch.arange(num_in) // size
        if f"{base}.g_idx" in self._names:
            groups = self._get(f"{base}.g_idx").long()
        zeros = zeros[:, : weight.shape[1]]
        return ((weight - zeros[groups]) * scales[groups]).T

    def _compressed(self, base: str) -> torch.Tensor:
        packed, scales = self._get(f"{base}.weight_packed"), self._get(f"{base}.weight_scale")
        if packed.dtype == torch.uint8:
            scales = _scales(scales)
            if f"{base}.weight_global_scale" in self._names:
                scales = scales / self._get(f"{base}.weight_global_scale").float()
            return _times(_small_floats(packed), scales)
        bits = self._quantization.bits
        num_rows, num_columns = (int(n) for n in self._get(f"{base}.weight_shape"))
        middle = 1 << (bits - 1)
        weight = (_fields(packed, bits) - middle)[:num_rows, :num_columns]
        scales = scales.float()
        groups = torch.arange(num_columns) // -(-num_columns // scales.shape[1])
        if f"{base}.weight_g_idx" in self._names:
            groups = self._get(f"{base}.weight_g_idx").long()
        if f"{base}.weight_zero_point" in self._names:
            zeros = self._get(f"{base}.weight_zero_point")
            if zeros.dtype == torch.int32:
                zeros = (_fields(zeros.T, bits).T - middle)[:num_rows]
            weight = weight - zeros.float()[:, groups]
        return weight * scales[:, groups]

    def _bitsandbytes(self, name: str, packed: torch.Tensor) -> torch.Tensor:
        """Two codes in a byte, the first one in its upper half (QLoRA, Dettmers et al., 2023)."""
        state = next(each for each in self._names if each.startswith(f"{name}.quant_state."))
        told = json.loads(bytes(self._get(state).tolist()))
        largest = self._get(f"{name}.absmax")
        if f"{name}.nested_absmax" in self._names:
            nested = self._get(f"{name}.nested_quant_map").float()[largest.long()]
            outer = self._get(f"{name}.nested_absmax").float()
            outer = outer.repeat_interleave(int(told["nested_blocksize"]))[: len(nested)]
            largest = nested * outer + float(told["nested_offset"])
        flat = packed.flatten()
        codes = torch.stack([flat >> 4, flat & 15], dim=1).flatten()
        values = self._get(f"{name}.quant_map").float()[codes.long()]
        scales = largest.float().repeat_interleave(int(told["blocksize"]))[: len(values)]
        shape = [int(length) for length in told["shape"]]
        return (values * scales)[: math.prod(shape)].reshape(shape)

    def _mlx(self, base: str, packed: torch.Tensor) -> torch.Tensor:
        scales = self._get(f"{base}.scales").float()
        biases = self._get(f"{base}.biases").float()
        own = self._quantization.settings.get(base)
        settings = own if isinstance(own, dict) else self._quantization.settings
        num_columns = scales.shape[-1] * int(settings["group_size"])
        bits = packed.shape[-1] * 32 // num_columns
        values = _bit_stream(packed.view(torch.int32), bits).reshape(*scales.shape, -1)
        return (values * scales[..., None] + biases[..., None]).flatten(-2)


def _fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """`[..., n]` words of 32 bits as `[..., n * 32 / bits]` numbers, the lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    fields = (words.to(torch.int64)[..., None] >> shifts) & ((1 << bits) - 1)
    return fields.flatten(-2).float()


def _bit_stream(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The same for numbers that may lie across two words."""
    if 32 % bits == 0:
        return _fields(words, bits)
    stream = (words.to(torch.int64)[..., None] >> torch.arange(32)) & 1
    numbers = stream.reshape(*words.shape[:-1], -1, bits)
    return (numbers << torch.arange(bits)).sum(-1).float()


def _small_floats(packed: torch.Tensor) -> torch.Tensor:
    """Two E2M1 floats in a byte, the first one in its lower half."""
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    codes = torch.stack([packed & 15, packed >> 4], dim=-1)
    return values[codes.long()].flatten(-2)


def _scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales as floats; those of one byte are powers of two."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.float() - 127)
    return scales.float()


def _times(
    values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] = (1, 1)
) -> torch.Tensor:
    return values * _spread(scales, values.shape, block)


def _spread(scales: torch.Tensor, shape: torch.Size, block: tuple[int, int]) -> torch.Tensor:
    """Scales of blocks of rows and columns, one for each weight."""
    if scales.numel() == 1:
        return scales.reshape(())
    if scales.dim() == 1:
        scales = scales[:, None]
    for dimension, size in ((-2, block[0]), (-1, block[1])):
        have, want = scales.shape[dimension], shape[dimension]
        if have in (1, want):
            continue
        if have != -(-want // size):
            size = -(-want // have)
        scales = scales.repeat_interleave(size, dimension).narrow(dimension, 0, want)
    return scales
