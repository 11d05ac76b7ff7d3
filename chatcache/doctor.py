"""Looks at the installation, the directories and the stores, and says what to do.

Owns the checks and their words. What the stores verify is handed in: it opens none itself, and
loads neither torch nor a model (the devices are asked in a process of their own).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chatcache.assets import pocket_dir
from chatcache.budgets import disk_budget, ram_budget
from chatcache.cache.files.ownership import foreign_owner
from chatcache.cache.inspect import VerifyReport
from chatcache.chat.schema import APPLICATION_ID
from chatcache.checks import spill_parts
from chatcache.config import Paths, Settings
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import plural, size
from chatcache.frontend.engines import state_of
from chatcache.machine import allowance
from chatcache.network import check_environment, proxy_variables
from chatcache.os_failures import lock_failure, reason
from chatcache.remotes import remote_model

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

    from chatcache.backends.local.engine.control import RunningEngine

Status = Literal["ok", "note", "problem", "damage"]

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors"),
    *("textual", "httpx2", "xxhash", "tomlkit"),
)
DEVICE_SECONDS = 120
DEVICE_PROBE = """
import sys
import torch
chosen, allowed = map(int, sys.argv[1:])
num_threads = chosen or min(allowed, torch.get_num_threads())
names = ["cpu (%d thread%s)" % (num_threads, "s" * (num_threads > 1))]
if torch.cuda.is_available():
    names += ["cuda (%s)" % torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
if torch.backends.mps.is_available():
    names.append("mps")
print(", ".join(names))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` says what to do when it is not ok."""

    subject: str
    status: Status
    detail: str
    advice: str = ""


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
    yield _python()
    yield from _packages()
    yield _devices(load)
    yield _machine()
    yield from _budgets(load)
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
    yield Finding("engines", *state_of(look_at_engines))
    yield _words(paths, verify_words)
    yield from _copies(paths)
    yield _cache(load, verify_cache)


def exit_code(findings: Sequence[Finding]) -> int:
    """5 for damage, 4 when something keeps chatcache from working, else 0."""
    statuses = {finding.status for finding in findings}
    return 5 if "damage" in statuses else 4 if "problem" in statuses else 0


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", "ok", detail)


def _packages() -> Iterator[Finding]:
    wanted = _requirements()
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "problem", "not installed", "Install chatcache again with pip.")
            continue
        specifier = wanted.get(name)
        if specifier and not specifier.contains(version, prereleases=True):
            advice = "It was not tested with this version; install chatcache again with pip."
            yield Finding(name, "note", f"{version}, expected {specifier}", advice)
        else:
            yield Finding(name, "ok", version)


def _requirements() -> dict[str, SpecifierSet]:
    """What chatcache asks for, by package; nothing when it runs without being installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("chatcache") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {needed.name: needed.specifier for needed in requirements if needed.marker is None}


def _devices(load: Callable[[], Settings]) -> Finding:
    """What torch would compute on, and with how many threads the engine does."""
    try:
        chosen = load().config.model.threads or 0
    except ChatcacheError:
        chosen = 0  # the settings have a finding of their own
    numbers = [str(chosen), str(allowance().num_threads)]
    try:
        asked = subprocess.run(
            [sys.executable, "-c", DEVICE_PROBE, *numbers],
            capture_output=True,
            text=True,
            timeout=DEVICE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("devices", "problem", f"torch did not answer: {error}", "Install it again.")
    if asked.returncode == 0:
        return Finding("devices", "ok", asked.stdout.strip())
    last_line = (asked.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("devices", "problem", f"torch does not start: {last_line}", "Install it again.")


def _machine() -> Finding:
    """How much of the machine may be used."""
    found, why = allowance(), ""
    cpus, memory = f"{found.num_host_cpus} CPUs", size(found.host_bytes)
    if found.is_less:
        cpus, memory = f"{found.num_cpus:.3g} of {cpus}", f"{size(found.memory_bytes)} of {memory}"
        why = " (limits of the container, the service or the shell)"
    return Finding("machine", "ok", f"{cpus}, {memory} of memory{why}")


def _budgets(load: Callable[[], Settings]) -> Iterator[Finding]:
    """What segments may take at most, and whether that leaves room for a model."""
    try:
        settings, memory = load(), allowance().memory_bytes
        ram, disk = ram_budget(settings, memory), disk_budget(settings)
    except (ChatcacheError, OSError):
        return  # the settings and the directory have findings of their own
    advice = ""
    if ram.is_chosen and ram.num_bytes > memory // 2:
        advice = "That leaves little for the model: `chatcache config set cache.ram_budget 25%`."
    yield Finding("cache in memory", "note" if advice else "ok", ram.words, advice)
    yield Finding("cache on disk", "ok", disk.words)


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
