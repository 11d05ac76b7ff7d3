"""Loads a model with its weights in 4 or 8 bits, which are made once and kept beside the cache.

Owns `CACHE_DIR/quantized/KEY/model.safetensors`: when it is made, and made anew. Whoever deletes it
loses the time it takes to make.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.base import ModelLoading
from chatcache.backends.local.model.progress import Progress, first_line
from chatcache.backends.local.model.quantized_form import QuantizedForm
from chatcache.backends.local.packed.blocks import BlockKind, BlockMatrix
from chatcache.backends.local.packed.forms import kind_of
from chatcache.backends.local.packed.install import (
    is_experts,
    is_matrix,
    replace_with_blocks,
    replace_with_stacked_experts,
    stacked_rows,
)
from chatcache.backends.local.packed.kept import (
    KeptDamagedError,
    KeptTensor,
    KeptWeights,
    read_kept,
    writing,
)
from chatcache.backends.local.packed.kernel_store import COMPILING, STORE
from chatcache.backends.local.packed.quantize import (
    Quantizer,
    is_quantizable,
    quantizing,
)
from chatcache.cache.files.quantized import FILE, QuantizedModels
from chatcache.errors import UnavailableError
from chatcache.os_failures import reason
from chatcache.sections import EXACT_WEIGHTS

log = logging.getLogger(__name__)

_WORTH_SAYING = 0.2  # this share of the weights left exact


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """`file` is what its weights are mapped from; None: they are in memory alone."""

    model: Any
    num_parameters: int
    file: Path | None
    remarks: tuple[str, ...] = field(default=())


def packing_of(quantize: str | None, device: torch.device) -> str | None:
    """What is wanted by a setting; None: exact weights. Raises UnavailableError."""
    if quantize in (None, EXACT_WEIGHTS):
        return None
    if device.type not in ("cpu", "cuda"):
        raise UnavailableError(
            f"Weights in {quantize} are computed with on a CPU or a CUDA device, not on "
            f"{device.type}.",
            "Add --device cpu, or leave out --quantize.",
        )
    return quantize


def load_quantized(
    wanted: QuantizedForm,
    config: Any,
    load_exact: Callable[[], Any],
    *,
    dtype: torch.dtype,
    cache_dir: Path | None,
    progress: Progress,
) -> QuantizedModel:
    """The model, with the blocks that are kept or with new ones. `load_exact` gives the model as it
    was saved. Raises UnavailableError for a model that has nothing to quantise."""
    shelf = None if cache_dir is None else QuantizedModels(cache_dir)
    folder = None if shelf is None else shelf.folder(wanted.key)
    kept, remarks = _known(folder, wanted) if folder is not None else (None, [])
    if kept is None:
        began = time.monotonic()
        kept = _made(wanted, load_exact(), folder, progress, remarks)
        if shelf is not None:
            seconds = max(1e-3, time.monotonic() - began)
            shelf.note_speed(wanted.form, _num_weights(kept) / seconds)
    if shelf is not None and kept.path is not None:
        shelf.note_use(kept.path.parent)
        for file in shelf.unused():
            with contextlib.suppress(OSError):
                file.unlink()
        shelf.tidy()
    remarks += _what_stayed_exact(kept)
    try:
        model = _installed(kept, config, dtype, "sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model = _installed(kept, config, dtype, "eager")
    if not STORE.has_kernels:
        progress(ModelLoading(COMPILING))
    _check_runs(model)
    return QuantizedModel(model, _num_weights(kept), kept.path, tuple(remarks))


# the kept file


def _known(folder: Path, wanted: QuantizedForm) -> tuple[KeptWeights | None, list[str]]:
    """What is kept, unless it is missing or damaged."""
    file = folder / FILE
    try:
        return read_kept(file, wanted.fields), []
    except FileNotFoundError:
        return None, []
    except OSError as error:
        log.warning("%s cannot be read: %s", file, reason(error))
        return None, [f"{file} cannot be read: {reason(error)}. The weights were quantised again."]
    except KeptDamagedError as error:
        log.warning("%s is damaged: %s", file, error)
        with contextlib.suppress(OSError):
            file.unlink()
        return None, [f"{file} was damaged: {error}. The weights were quantised again."]


# making


def _made(
    wanted: QuantizedForm,
    exact: Any,
    folder: Path | None,
    progress: Progress,
    remarks: list[str],
) -> KeptWeights:
    """The blocks of a model's matrices: on disk, or in memory where the disk does not take them."""
    work = _Work(wanted, exact, progress)
    if folder is not None:
        try:
            with writing(folder / FILE, work.plan(), wanted.fields) as file:
                for name, tensor in work.tensors():
                    file.add(name, tensor.data if isinstance(tensor, BlockMatrix) else tensor)
            return read_kept(folder / FILE, wanted.fields)
        except (OSError, KeptDamagedError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            log.warning("quantised weights are not kept in %s: %s", folder, why)
            with contextlib.suppress(OSError):
                folder.rmdir()
            remarks.append(
                f"The quantised weights could not be kept in {folder}: {why}. "
                "They are in memory, and the next start makes them again."
            )
    matrices: dict[str, BlockMatrix] = {}
    rest: dict[str, torch.Tensor] = {}
    for name, tensor in work.tensors():
        if isinstance(tensor, BlockMatrix):
            matrices[name] = tensor
        else:
            rest[name] = tensor.clone()
    return KeptWeights(matrices, rest)


class _Work:
    """The weights of a model, and which of them become blocks."""

    def __init__(self, wanted: QuantizedForm, exact: Any, progress: Progress) -> None:
        self._form, self._progress = wanted.form, progress
        self._state: dict[str, torch.Tensor] = _without_tied(exact)
        outer = {id(exact.get_input_embeddings()), id(exact.get_output_embeddings())}
        self._kinds = dict(self._chosen(exact, outer))
        inner = [f"{name}.weight" for name, m in exact.named_modules() if id(m) not in outer]
        if self._kinds.keys().isdisjoint(inner):
            raise UnavailableError(
                f"{type(exact).__name__} has no linear layers that can be quantised.",
                "Leave out --quantize.",
            )

    def plan(self) -> dict[str, KeptTensor]:
        """What stays exact first: it wants to be aligned."""
        found = {}
        for name in self._order():
            tensor, kind = self._state[name], self._kinds.get(name)
            if kind is None:
                found[name] = KeptTensor(tensor.dtype, tuple(tensor.shape))
            else:
                num_rows, num_columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
                shape = (num_rows, kind.row_bytes(num_columns))
                found[name] = KeptTensor(torch.uint8, shape, kind, num_columns)
        return found

    def tensors(self) -> Iterator[tuple[str, BlockMatrix | torch.Tensor]]:
        """All of them in the order of the plan, a matrix at a time."""
        total = sum(self._state[name].nbytes for name in self._kinds)
        done = 0
        with quantizing() as quantize:
            for name in self._order():
                yield name, self._one(name, quantize)
                if name in self._kinds:
                    done += self._state[name].nbytes
                    stage = f"quantising the weights to {self._form}, once"
                    self._progress(ModelLoading(stage, done, total))

    def _one(self, name: str, quantize: Quantizer) -> BlockMatrix | torch.Tensor:
        kind, tensor = self._kinds.get(name), self._state[name]
        return tensor if kind is None else quantize(tensor.flatten(0, -2), kind)

    def _order(self) -> list[str]:
        exact = [name for name in self._state if name not in self._kinds]
        exact.sort(key=lambda name: -self._state[name].itemsize)
        return [*exact, *self._kinds]

    def _chosen(self, exact: Any, outer: set[int]) -> Iterator[tuple[str, BlockKind]]:
        """`outer`: embeddings and output layer, by identity."""
        num_layers = int(exact.config.get_text_config().num_hidden_layers)
        for module_name, module in exact.named_modules():
            name = f"{module_name}.weight"
            is_outer = id(module) in outer
            is_embedding = isinstance(module, torch.nn.Embedding)
            if is_experts(module) and stacked_rows(module) is not None:
                yield from self._of_experts(module_name, num_layers)
            if not is_matrix(module) or name not in self._state or (is_embedding and not is_outer):
                continue
            weight = self._state[name]
            kind = kind_of(module_name, weight.shape, self._form, num_layers, is_outer=is_outer)
            if kind is not None and is_quantizable(weight):
                yield name, kind

    def _of_experts(self, module_name: str, num_layers: int) -> Iterator[tuple[str, BlockKind]]:
        """The matrices of all experts of a layer, or none of them: they are replaced together."""
        found = {}
        for name in (f"{module_name}.gate_up_proj", f"{module_name}.down_proj"):
            weight = self._state[name]
            shape = (math.prod(weight.shape[:-1]), weight.shape[-1])
            kind = kind_of(name, shape, self._form, num_layers, is_outer=False)
            if kind is not None and is_quantizable(weight):
                found[name] = kind
        if len(found) == len(("gate_up", "down")):
            yield from found.items()


def _without_tied(exact: Any) -> dict[str, torch.Tensor]:
    """The weights, each once: of those that share memory the one that the others are tied to."""
    state = {name: tensor.detach() for name, tensor in exact.state_dict().items()}
    for target, origin in _tied(exact).items():
        if origin in state and state.get(target) is not None:
            del state[target]
    return state


def _tied(model: Any) -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


# putting together


def _installed(kept: KeptWeights, config: Any, dtype: torch.dtype, kernel: str) -> Any:
    """The model with these weights, without its exact ones ever being there."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=kernel
        )
    # A stand-in takes no memory, and is replaced below.
    shapes = {name: weight.shape for name, weight in skeleton.state_dict().items()}
    state = {name: torch.zeros((), dtype=dtype).expand(shapes[name]) for name in kept.matrices}
    for name, tensor in kept.rest.items():
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    model = type(skeleton).from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, attn_implementation=kernel
    )
    places = dict(kept.matrices)
    for target, origin in _tied(skeleton).items():
        if origin in kept.matrices and target not in kept.matrices:
            places[target] = kept.matrices[origin]
    for name, matrix in places.items():
        module_name, _, part = name.rpartition(".")
        if part == "weight":
            replace_with_blocks(model, module_name, matrix, dtype)
        elif part == "down_proj":
            both = kept.matrices[f"{module_name}.gate_up_proj"]
            replace_with_stacked_experts(model, module_name, both, matrix)
    return model.eval().requires_grad_(False)


def _check_runs(model: Any) -> None:
    """Some families read the weights of their layers themselves. Raises UnavailableError."""
    try:
        with torch.inference_mode():
            model(torch.zeros((1, 2), dtype=torch.long), use_cache=False)
    except AttributeError as error:
        raise UnavailableError(
            f"{type(model).__name__} reads the weights of its layers in a way that quantised ones "
            f"do not allow: {first_line(error)}.",
            "Leave out --quantize.",
        ) from error


def _num_weights(kept: KeptWeights) -> int:
    packed = sum(matrix.num_rows * matrix.num_columns for matrix in kept.matrices.values())
    return packed + sum(tensor.numel() for tensor in kept.rest.values())


def _what_stayed_exact(kept: KeptWeights) -> list[str]:
    exact = sum(tensor.numel() for tensor in kept.rest.values())
    share = exact / max(1, _num_weights(kept))
    if share < _WORTH_SAYING:
        return []
    return [f"{share:.0%} of its weights are in no plain linear layer and stay as they were saved."]
