"""Packs the weights of a tiny model as other programs do, each layout by its own description.

Owns writing; a model directory becomes one of another form, and the weights that it then stands for
are returned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
GROUP = 32
NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # which weight lies at bit 0, 4, 8 ...


def words(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers along the last dimension, side by side in words of 32 bits."""
    per_word = 32 // bits
    parts = numbers.long().reshape(*numbers.shape[:-1], -1, per_word)
    packed = torch.zeros(parts.shape[:-1], dtype=torch.int64)
    for place in range(per_word):
        packed |= parts[..., place] << (bits * place)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def grouped(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers `[out, in]`, zeros and scales `[out, groups]`: weight = (number - zero) * scale."""
    parts = weight.float().reshape(len(weight), -1, GROUP)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = ((high - low) / ((1 << bits) - 1)).clamp(min=1e-6).half().float()
    zeros = (-low / scales).round().clamp(1, (1 << bits) - 1)
    numbers = (parts / scales[..., None] + zeros[..., None]).round().clamp(0, (1 << bits) - 1)
    return numbers.flatten(1), zeros, scales


def restored(numbers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    each = (tensor.repeat_interleave(GROUP, 1) for tensor in (zeros, scales))
    zero, scale = each
    return (numbers - zero) * scale


def gptq(bits: int, version: str = "gptq", *, is_shuffled: bool = False) -> Callable[..., Any]:
    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        order = torch.randperm(weight.shape[1]) if is_shuffled else torch.arange(weight.shape[1])
        numbers, zeros, scales = grouped(weight[:, order], bits)
        stored = zeros - 1 if version == "gptq" else zeros
        back = torch.argsort(order)
        tensors = {
            "qweight": words(numbers[:, back], bits).T,
            "qzeros": words(stored.T, bits),
            "scales": scales.T.half(),
            "g_idx": (back // GROUP).to(torch.int32),
        }
        # Words follow each other downwards, so the numbers are packed along the inputs.
        return tensors, restored(numbers, zeros, scales)[:, back]

    return pack


def awq(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    numbers, zeros, scales = grouped(weight, 4)

    def side_by_side(table: torch.Tensor) -> torch.Tensor:
        parts = table.reshape(len(table), -1, 8)
        return words(parts[..., list(AWQ_PLACES)].flatten(1), 4)

    tensors = {
        "qweight": side_by_side(numbers.T),
        "qzeros": side_by_side(zeros.T),
        "scales": scales.T.half(),
    }
    return tensors, restored(numbers, zeros, scales)


def mlx(bits: int) -> Callable[..., Any]:
    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        numbers, zeros, scales = grouped(weight, bits)
        stream = ((numbers.long()[..., None] >> torch.arange(bits)) & 1).flatten(1)
        packed = words(stream, 1).view(torch.uint32)
        tensors = {"weight": packed, "scales": scales, "biases": -zeros * scales}
        return tensors, restored(numbers, zeros, scales)

    return pack


def bitsandbytes_4bit(*, is_nested: bool) -> Callable[..., Any]:
    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        table, blocks = torch.tensor(NF4), weight.float().reshape(-1, 64)
        largest = blocks.abs().amax(1)
        tensors: Tensors = {"weight.quant_map": table}
        told = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16"}
        told["shape"] = list(weight.shape)
        if is_nested:
            offset = float(largest.mean())
            outer = (largest - offset).abs().amax()[None]
            fine = torch.linspace(-1, 1, 256)
            codes = ((largest - offset) / outer)[:, None].sub(fine).abs().argmin(1)
            tensors |= {
                "weight.absmax": codes.to(torch.uint8),
                "weight.nested_absmax": outer,
                "weight.nested_quant_map": fine,
            }
            told |= {"nested_blocksize": 256, "nested_offset": offset}
            largest = fine[codes] * outer + offset
        else:
            tensors["weight.absmax"] = largest
        codes = (blocks / largest[:, None])[..., None].sub(table).abs().argmin(-1)
        pairs = codes.reshape(-1, 2)
        tensors["weight"] = ((pairs[:, 0] << 4) | pairs[:, 1]).to(torch.uint8)[:, None]
        state = json.dumps(told).encode()
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state)).to(torch.uint8)
        return tensors, (table[codes] * largest[:, None]).reshape(weight.shape)

    return pack


def bitsandbytes_8bit(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    largest = weight.float().abs().amax(1)
    numbers = (weight.float() * 127 / largest[:, None]).round()
    tensors = {
        "weight": numbers.to(torch.int8),
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, numbers * largest[:, None] / 127


def fp8(block: int, scale_name: str = "weight_scale_inv") -> Callable[..., Any]:
    """`block` 0: a scale for each row, -1: one for all."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = weight.shape
        if block < 0:
            scales = (weight.abs().amax() / 448)[None]
            each = scales.expand(rows, columns)
        elif block == 0:
            scales = weight.abs().amax(1, keepdim=True) / 448
            each = scales.expand(rows, columns)
        else:
            grid = torch.nn.functional.max_pool2d(
                weight.abs().float()[None, None], block, ceil_mode=True
            )[0, 0]
            scales = grid / 448
            each = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[:rows, :columns]
        stored = (weight / each).to(torch.float8_e4m3fn)
        return {"weight": stored, scale_name: scales}, stored.float() * each

    return pack


def compressed(bits: int, *, is_symmetric: bool) -> Callable[..., Any]:
    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        numbers, zeros, scales = grouped(weight, bits)
        if is_symmetric:
            zeros = torch.full_like(zeros, 1 << (bits - 1))
            scales = (
                weight.float().reshape(len(weight), -1, GROUP).abs().amax(-1)
                / ((1 << (bits - 1)) - 1)
            ).clamp(min=1e-6)
            parts = weight.float().reshape(len(weight), -1, GROUP) / scales[..., None]
            numbers = parts.round().flatten(1) + (1 << (bits - 1))
        tensors = {
            "weight_packed": words(numbers, bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not is_symmetric:
            tensors["weight_zero_point"] = words(zeros.T, bits).T
        return tensors, restored(numbers, zeros, scales)

    return pack


def int8_rows(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scales = weight.float().abs().amax(1, keepdim=True) / 127
    numbers = (weight.float() / scales).round()
    return {"weight": numbers.to(torch.int8), "weight_scale": scales}, numbers * scales


def nvfp4(kind: str) -> Callable[..., Any]:
    """`kind`: "modelopt", or "compressed" where the scale of all divides."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        table = torch.tensor([*E2M1, *(-value for value in E2M1)])
        parts = weight.float().reshape(len(weight), -1, 16)
        whole = torch.tensor(0.01)
        scales = (parts.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
        each = (scales.float() * whole).clamp(min=1e-9)
        codes = (parts / each[..., None])[..., None].sub(table).abs().argmin(-1)
        pairs = codes.reshape(len(weight), -1, 2)
        packed = (pairs[..., 0] | (pairs[..., 1] << 4)).to(torch.uint8)
        value = (table[codes] * each[..., None]).reshape(weight.shape)
        if kind == "modelopt":
            return {"weight": packed, "weight_scale": scales, "weight_scale_2": whole}, value
        return {
            "weight_packed": packed,
            "weight_scale": scales,
            "weight_global_scale": 1 / whole[None],
        }, value

    return pack


def repack(
    path: Path, pack: Callable[..., Any], config: dict[str, Any], *, with_embedding: bool = False
) -> Tensors:
    """Pack the linear layers of the model in `path`; returns the weights that it then has."""
    plain = load_file(path / "model.safetensors")
    packed, values = dict(plain), dict(plain)
    for name, weight in _packable(plain, with_embedding):
        base = name.removesuffix(".weight")
        del packed[name]
        tensors, values[name] = pack(base, weight)
        packed |= {f"{base}.{last}": tensor.contiguous() for last, tensor in tensors.items()}
    save_file(packed, path / "model.safetensors", {"format": "pt"})
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return values


def _packable(plain: Tensors, with_embedding: bool) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in plain.items():
        if name.endswith("_proj.weight") or (with_embedding and "embed_tokens" in name):
            yield name, weight


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks, scales and value of weights `[experts, out, in]`, as gpt-oss has them."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    parts = weight.float().reshape(*weight.shape[:-1], -1, 32)
    exponents = (parts.abs().amax(-1) / 6).log2().ceil().clamp(-100, 100)
    codes = (parts / exponents.exp2()[..., None])[..., None].sub(table).abs().argmin(-1)
    pairs = codes.reshape(*codes.shape[:-1], 16, 2)
    packed = (pairs[..., 0] | (pairs[..., 1] << 4)).to(torch.uint8)
    value = (table[codes] * exponents.exp2()[..., None]).reshape(weight.shape)
    return packed, (exponents + 127).to(torch.uint8), value
