"""What a model will cost in a chat, told from its config and tokenizer alone.

Owns the report of `chatcache models probe`: whether the chat template changes by itself, what each
turn reads again, whether typed control tokens stay text, and what K and V take (`tests/equivalence`
compares that with what tiny models of each family really keep). No weights are loaded, and what
only they can tell is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.model import files, identity, resolve
from chatcache.backends.local.model.capturing import why_eager
from chatcache.backends.local.model.cut_policy import CutPolicy, cut_policy
from chatcache.backends.local.model.forms import form_of
from chatcache.backends.local.model.generation import context_limit, end_token_ids
from chatcache.backends.local.model.gguf.derived import derived_directory, open_model, remarks_of
from chatcache.backends.local.model.loader import (
    choose_device,
    choose_dtype,
    load_config,
    load_tokenizer,
)
from chatcache.backends.local.model.needs import count_weights
from chatcache.backends.local.model.stores import hub_cache
from chatcache.backends.local.prompt.reasoning import HARMONY
from chatcache.backends.local.prompt.template import common_length
from chatcache.backends.local.study.rehearsal import (
    BASE_TIME,
    SYSTEM,
    Rehearsal,
    Rehearsed,
    Rehearser,
)
from chatcache.cache.book.namespace import is_approximate
from chatcache.cache.book.rates import RateBook
from chatcache.cache.files.store import namespaces
from chatcache.errors import ModelLoadError, UnavailableError
from chatcache.formatting import size

Interval = Literal["render", "second", "minute", "hour", "day"]
SystemRole = Literal["first", "moved", "folded", "refused"]

_STEPS: tuple[tuple[Interval, timedelta], ...] = (
    ("render", timedelta()),
    ("second", timedelta(seconds=1)),
    ("minute", timedelta(minutes=1)),
    ("hour", timedelta(hours=1)),
    ("day", timedelta(days=1)),
)
_MAX_CONTROLS = 512  # models reserve hundreds; one message holds them all
_SNIPPET_CHARACTERS = 48
# Families that keep a latent and the rotary part of the keys instead of K and V per head.
_LATENT_FAMILIES = frozenset({"deepseek_v2", "deepseek_v3", "kimi_linear"})


@dataclass(frozen=True, slots=True)
class ChangeByItself:
    """A template writes something else each `interval`: `text` (as on the base date) at token
    `position` of the prompt."""

    interval: Interval
    position: int
    text: str


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """What is known of a chat template. `leaked`: control tokens that typed text turns into."""

    has_own_template: bool
    knows_reasoning: bool
    has_thinking_switch: bool
    system_role: SystemRole
    change: ChangeByItself | None
    num_controls: int
    leaked: tuple[str, ...]
    rehearsed: tuple[Rehearsed, ...]

    @property
    def worst(self) -> Rehearsed:
        """The conversation that reads the most again, of those that are common."""
        common = [found for found in self.rehearsed if found.rehearsal.name in _COMMON]
        return max(common, key=lambda found: found.reread_per_turn)


@dataclass(frozen=True, slots=True)
class ModelProbe:
    """The report. `namespace` and the rates are known when the model has run on this machine with
    these settings and left something in the cache directory. `why_eager`: why a GPU cannot replay
    its steps; None: it can."""

    model: str
    path: Path
    architecture: str
    num_parameters: int | None
    dtype: str
    device: str
    num_layers: int
    layer_kinds: dict[str, int]
    kv_bytes_per_token: int
    cut: CutPolicy
    max_context_tokens: int
    template: TemplateReport
    why_eager: str | None
    remarks: tuple[str, ...] = ()
    namespace: str | None = None
    prefill_tokens_per_second: float | None = None
    restore_tokens_per_second: float | None = None


_COMMON = frozenset({"plain", "system", "reasoning", "thinking", "no_thinking"})


def probe_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    is_offline: bool = False,
    cache_dir: Path | None = None,
    system: str | None = None,
) -> ModelProbe:
    """Look at a model. Raises NotFoundError, ModelLoadError or UnavailableError."""
    import torch

    path = config_place(name, is_offline=is_offline)
    is_file, place = path.is_file(), choose_device(device)
    directory = derived_directory(open_model(path), cache_dir) if is_file else path
    tokenizer, config = load_tokenizer(directory), load_config(directory)
    if not is_file:
        config = form_of(path, config, place).config
    text_config = config.get_text_config()
    num_parameters = _num_parameters(path)
    chosen = choose_dtype(dtype, config, place, num_parameters or 1 << 40)
    if not isinstance(chosen, torch.dtype):  # a quantised model brings its own
        stored = getattr(text_config, "dtype", None)
        chosen = stored if isinstance(stored, torch.dtype) else torch.bfloat16
    ends = end_token_ids(_generation_config(directory), config, tokenizer)
    probe = ModelProbe(
        model=name,
        path=path,
        architecture=str((config.architectures or [config.model_type])[0]),
        num_parameters=num_parameters,
        dtype=str(chosen).removeprefix("torch."),
        device=str(place),
        num_layers=int(text_config.num_hidden_layers),
        layer_kinds=layer_kinds(text_config),
        kv_bytes_per_token=kv_values_per_token(text_config) * chosen.itemsize,
        cut=cut_policy(text_config),
        max_context_tokens=context_limit(text_config, tokenizer),
        template=probe_template(tokenizer, ends, system or SYSTEM),
        why_eager=why_eager(text_config),
        remarks=remarks_of(directory) if is_file else (),
    )
    if cache_dir is None:
        return probe
    known = {
        "tokenizer": identity.tokenizer_id(tokenizer),
        "config": identity.config_id(config.to_dict()),
        "dtype": probe.dtype,
        "adapter": "none",
    }
    return _with_measured(probe, known, cache_dir)


def config_place(name: str, *, is_offline: bool) -> Path:
    """The directory with the config and the tokenizer of a model, whose weights may be missing; or
    a GGUF file, which has both.

    Of a hub model that is not on this machine only these small files are fetched.
    """
    if name != resolve.BUILTIN and not hub_cache.is_gguf_only(name):
        snapshot = resolve.cached_snapshot(name)
        if snapshot is not None and (snapshot / "config.json").is_file():
            return snapshot
    found = resolve.resolve_model(name, is_offline=is_offline)
    if isinstance(found, Path):
        return found
    from chatcache.backends.local.model.hub_files import model_on_hub
    from chatcache.backends.local.model.progress import download

    if (model := model_on_hub(found)).gguf is not None:
        raise UnavailableError(
            f"{model.name} has its config and its tokenizer in the file itself, which is not here.",
            f"`chatcache models download {model.name}` fetches it ({size(model.num_bytes)}).",
        )
    return download(found, lambda event: None, has_weights=False)


# the template


def probe_template(tokenizer: Any, ends: frozenset[int], system: str = SYSTEM) -> TemplateReport:
    """Rehearse conversations with a tokenizer's chat template. Raises UnavailableError for one
    that takes no conversation at all."""
    rehearser = Rehearser(tokenizer, ends)
    template = rehearser.planner.template
    change = _change_by_itself(rehearser, system)
    tags = template.reasoning
    knows_reasoning = (
        tags is HARMONY or tags.open in template.source or tags.open in template.codec.controls
    )
    has_switch = template.think_switch != "none"
    conversations = [
        Rehearsal("plain", "plain chat"),
        Rehearsal("system", "with a system prompt", system),
    ]
    if knows_reasoning:
        conversations.append(Rehearsal("reasoning", "answers with reasoning", system, reasons=True))
    if has_switch:
        conversations += [
            Rehearsal("thinking", "thinking switched on", system, True, reasons=True),
            Rehearsal("no_thinking", "thinking switched off", system, False),
        ]
    conversations += [
        Rehearsal("spaces", "answers that end with spaces", system, has_spaces=True),
        Rehearsal("stopped", "answers that were stopped", system, is_stopped=True),
        Rehearsal("drift", "answers in unusual tokens", system, drifts=True),
    ]
    if change is not None:
        conversations.append(Rehearsal("next_day", "each turn a day later", system, days=1))
    rehearsed = tuple(map(rehearser.rehearse, conversations))
    if rehearsed[0].problem is not None:
        raise UnavailableError(rehearsed[0].problem, "Choose another model.")
    controls = list(template.codec.controls)[:_MAX_CONTROLS]
    return TemplateReport(
        has_own_template=getattr(tokenizer, "chat_template", None) is not None,
        knows_reasoning=knows_reasoning,
        has_thinking_switch=has_switch,
        system_role=_system_role(rehearser, rehearsed, system),
        change=change,
        num_controls=len(controls),
        leaked=_leaked(rehearser, controls),
        rehearsed=rehearsed,
    )


def _change_by_itself(rehearser: Rehearser, system: str) -> ChangeByItself | None:
    """What differs when the same conversation is rendered later; without a system prompt too,
    because a template may have one of its own."""
    question = ChatMessage("user", "What is this?")
    for messages in ([ChatMessage("system", system), question], [question]):
        base = _rendered(rehearser, messages, BASE_TIME)
        for interval, step in _STEPS:
            later = _rendered(rehearser, messages, BASE_TIME + step)
            if later != base:
                return _difference(rehearser, interval, base, later)
    return None


def _rendered(rehearser: Rehearser, messages: Sequence[ChatMessage], at: datetime) -> str:
    rehearser.now = at
    try:
        return rehearser.planner.template.render(messages).text
    except UnavailableError:
        return ""
    finally:
        rehearser.now = BASE_TIME


def _difference(rehearser: Rehearser, interval: Interval, base: str, later: str) -> ChangeByItself:
    start = common_length(base, later)
    stop = len(base)
    while stop > start and base[stop - 1 :] == later[stop - 1 - len(base) :]:
        stop -= 1
    text = rehearser.planner.date_at(base, start, start + 1) or base[start : max(stop, start + 1)]
    position = len(rehearser.planner.codec.encode(base[:start], "\ue000"))
    return ChangeByItself(interval, position, text[:_SNIPPET_CHARACTERS])


def _system_role(rehearser: Rehearser, rehearsed: Sequence[Rehearsed], system: str) -> SystemRole:
    """Where the template writes the system prompt."""
    with_system = next(found for found in rehearsed if found.rehearsal.name == "system")
    if any(turn.cause == "system_prompt_moved" for turn in with_system.turns):
        return "moved"
    if with_system.problem is not None:
        return "refused"
    return "folded" if rehearser.planner.template.folds_system else "first"


def _leaked(rehearser: Rehearser, controls: Sequence[str]) -> tuple[str, ...]:
    """The control tokens that become real when they are typed; there should be none."""
    planner = rehearser.planner

    def count(text: str) -> dict[int, int]:
        ids = planner.plan([ChatMessage("user", text)]).ids
        return {id_: ids.count(id_) for id_ in planner.codec.control_ids}

    typed, plain = count(" ".join(["x", *controls, "x"])), count("x x")
    return tuple(planner.codec.control_ids[id_] for id_ in typed if typed[id_] > plain[id_])


# files


def _num_parameters(path: Path) -> int | None:
    try:
        return files.count_parameters(path) if path.is_file() else count_weights(path)
    except ModelLoadError:
        return None


def _generation_config(path: Path) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError):
        return None


def _with_measured(probe: ModelProbe, known: dict[str, str], cache_dir: Path) -> ModelProbe:
    """The report with the namespace that the model left behind, and the rates measured in it."""
    try:
        weights_files = files.weight_files(probe.path)
    except ModelLoadError:
        return probe
    weights = identity.known_weights_id(weights_files, cache_dir / identity.REMEMBERED)
    if weights is None:
        return probe
    wanted = known | {"weights": weights}
    stores = [
        store
        for store in namespaces(cache_dir)
        if wanted.items() <= store.fields().items() and not is_approximate(store.fields())
    ]
    if len(stores) != 1:
        return probe
    rates = RateBook(stores[0].directory / "rates.json")
    restored = rates.restore_bytes_per_second
    return replace(
        probe,
        namespace=stores[0].namespace,
        prefill_tokens_per_second=rates.prefill_tokens_per_second,
        restore_tokens_per_second=restored and restored / max(1, probe.kv_bytes_per_token),
    )


# K and V


def layer_kinds(config: Any) -> dict[str, int]:
    """How many layers there are of each kind, for a text config."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds:
        kinds = ["full_attention"] * int(config.num_hidden_layers)
        if all(_has_state_only(layer) for layer in _layers(config)):
            kinds = ["recurrent"] * len(kinds)
    return dict(Counter(str(kind) for kind in kinds))


def kv_values_per_token(config: Any) -> int:
    """How many numbers of K and V a token takes in all layers together, for a text config."""
    num_layers = sum(isinstance(layer, DynamicLayer) for layer in _layers(config))
    if str(getattr(config, "model_type", "")) in _LATENT_FAMILIES:
        return num_layers * (int(config.kv_lora_rank) + int(config.qk_rope_head_dim))
    num_heads = _declared(config, "num_key_value_heads") or int(config.num_attention_heads)
    head_dim = _declared(config, "head_dim")
    if not head_dim:
        head_dim = int(config.hidden_size) // int(config.num_attention_heads)
    return 2 * num_layers * num_heads * head_dim


def _declared(config: Any, name: str) -> int | None:
    """A field that the config of this family has; any config file may hold more than that."""
    fields = getattr(type(config), "__dataclass_fields__", {})
    aliases = getattr(type(config), "attribute_map", {})
    return getattr(config, name, None) if name in fields or name in aliases else None


def _layers(config: Any) -> list[Any]:
    """The layers that transformers' own cache has for this config."""
    return list(DynamicCache(config=config).layers)


def _has_state_only(layer: Any) -> bool:
    return isinstance(layer, LinearAttentionLayer) and not isinstance(layer, DynamicLayer)
