"""Puts together what runs turns on a loaded model: its live context, its cache, its idle work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from transformers.configuration_utils import PreTrainedConfig

from chatcache import __version__
from chatcache.backends.base import BackendEvent, ModelInfo, RestoreBegan
from chatcache.backends.local.engine.room import other_engines
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model import fit
from chatcache.backends.local.model.cut_policy import CutPolicy, cut_policy
from chatcache.backends.local.model.failures import naming_gpu
from chatcache.backends.local.model.loader import LoadedModel, load_model
from chatcache.backends.local.model.memory_check import MemoryCheck
from chatcache.backends.local.model.progress import Progress
from chatcache.backends.local.model.remarks import dtype_word, remarks
from chatcache.backends.local.packed.kernel_store import KERNELS_VARIABLE, STORE
from chatcache.backends.local.run.any_token import (
    MIN_PART_TOKENS,
    AnyTokenContext,
    LengthBoundContext,
)
from chatcache.backends.local.run.card_notes import CardNotes, card_name
from chatcache.backends.local.run.checkpoints import CheckpointContext
from chatcache.backends.local.run.chunk_choice import ChunkChoice
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.idle import IdleWork
from chatcache.backends.local.run.live_context import LiveContext, LivePath
from chatcache.backends.local.run.reasons import TurnExplainer
from chatcache.backends.local.run.threads import threads_for, use
from chatcache.backends.local.run.turn import TurnPlanner
from chatcache.backends.local.run.turn_runner import CacheReporter, TurnRunner
from chatcache.backends.local.run.whole_prompt import WholePromptContext
from chatcache.backends.local.study.answers import Answers
from chatcache.backends.local.study.attention import AttentionStudy
from chatcache.backends.local.study.beside import Beside
from chatcache.backends.local.study.next_tokens import NextTokenStudy
from chatcache.backends.local.study.pieces import Vocabulary
from chatcache.backends.local.study.shape import model_shape
from chatcache.backends.local.study.vocabularies import Vocabularies
from chatcache.cache.book.namespace import namespace_id
from chatcache.cache.book.policy import Precision
from chatcache.cache.book.prefill_rate import MIN_MEASURED_TOKENS
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tensors.device_int8 import DeviceInt8KV
from chatcache.cache.tensors.device_kv import DeviceKV
from chatcache.cache.tensors.int8 import Int8KV
from chatcache.cache.tensors.link import CudaLink, Link
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.checks import num_bytes
from chatcache.errors import NotFiniteError
from chatcache.machine import allowance

STEPS_FILE = "steps.json"


def load(settings: EngineSettings, progress: Progress) -> LoadedModel:
    """The model that the settings name. Raises what `load_model` raises."""
    use(settings.num_threads or min(allowance().num_threads, torch.get_num_threads()))
    kernels = Path(os.environ.get(KERNELS_VARIABLE) or settings.cache_dir / "kernels")
    STORE.keep_in(kernels)
    with naming_gpu():
        return load_model(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
            adapter=settings.adapter,
            max_context=settings.max_context,
            memory=MemoryCheck(
                settings.is_fit_checked, lambda: other_engines(settings.engines_dir)
            ),
            offline=settings.is_offline,
            cache_dir=settings.cache_dir,
            progress=progress,
        )


def build_runner(
    loaded: LoadedModel,
    settings: EngineSettings,
    emit: Callable[[BackendEvent], None] = lambda event: None,
) -> TurnRunner:
    """What answers turns on `loaded`, with its cache open; `emit` is told of all that happens
    between them."""
    cut = cut_policy(loaded.model.config.get_text_config())
    precision = settings.policy.precision
    namespace = namespace_id(fields := loaded.namespace_fields(precision))
    directory = settings.cache_dir / "segments" / namespace
    rates = RateBook(directory / "rates.json", card_name(loaded.device))
    chunk_choice = ChunkChoice(loaded, directory)
    threads = threads_for(loaded.model, loaded.device, is_fixed=settings.num_threads is not None)
    ram_budget = fit.budget(loaded.fit, settings.ram_budget)
    live = build_live(loaded, cut, precision, link_to(loaded.device), ram_budget)
    path = LivePath(Forward(loaded.model, loaded.device, threads), live)
    with naming_gpu():
        kv_bytes = warm_up(cut, path, rates)
        if threads is not None and cut.is_cuttable:
            threads.settle(rates, lambda: _first_step(path))
        if cut.is_cuttable:
            get_ready_on_device(path, chunk_choice, directory)
    planner = TurnPlanner(loaded)
    info = replace(
        _describe(loaded, cut, fields, kv_bytes),
        remarks=tuple(remarks(loaded, is_dtype_chosen=settings.dtype != "auto")),
        think_switch=planner.think_switch,
    )
    reporter = CacheReporter(emit, path)
    prefixes = _prefix_cache(loaded, settings, cut, namespace, path, reporter.note)
    reporter.prefixes = prefixes
    chunk = settings.prefill_chunk_tokens or chunk_choice.num_tokens
    context = build_context(
        cut,
        path,
        prefixes,
        rates,
        chunk,
        loaded.model.config,
        on_restore=lambda num_tokens, num_bytes: emit(RestoreBegan(num_tokens, num_bytes)),
    )
    longest = loaded.max_context_tokens
    idle = IdleWork(
        planner,
        context,
        max_chunk=chunk,
        max_context=min(longest, cut.max_tokens or longest),
        can_compute=cut.kind == "any_token",
    )
    explainer = TurnExplainer(info, cut, prefixes, idle)
    prefixes.open(fields)
    path.forward.get_ready()
    reporter.show()
    answers = _answers(loaded, settings, cut, idle, info)
    return TurnRunner(
        loaded, info, planner, context, idle, explainer, reporter, answers, settings.log_path
    )


def _answers(
    loaded: LoadedModel,
    settings: EngineSettings,
    cut: CutPolicy,
    idle: IdleWork,
    info: ModelInfo,
) -> Answers:
    """They compute at the pace of idle work, on which a turn does not wait long."""
    vocabulary = Vocabulary(loaded.tokenizer, idle.planner.codec, loaded.name)
    context, config = idle.context, loaded.model.config
    path = context.path

    def make() -> LiveContext:
        live = build_live(loaded, cut, settings.policy.precision)
        if live.has_states:  # only what has run once has states that a checkpoint can be put into
            path.forward(live, [0], 0)
            live.truncate(0)
        beside = LivePath(path.forward, live)
        beside.give_way = path.give_way
        return build_context(cut, beside, context.prefixes, context.rates, idle.max_chunk, config)

    chunk = min(idle.max_chunk, MIN_PART_TOKENS)
    beside = Beside(context, make, lambda: max(chunk, idle.chunk()))
    return Answers(
        vocabulary=vocabulary,
        vocabularies=Vocabularies(settings.cache_dir, is_offline=settings.is_offline),
        describe=lambda: model_shape(loaded, path.kv, info.kv_bytes_per_token, idle.max_chunk),
        beside=beside,
        attention=AttentionStudy(loaded.model, path.forward, beside, cut),
        next_tokens=NextTokenStudy(beside, cut, loaded.generation_defaults, vocabulary.piece),
        max_context=loaded.max_context_tokens,
    )


def _prefix_cache(
    loaded: LoadedModel,
    settings: EngineSettings,
    cut: CutPolicy,
    namespace: str,
    path: LivePath,
    on_event: Callable[[str, str], None],
) -> PrefixCache:
    live, vram_budget = path.kv, 0
    if isinstance(live, DeviceKV):
        live.warn = lambda text: on_event("warning", text)
        live.get_ready()
        vram_budget = num_bytes(settings.vram_budget, live.link.num_free_bytes)
    prefixes = PrefixCache(
        settings.cache_dir,
        namespace,
        ram_budget=fit.budget(loaded.fit, settings.ram_budget),
        vram_budget=vram_budget,
        disk_budget=settings.disk_budget,
        policy=settings.policy,
        is_spilling=cut.is_cuttable,
        needs_states=cut.needs_states,
        on_event=on_event,
        may_keep=lambda: loaded.watch.changed() is None,
    )
    path.give_way = prefixes.vram.give_up
    return prefixes


def link_to(device: torch.device) -> Link | None:
    """To a device with memory of its own; None: there is none, or its copies cannot be queued."""
    return CudaLink(device) if device.type == "cuda" else None


def build_live(
    loaded: LoadedModel,
    cut: CutPolicy,
    precision: Precision = "exact",
    link: Link | None = None,
    ram_budget: int = 0,
) -> LiveKV:
    """An empty live KV; with the states of the layers where the model has such.

    `precision`: how its blocks keep K and V. With a `link` they are in slabs for it, of about
    `ram_budget` bytes, unless the model has states."""
    is_int8 = precision == "int8"
    if link is not None and cut.kind == "any_token":
        on_device = DeviceInt8KV if is_int8 else DeviceKV
        return on_device(
            loaded.num_layers, loaded.dtype, loaded.device, link=link, slab_budget=ram_budget
        )
    config = loaded.model.config if cut.needs_states else None
    kind = Int8KV if is_int8 else LiveKV
    return kind(loaded.num_layers, loaded.dtype, loaded.device, config)


def build_context(
    cut: CutPolicy,
    path: LivePath,
    prefixes: PrefixCache,
    rates: RateBook,
    chunk: int,
    config: PreTrainedConfig,
    on_restore: Callable[[int, int], None] = lambda num_tokens, num_bytes: None,
) -> LiveContext:
    """`chunk` is the most tokens of a prompt that are given to the model at once; `config` is the
    model's."""
    if not cut.is_cuttable:
        return WholePromptContext(path, prefixes, rates, config)
    if cut.needs_states:
        return CheckpointContext(path, prefixes, rates, chunk, is_stepwise=cut.is_stepwise)
    context = AnyTokenContext(path, prefixes, rates, chunk, on_restore)
    return context if cut.max_tokens is None else LengthBoundContext(context, cut.max_tokens)


def warm_up(cut: CutPolicy, path: LivePath, rates: RateBook) -> int:
    """Run the model once; returns the bytes of K and V per token (0: they are not ours).

    Where nothing was measured before, the run is long enough to tell the prefill rate."""
    if not cut.is_cuttable:
        return 0
    forward, live = path.forward, path.kv
    with suppress(NotFiniteError):  # a turn may be fine; where it is not, it says so
        forward(live, [0, 0], 0)
    num_bytes = live.num_bytes // 2
    live.truncate(0)
    if not rates.is_measured:
        rates.note_prefill(MIN_MEASURED_TOKENS, seconds_of(path, MIN_MEASURED_TOKENS))
    return num_bytes


def get_ready_on_device(path: LivePath, chunk_choice: ChunkChoice, directory: Path) -> None:
    """What a GPU does before its first turn; on a CPU there is nothing. What was found out before
    is kept in `directory`."""
    if chunk_choice.is_open:  # first: it may take other buffers, which graphs would have to follow
        chunk_choice.measure(lambda num_tokens: seconds_of(path, num_tokens))
    notes, live = CardNotes(directory / STEPS_FILE), path.kv
    where = f"{card_name(live.device)}, torch {torch.__version__}, chatcache {__version__}"
    known = notes.read(where)
    found = path.forward.settle(live, known)
    if found is not None and found != known:
        notes.write(where, found)


def seconds_of(path: LivePath, num_tokens: int) -> float:
    """How long the model reads so many tokens; nothing is live afterwards."""
    began = time.perf_counter()
    with suppress(NotFiniteError):
        path.forward(path.kv, [0] * num_tokens, 0)
    seconds = time.perf_counter() - began
    path.kv.truncate(0)
    return seconds


def _first_step(path: LivePath) -> None:
    with suppress(NotFiniteError):
        path.forward(path.kv, [0], 0)
    path.kv.truncate(0)


def _describe(
    loaded: LoadedModel,
    cut: CutPolicy,
    fields: dict[str, str],
    kv_bytes: int,
) -> ModelInfo:
    return ModelInfo(
        model=loaded.name,
        backend="local",
        architecture=loaded.architecture,
        num_parameters=loaded.num_parameters,
        dtype=fields["dtype"],
        device=str(loaded.device),
        num_layers=loaded.num_layers,
        kv_bytes_per_token=kv_bytes,
        max_context_tokens=loaded.max_context_tokens,
        cut=cut.kind,
        cut_detail=cut.detail,
        tokenizer_id=loaded.tokenizer_id,
        namespace=namespace_id(fields),
        namespace_fields=fields,
        description=loaded.description,
        load_ms=loaded.load_ms,
        stored_dtype=dtype_word(loaded.stored_dtype),
        quantization=loaded.quantization,
    )
