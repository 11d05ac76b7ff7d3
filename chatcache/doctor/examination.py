"""All that is looked at: the installation, the settings, the directories and the stores.

Owns the order, and the checks of what is on disk and of what the settings name. What the stores
verify is handed in.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.assets import pocket_dir
from chatcache.backends.local.packed.kernel_store import num_refused
from chatcache.cache.files.ownership import foreign_owner
from chatcache.cache.inspect import VerifyReport
from chatcache.chat.schema import APPLICATION_ID
from chatcache.checks import spill_parts
from chatcache.config import Paths, Settings
from chatcache.doctor.finding import Finding, Status
from chatcache.doctor.machine import surroundings
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import plural, size
from chatcache.frontend.engines import state_of
from chatcache.network import check_environment, proxy_variables
from chatcache.os_failures import lock_failure, reason
from chatcache.remotes import remote_model

if TYPE_CHECKING:
    from chatcache.backends.local.engine.control import RunningEngine


def examine(
    paths: Paths,
    load: Callable[[], Settings],
    verify_words: Callable[[], Sequence[str]],
    verify_cache: Callable[[], VerifyReport],
    look_at_engines: Callable[[], Sequence[RunningEngine]],
    *,
    fix: bool,
) -> Iterator[Finding]:
    """All findings, the quick ones first.

    `load` gives the settings, or raises what is wrong with them; `verify_words` gives problems;
    `verify_cache` what it found, and put right if it was asked to; `look_at_engines` those that
    run. No server is asked.
    With `fix`, directories that others can read are closed to them.
    """
    yield from surroundings(load)
    yield _builtin_model()
    yield _config(paths, load)
    yield from _model(load)
    yield from _servers(load)
    yield _network()
    for name, directory in (
        ("data directory", paths.data_dir),
        ("cache directory", paths.cache_dir),
        ("log directory", paths.log_dir),
    ):
        yield _directory(name, directory, fix=fix)
    yield from _made_files(paths)
    yield Finding("engines", *state_of(look_at_engines))
    yield _words(paths, verify_words)
    yield from _copies(paths)
    yield _cache(load, verify_cache)


def _builtin_model() -> Finding:
    try:
        return Finding("built-in model", "ok", str(pocket_dir()))
    except ChatcacheError as error:
        return Finding("built-in model", "problem", error.message, error.hint)


def _config(paths: Paths, load: Callable[[], Settings]) -> Finding:
    try:
        load()
    except ChatcacheError as error:
        return Finding("settings", "problem", error.message, error.hint)
    if paths.config_file.exists():
        return Finding("settings", "ok", str(paths.config_file))
    return Finding("settings", "ok", f"{paths.config_file} is not there; defaults are used")


def _model(load: Callable[[], Settings]) -> Iterator[Finding]:
    """The model in use: whether it can be loaded, and what its chat template is like."""
    from chatcache.backends.local.model.loadable import obstacle
    from chatcache.backends.local.model.outlook import outlook
    from chatcache.backends.local.model.resolve import resolve_model

    try:
        config = load().config
        model = config.model.default
        if remote_model(model, config.remotes) is not None:
            yield Finding("chat template", "ok", "that of the server; chatcache does not see it")
            return
        found = resolve_model(model, is_offline=config.model.offline)
    except ChatcacheError as error:
        yield Finding("model", "problem", error.message, error.hint)
        return
    if not isinstance(found, Path):
        yield Finding("model", "ok", f"{model} will be downloaded when it is needed")
        return
    if (hindrance := obstacle(found)) is None:
        yield Finding("model", "ok", model)
        if room := outlook(model, found, config.model.dtype, config.model.quantize):
            yield Finding("memory", room.status, room.detail, room.advice)
    else:
        yield Finding("model", "problem", hindrance.problem, hindrance.advice)
    yield _template(model, found)


def _template(model: str, path: Path) -> Finding:
    """Does the chat template write something that changes by itself?"""
    from chatcache.backends.local.model.resolve import changes_by_itself, read_template

    source = read_template(path)
    if source is None:
        return Finding(
            "chat template",
            "note",
            f"{model} has none: it gets plain text, and may not have been made for chats",
            "Choose a model whose name says instruct or chat.",
        )
    written = changes_by_itself(source)
    if written is None:
        return Finding("chat template", "ok", f"that of {model} does not change by itself")
    return Finding(
        "chat template",
        "note",
        f"that of {model} writes {written}: when it changes, conversations are read again",
        f"`chatcache models probe {model}` tells what it costs;"
        " `chatcache sessions mode SESSION append` avoids it.",
    )


def _servers(load: Callable[[], Settings]) -> Iterator[Finding]:
    """The remote profiles: whether each has its key, and who could read along."""
    try:
        profiles = load().config.remotes.values()
    except ChatcacheError:
        return  # the settings have a finding of their own
    for profile in profiles:
        name = f"server {profile.name}"
        try:
            has_key = profile.key() is not None
        except ChatcacheError as error:
            yield Finding(name, "note", f"{profile.base_url}: {error.message}", error.hint)
            continue
        words = f"key in ${profile.api_key_env}" if has_key else "without a key"
        detail = f"{profile.base_url}, {words}"
        if profile.is_loopback or profile.is_encrypted:
            yield Finding(name, "ok", f"{detail}; not asked")
        else:
            what = "messages and key are" if has_key else "messages are"
            advice = "Where the server has TLS, write https:// in its base_url."
            yield Finding(name, "note", f"{detail}; {what} not encrypted on the way", advice)


def _network() -> Finding:
    """What the environment says of the way to servers and to the hub; nobody is asked."""
    try:
        check_environment()
    except UnavailableError as error:
        return Finding("network", "note", error.message, error.hint)
    named = " and ".join(proxy_variables())
    return Finding("network", "ok", f"by way of the proxy of {named}" if named else "no proxy")


def _directory(name: str, directory: Path, *, fix: bool) -> Finding:
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        advice = "Change its permissions, or choose another one (see `chatcache paths`)."
        return Finding(name, "problem", f"{existing} cannot be written", advice)
    free = f"{size(shutil.disk_usage(existing).free)} free"
    if existing != directory:
        return Finding(name, "ok", f"{directory} will be made when it is needed, {free}")
    if (owner := foreign_owner(directory)) is not None:
        advice = "Choose another one (see `chatcache paths`)."
        return Finding(
            name, "problem", f"{directory} belongs to another user (uid {owner})", advice
        )
    if (failure := lock_failure(directory / "probe")) is not None:
        advice = "chatcache works there all the same, more slowly; a local disk is better."
        return Finding(name, "note", f"{directory}, {free}: {reason(failure)}", advice)
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not mode & 0o077 or os.name != "posix":
        return Finding(name, "ok", f"{directory}, {free}")
    detail = f"{directory} can be read by others (mode {mode:04o})"
    advice = f"chmod 700 {shlex.quote(str(directory))}"
    if not fix:
        return Finding(name, "note", detail, advice)
    try:
        directory.chmod(0o700)
    except OSError as error:
        return Finding(name, "note", f"{detail}: {reason(error)}", "Its file system may keep none.")
    return Finding(name, "ok", f"{directory}, {free}; others can no longer read it")


def _made_files(paths: Paths) -> Iterator[Finding]:
    """What was made of models, once: it costs time to make again, and nothing else."""
    told = []
    for folder, what in (
        ("quantized", "quantised weights"),
        ("gguf", "what GGUF files were read for"),
        ("kernels", "compiled kernels"),
    ):
        num_bytes = _bytes_below(paths.cache_dir / folder)
        if num_bytes:
            told.append(f"{what} {size(num_bytes)} ({folder}/)")
    if told:
        where = f"in {paths.cache_dir}; what is deleted of it is made again when it is needed"
        yield Finding("made of models", "ok", f"{', '.join(told)} {where}")
    kernels = paths.cache_dir / "kernels"
    if count := num_refused(kernels):
        yield Finding(
            "compiled code",
            "note",
            f"wrong on this processor for {plural(count, 'model')}, so it is not used there",
            f"Answers are right, and slower. Without {kernels} it is compiled and compared anew.",
        )


def _bytes_below(directory: Path) -> int:
    """What can be seen of it."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - many files
    return total


def _words(paths: Paths, verify_words: Callable[[], Sequence[str]]) -> Finding:
    if not paths.database.exists():
        return Finding("conversations", "ok", "none yet")
    try:
        problems = verify_words()
    except ChatcacheError as error:
        status: Status = "damage" if error.exit_code == 5 else "problem"
        return Finding("conversations", status, error.message, error.hint)
    if not problems:
        return Finding("conversations", "ok", f"{paths.database} is sound")
    advice = (
        "Export what is readable with `chatcache sessions export --all`, then put a backup of"
        f" {paths.database} back."
    )
    return Finding("conversations", "damage", " ".join(problems), advice)


def _copies(paths: Paths) -> Iterator[Finding]:
    """Other conversation databases beside ours: what a synchronised folder makes when two machines
    have written, under a name of its own, or what a person has put there."""
    ours = paths.database.name
    try:
        beside = [file for file in sorted(paths.data_dir.iterdir()) if file.is_file()]
        copies = [file.name for file in beside if not _is_ours(file.name, ours) and _is_copy(file)]
    except OSError:
        return  # the directory has a finding of its own
    if copies:
        yield Finding(
            "copies",
            "note",
            f"beside {ours} there {'is' if len(copies) == 1 else 'are'} {', '.join(copies)}:"
            " conflicted copies of a synchronised folder, or backups",
            f"They may hold words that are not here. Copy one as {ours} into a directory of its"
            " own, DIR: `chatcache sessions export --all --data-dir DIR >all.json` and `chatcache"
            " sessions import all.json` bring them here. Let one machine at a time write there.",
        )


def _is_ours(name: str, ours: str) -> bool:
    return name in {ours, *(f"{ours}-{part}" for part in ("wal", "shm", "journal"))}


def _is_copy(file: Path) -> bool:
    """Whether it is a conversation database, or the log of one."""
    with file.open("rb") as opened:
        head = opened.read(100)
    if head.startswith(b"SQLite format 3\0"):
        return head[68:72] == APPLICATION_ID.to_bytes(4, "big")
    return head[:4] in (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


def _cache(load: Callable[[], Settings], verify_cache: Callable[[], VerifyReport]) -> Finding:
    try:
        found = verify_cache()
    except (ChatcacheError, OSError) as error:
        return Finding("segments", "problem", f"They cannot be read: {error}", "Check permissions.")
    problems = [f"{segment_id}: {problem}" for segment_id, problem in found.damaged]
    detail = f"{plural(found.num_checked, 'segment')}, all sound"
    if found.num_fixed:
        detail = "; ".join([*problems, f"{found.num_fixed:,} put aside or removed"])
    elif problems:
        advice = "`chatcache doctor --fix` sets them aside; only speed is lost."
        return Finding("segments", "damage", "; ".join(problems), advice)
    try:
        _, is_approximate = spill_parts(load().config.cache.spill)
    except ChatcacheError:
        is_approximate = False  # the settings have a finding of their own
    if is_approximate:
        advice = "Exact is `chatcache config set cache.spill turn`; it is the default."
        return Finding("segments", "note", f"{detail}; kept as int8, which is approximate", advice)
    return Finding("segments", "ok", detail)
