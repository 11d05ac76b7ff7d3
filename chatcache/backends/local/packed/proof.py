"""Whether compiled code says what a model says: looked at before it is believed, and remembered.

A compiler can be wrong for one processor, or for one shape. So the step of a model is compared with
the modules when the two meet for the first time, and the kernels of packed weights with torch's
arithmetic. What differs by more than rounding is not used for that model: the modules compute, or
torch unpacks. The verdict is kept beside the kernels that it is about (`kernel_store.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from chatcache import machine
from chatcache.backends.local.packed.blocks import BlockMatrix, PackedModule
from chatcache.backends.local.packed.kernel_store import COMPILING, STORE, Verdict
from chatcache.backends.local.packed.known import UnknownStepError, refuse, takes_step
from chatcache.backends.local.packed.modules import BlockExperts, compute_plainly
from chatcache.cache.tensors.live_kv import LiveKV

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")
# Tokens appended at once, one run behind the other: more than packed weights multiply as they lie,
# so that the modules unpack them.
_RUNS = (1, 4, 7, 33, 21)
_PREFIX, _RUNS_BEHIND = 40, (1, 4)
_EARLY_LAYERS = 2
_ROWS, _VECTORS = 12, 5  # of weights and of activations, by which a kind of blocks is looked at
_MOST_OF_PRODUCT, _MOST_OF_EXPERTS = 1e-3, 2e-2
_WITHOUT = frozenset({"_name_or_path", "name_or_path", "transformers_version", "torch_dtype"})


def settle(model: Any, say: Callable[[str], None] = lambda text: None) -> Verdict:
    """Let a model on a CPU use no compiled code that is wrong for it; returns the verdict. `say` is
    told what takes seconds, the first time."""
    matrices = _matrices(model)
    if not matrices and not takes_step(model):
        return Verdict.NO_STEP
    key = _key(model)
    verdict = STORE.verdict(key)
    if verdict is None:
        say(COMPILING)
        verdict = _looked_at(model, matrices)
        STORE.keep_verdict(key, verdict)
    if verdict.is_wrong:
        log.warning("compiled code is not used on this processor: %s", verdict)
    if verdict != Verdict.RIGHT:
        refuse(model)
    if verdict == Verdict.KERNELS_ARE_WRONG:
        compute_plainly(model)
    return verdict


def remarks(verdict: Verdict) -> tuple[str, ...]:
    """What somebody should know of a verdict."""
    if not verdict.is_wrong:
        return ()
    what = "step" if verdict == Verdict.STEP_IS_WRONG else "kernel"
    return (
        f"On this processor a compiled {what} does not compute what the model does, so it is not "
        "used: answers are right, and slower.",
    )


def _key(model: Any) -> str:
    """Of all that a verdict depends on, beside what the store knows."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _WITHOUT}
    digest = hashlib.blake2b(digest_size=16)
    processor = (platform.machine(), machine.processor(), torch.backends.cpu.get_cpu_capability())
    chosen = [os.environ.get(f"NUMBA_CPU_{name}") for name in ("NAME", "FEATURES")]
    digest.update(f"{processor}|{chosen}|{torch.__version__}|{model.dtype}".encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, module in model.named_modules():
        digest.update(f"{name}|{type(module).__name__}|{module.extra_repr()}".encode())
    return digest.hexdigest()


def _matrices(model: Any) -> dict[str, BlockMatrix]:
    """One of each kind of blocks, on a CPU."""
    return {
        matrix.kind.name: matrix
        for module in model.modules()
        if isinstance(module, PackedModule)
        for matrix in module.matrices
        if isinstance(matrix, BlockMatrix) and matrix.data.device.type == "cpu"
    }


@torch.inference_mode()
def _looked_at(model: Any, matrices: dict[str, BlockMatrix]) -> Verdict:
    for name, matrix in matrices.items():
        if not _holds(partial(_is_product_right, matrix), f"kernels of {name}"):
            return Verdict.KERNELS_ARE_WRONG
    experts = {
        str(module): module for module in model.modules() if isinstance(module, BlockExperts)
    }
    if matrices and not _holds(
        lambda: all(map(_are_experts_right, experts.values())), "kernels of experts"
    ):
        return Verdict.KERNELS_ARE_WRONG
    if not takes_step(model):
        return Verdict.NO_STEP
    try:
        is_right = _holds(lambda: _is_step_right(model, is_packed=bool(matrices)), "the step")
    except UnknownStepError as error:
        log.info("there is no step for this model: %s", error)
        return Verdict.NO_STEP
    return Verdict.RIGHT if is_right else Verdict.STEP_IS_WRONG


def _holds(look: Callable[[], bool], what: str) -> bool:
    """Whether compiled code is right; what the compiler refuses is not."""
    from numba.core.errors import NumbaError

    try:
        is_right = look()
    except NumbaError:
        log.warning("cannot be compiled: %s", what, exc_info=True)
        return False
    if not is_right:
        log.warning("%s: something else than torch computes", what)
    return is_right


def _is_product_right(matrix: BlockMatrix) -> bool:
    """Whether kernels unpack the first rows as torch does, and multiply them as they are then."""
    from chatcache.backends.local.packed import computing, device_computing

    part = BlockMatrix(matrix.kind, matrix.data[:_ROWS], matrix.num_columns)
    weights = device_computing.unpacked(part, torch.float32)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn((_VECTORS, part.num_columns), generator=generator)
    expected = vectors @ weights.T
    most = _MOST_OF_PRODUCT * (vectors.abs() @ weights.abs().T) + 1e-30
    products = [computing.multiplied(vectors[:count], part) for count in (1, 2, _VECTORS)]
    return torch.equal(computing.unpacked(part, torch.float32), weights) and all(
        bool(((product - expected[: len(product)]).abs() <= most[: len(product)]).all())
        for product in products
    )


def _are_experts_right(experts: BlockExperts) -> bool:
    """Whether experts give some tokens, alone and together, what they give by torch alone."""
    mixture = experts.mixture
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((_VECTORS, mixture.gate.matrix.num_columns), generator=generator)
    first = torch.arange(_VECTORS) % mixture.num_experts
    choices = torch.stack([first, (first + 1) % mixture.num_experts], dim=1)
    weights = torch.full(choices.shape, 0.5)
    found = [experts(states[:count], choices[:count], weights[:count]) for count in (1, _VECTORS)]
    experts.is_plain = True
    expected = experts(states, choices, weights)
    experts.is_plain = False
    return all(
        bool((_differences(rows, expected[: len(rows)]) <= _MOST_OF_EXPERTS).all())
        for rows in found
    )


@dataclass(frozen=True, slots=True)
class _Limits:
    """The largest differences, of the largest value. K and V of the first layers have gone through
    little that rounds; further on rounding in the modules adds up."""

    early: float
    late: float


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the modules compute for all tokens together."""

    ids: list[int]
    logits: dict[int, torch.Tensor]  # behind the tokens that matter
    kept: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, by layer
    limits: _Limits
    is_routed: bool  # through experts: where two are nearly as good, rounding chooses


def _is_step_right(model: Any, *, is_packed: bool) -> bool:
    """Whether tokens alone, some at once, and behind a prefix get the scores, the keys and the
    values that they should."""
    from chatcache.backends.local.packed.decode import decode_step

    step, num_layers = decode_step(model), model.config.get_text_config().num_hidden_layers
    vocab = model.get_input_embeddings().num_embeddings
    ids = [(31 * number + 7) % vocab for number in range(sum(_RUNS))]
    stops = [*accumulate(_RUNS), *accumulate(_RUNS_BEHIND, initial=_PREFIX)]
    kv = LiveKV(num_layers, model.dtype, _CPU)
    output = model(
        input_ids=torch.tensor([ids]),
        past_key_values=kv,
        use_cache=True,
        logits_to_keep=torch.tensor(stops) - 1,
    )
    if not bool(output.logits.isfinite().all()):
        return True  # nothing can be told, and a turn will say so
    expected = _Expected(
        ids,
        dict(zip(stops, output.logits[0].float(), strict=True)),
        [(layer.view("key").clone(), layer.view("value").clone()) for layer in kv.growing],
        _LIMITS_OF_PACKED if is_packed and model.dtype is torch.float32 else _LIMITS[model.dtype],
        any(isinstance(module, BlockExperts) for module in model.modules()),
    )
    kv.truncate(_PREFIX)
    empty = LiveKV(num_layers, model.dtype, _CPU)
    return _is_right(step, empty, _RUNS, expected) and _is_right(step, kv, _RUNS_BEHIND, expected)


def _is_right(
    step: Callable[[LiveKV, list[int], int], torch.Tensor],
    kv: LiveKV,
    runs: tuple[int, ...],
    expected: _Expected,
) -> bool:
    """Whether runs of tokens behind what is held are."""
    stop, limits, of_logits = kv.num_tokens, expected.limits, []
    for count in runs:
        got = step(kv, expected.ids[stop : stop + count], stop)[0]
        stop += count
        of_logits.append(_differences(got[None], expected.logits[stop][None]))
    if not _told(torch.cat(of_logits), expected) <= limits.late:  # NaN is not
        return False
    for number, (layer, kept) in enumerate(zip(kv.growing, expected.kept, strict=True)):
        most = limits.early if number < _EARLY_LAYERS else limits.late
        for kind, whole in zip(("key", "value"), kept, strict=True):
            tokens, wanted = (of[0].mT.flatten(0, 1).T for of in (layer.view(kind), whole))
            if not _told(_differences(tokens, wanted[:stop]), expected) <= most:
                return False
    return True


def _differences(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of each token `[num_tokens, ...]` the largest, of the largest value of all."""
    largest = expected.float().abs().max().clamp(min=1e-30)
    return (found.float() - expected.float()).abs().amax(dim=1) / largest


def _told(differences: torch.Tensor, expected: _Expected) -> float:
    """What tells of all tokens: the largest, or where some go to other experts, the median."""
    return float(differences.median() if expected.is_routed else differences.max())


_LIMITS = {torch.float32: _Limits(0.001, 0.01), torch.bfloat16: _Limits(0.04, 0.3)}
_LIMITS_OF_PACKED = _Limits(0.01, 0.1)  # in float32: activations are rounded to 15 bits
