"""Builds the collaborators. The only place that knows which class stands behind which contract.

All imports are inside functions, so that a command pays only for what it uses: listing sessions
loads no engine, and nothing here loads torch (the engine process does).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.budgets import disk_budget, disk_kept, disk_size, ram_budget
from chatcache.checks import (
    OWN_ENGINE,
    keep_alive_seconds,
    num_bytes,
    num_seconds,
    spill_parts,
)
from chatcache.config import Paths, Settings
from chatcache.configfile import set_value
from chatcache.errors import UsageError
from chatcache.model_form import named_form
from chatcache.remotes import check_reach, remote_model
from chatcache.token_ids import TokenIds

if TYPE_CHECKING:
    from chatcache.backends.base import Backend, CostEstimate
    from chatcache.backends.local.engine.residence import Residence
    from chatcache.backends.local.engine.settings import EngineSettings
    from chatcache.cache.book.policy import TierPolicy
    from chatcache.cache.inspect import CacheInspector
    from chatcache.cache.views import TreeShape
    from chatcache.chat.bill import PriceList
    from chatcache.chat.forget import Journals
    from chatcache.chat.idle import IdleOptions
    from chatcache.chat.service import ChatService
    from chatcache.chat.store import SessionStore
    from chatcache.frontend.options import Backstage, ChatOptions, Examine
    from chatcache.frontend.sampling import Sampling

SWITCH_SECONDS = 0.0005


@contextlib.contextmanager
def opened_service(
    settings: Settings, front_end: str = "", *, has_engine: bool = True, can_switch: bool = False
) -> Iterator[ChatService]:
    """The chat service, closed at the end. Without an engine it lists, forks, renames, searches;
    conversations that cannot be written are then still read.

    `front_end` is what other users of the engine are told; `can_switch`: its model can be changed
    while it runs.
    """
    from chatcache.backends.switching import SwitchingBackend
    from chatcache.chat.service import ChatService
    from chatcache.logs import send_log_to

    send_log_to(settings.paths.error_log)
    store = open_store(settings, may_be_read_only=not has_engine)
    backend: Backend | None = None
    if has_engine and can_switch:
        make = partial(open_backend, settings, front_end=front_end)
        backend = SwitchingBackend(make, settings.config.model.default)
    elif has_engine:
        backend = open_backend(settings, front_end=front_end)
    service = ChatService(
        store,
        backend,
        offline_cost=partial(_offline_cost, settings),
        offline_tree=partial(_offline_tree, settings),
        forget_kv=partial(_forget_kv, settings),
        idle=idle_options(settings),
    )
    try:
        if backend is not None:
            backend.start()
        yield service
    finally:
        service.close()


def open_store(settings: Settings, *, may_be_read_only: bool = False) -> SessionStore:
    """The conversations. Raises StorageError when they cannot be written, or not even read."""
    from chatcache.chat.store import SessionStore

    return SessionStore(settings.paths.database, may_be_read_only=may_be_read_only)


def open_backend(settings: Settings, model: str | None = None, *, front_end: str = "") -> Backend:
    """What answers for a model (None: that of the settings): an engine, or a server when it is
    called `PROFILE:NAME`. Nothing is started yet. Raises NotFoundError for an unknown profile.
    """
    default = settings.config.model.default
    remote = remote_model(model or default, settings.config.remotes)
    if remote is not None:
        if model in (None, default) and settings.origins.get("model.adapter") == "option":
            raise UsageError(
                "An adapter cannot be put on the model of a server.", "Leave --adapter out."
            )
        from chatcache.backends.remote.backend import RemoteBackend

        lessons = settings.paths.cache_dir / "servers.json"
        return RemoteBackend(remote, is_offline=settings.config.model.offline, lessons=lessons)
    from chatcache.backends.local.engine.client import LocalBackend

    engine = engine_settings(settings)
    named = named_form(model or default, settings.config.remotes)
    if named.model != default:  # an adapter belongs to the model that it was trained on
        name, adapter = _with_adapter(named.model, None)
        engine = replace(engine, model=name, adapter=adapter)
    if (quantize := named.quantize) is not None:
        engine = replace(engine, quantize=quantize)
    return LocalBackend(engine, residence(settings), front_end=front_end)


def residence(settings: Settings) -> Residence | None:
    """Where engines live that several chats share; None: each chat has one of its own."""
    keep_alive = settings.config.engine.keep_alive
    if keep_alive == OWN_ENGINE:
        return None
    from chatcache.backends.local.engine.residence import Residence

    return Residence(engines_directory(settings.paths), keep_alive_seconds(keep_alive))


def engines_directory(paths: Paths) -> Path:
    """Where the sockets of engines are."""
    from chatcache.backends.local.engine.residence import engines_directory

    return engines_directory(paths.state_dir, os.environ)


def forget_in_memory(paths: Paths, *, is_all: bool = False) -> None:
    """Have engines that stay give up what was deleted on disk, or all that they hold in memory."""
    from chatcache.backends.local.engine.control import forget_deleted

    forget_deleted(engines_directory(paths), paths.cache_dir, is_all=is_all)


def _with_adapter(model: str, adapter: Path | None) -> tuple[str, Path | None]:
    """The place of a model and its adapter; one that is an adapter itself is put on its base."""
    from chatcache.backends.local.model.bases import adapted
    from chatcache.backends.local.model.resolve import whole_name

    name, found = adapted(model, adapter)
    return whole_name(name), None if found is None else found.absolute()


def check_model(settings: Settings) -> None:
    """Look at the model's files, so that a wrong name fails at once and before anything is kept.

    Raises NotFoundError or UnavailableError. A hub id that has to be downloaded is fine, and a
    server is not asked: only its profile and its key are looked at.
    """
    from chatcache.backends.local.model.resolve import check_model_dir, resolve_model

    model = settings.config.model
    if (remote := remote_model(model.default, settings.config.remotes)) is not None:
        check_reach(remote.profile, is_offline=model.offline)
        return
    name = model.default if model.adapter is not None else _with_adapter(model.default, None)[0]
    found = resolve_model(name, is_offline=model.offline)
    if isinstance(found, Path):
        check_model_dir(found)


def open_inspector(settings: Settings) -> CacheInspector:
    """A look at the segments on disk, without an engine."""
    from chatcache.cache.inspect import CacheInspector

    return CacheInspector(
        settings.paths.cache_dir,
        ram_budget(settings).num_bytes,
        disk_budget(settings).num_bytes,
        tier_policy(settings),
    )


def engine_settings(settings: Settings) -> EngineSettings:
    from chatcache.assets import adapter_dir
    from chatcache.backends.local.engine.settings import EngineSettings

    model = settings.config.model
    chosen = None if model.adapter is None else adapter_dir(model.adapter).absolute()
    name, adapter = _with_adapter(model.default, chosen)
    return EngineSettings(
        model=name,
        adapter=adapter,
        device=model.device,
        dtype=model.dtype,
        quantize=model.quantize,
        max_context=model.max_context,
        is_fit_checked=model.fit_check,
        engines_dir=engines_directory(settings.paths),
        is_offline=model.offline,
        num_threads=model.threads,
        cache_dir=settings.paths.cache_dir,
        log_path=_engine_log(settings),
        ram_budget=ram_budget(settings).num_bytes,
        vram_budget=settings.config.cache.vram_budget,
        disk_budget=disk_budget(settings).num_bytes,
        policy=tier_policy(settings),
    )


def tier_policy(settings: Settings) -> TierPolicy:
    """When segments go to disk, and how long they are kept."""
    from chatcache.cache.book.policy import TierPolicy

    cache = settings.config.cache
    mode, is_int8 = spill_parts(cache.spill)
    return TierPolicy(
        spill=mode,  # type: ignore[arg-type]
        ram_ttl=num_seconds(cache.ram_ttl),
        disk_ttl=num_seconds(cache.disk_ttl),
        disk_floor=num_bytes(cache.disk_floor, lambda: disk_size(settings.paths.cache_dir)),
        disk_kept=disk_kept(settings),
        precision="int8" if is_int8 else "exact",
    )


def idle_options(settings: Settings) -> IdleOptions:
    from chatcache.chat.idle import IdleOptions

    cache = settings.config.cache
    return IdleOptions(cache.idle_next_turn, cache.idle_draft, cache.idle_restore)


def _engine_log(settings: Settings) -> Path:
    """The log of the engine, in a directory that only its owner can read.

    A log that cannot be written is not worth failing for.
    """
    log = settings.paths.engine_log
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.touch(mode=0o600)
    except OSError:
        return Path(os.devnull)
    return log


def run_tui(settings: Settings, session: str | None, examine: Examine) -> None:
    """The chat in the terminal, until it is quit. `examine` gives the lines of a doctor."""
    import gc
    import sys

    gc.disable()  # until the start is over: it would walk through every import, and free nothing
    # A key passes through many steps, each of which may wait for a thread that imports or reads.
    sys.setswitchinterval(SWITCH_SECONDS)
    from chatcache.tui.app import ChatCacheApp

    with contextlib.ExitStack() as opened:
        app = ChatCacheApp(
            lambda: opened.enter_context(opened_backstage(settings, "terminal")),
            chat_options(settings, session, examine),
        )
        failure = app.run() or app.failure
    if failure is not None:
        raise failure


def run_plain(settings: Settings, session: str | None, examine: Examine) -> None:
    """The chat as lines, until it is quit."""
    from chatcache.plain.chat import PlainChat

    with opened_backstage(settings, "plain chat") as backstage:
        PlainChat(backstage, chat_options(settings, session, examine)).run()


@contextlib.contextmanager
def opened_backstage(settings: Settings, front_end: str) -> Iterator[Backstage]:
    """What a chat acts on, closed at the end."""
    from chatcache.frontend.desk import SegmentDesk
    from chatcache.frontend.options import Backstage

    with opened_service(settings, front_end, can_switch=True) as service:
        desk = SegmentDesk(lambda: open_inspector(settings))
        yield Backstage(service, sampling(settings), desk)


def chat_options(settings: Settings, session: str | None, examine: Examine) -> ChatOptions:
    from chatcache.frontend.form_shelf import FormShelf
    from chatcache.frontend.options import ChatOptions

    config, data_dir = settings.config, settings.paths.data_dir
    return ChatOptions(
        session_ref=session,
        personas=config.personas,
        keys=config.keys,
        # Without a choice NO_COLOR may choose.
        theme=None if settings.origins.get("ui.theme") == "default" else config.ui.theme,
        has_motion=config.ui.motion,
        panel=config.ui.panel,
        is_offline=config.model.offline,
        remotes=config.remotes,
        prices=price_list(settings),
        forms=FormShelf(settings.paths.cache_dir, config.model.quantize, config.model.dtype),
        examine=examine,
        keep_setting=partial(set_value, settings.paths.config_file),
        drafts_path=data_dir / "drafts.json",
        last_chat_path=data_dir / "last_chat.json",
    )


def price_list(settings: Settings) -> PriceList:
    """What answers cost, for the ledger."""
    from chatcache.chat.bill import PriceList

    return PriceList(settings.config.billing, settings.config.remotes)


def sampling(settings: Settings) -> Sampling:
    """The sampling of the settings, with who decided what, for a front end."""
    from chatcache.backends.base import SamplingParams
    from chatcache.frontend.sampling import NAMES, Sampling

    prefix = "sampling."
    origins = {
        name.removeprefix(prefix): origin
        for name, origin in settings.origins.items()
        if name.startswith(prefix) and origin != "default"
    }
    section = settings.config.sampling
    params = SamplingParams(**{name: getattr(section, name) for name in NAMES})
    return Sampling(params, section.think, origins)


def _forget_kv(settings: Settings, namespace: str, gone: Journals, kept: Journals) -> None:
    try:
        open_inspector(settings).forget(namespace, gone, kept)
    except OSError:
        logging.getLogger(__name__).exception("segments of a deleted session are left behind")
    forget_in_memory(settings.paths)


def _offline_tree(settings: Settings, namespace: str) -> TreeShape | None:
    try:
        return open_inspector(settings).tree(namespace)
    except OSError:
        return None


def _offline_cost(
    settings: Settings, namespace: str, journals: Sequence[TokenIds]
) -> list[CostEstimate] | None:
    try:
        return open_inspector(settings).estimate(namespace, journals)
    except OSError:
        return None  # a cache that cannot be read has nothing to offer; a fork needs none
