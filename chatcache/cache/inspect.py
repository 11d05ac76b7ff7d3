"""A look at all namespaces of a cache directory, without an engine and without torch.

It reads headers, compares checksums, and removes files. It changes nothing unless told to.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chatcache.atomic_write import remove_leftovers
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.rates import RateBook
from chatcache.cache.files.names import id_of
from chatcache.cache.files.ownership import check_readable
from chatcache.cache.files.quantized import QuantizedModels
from chatcache.cache.files.quarantine import Quarantine
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFile,
    SegmentFormatError,
    SegmentMissingError,
)
from chatcache.cache.files.store import SegmentStore, namespaces
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tiers.attacher import contradictions
from chatcache.cache.views import CostEstimate, SegmentRow, SessionKV, TierUse, TreeShape
from chatcache.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """One namespace on disk: what it stands for and what it takes."""

    namespace: str
    fields: Mapping[str, str]
    num_bytes: int
    num_segments: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`damaged` are pairs of segment id and problem. `num_orphans` are sound but unreachable:
    the segment before them is gone."""

    num_checked: int
    damaged: tuple[tuple[str, str], ...]
    num_orphans: int
    num_fixed: int


@dataclass(frozen=True, slots=True)
class SegmentDetails:
    """What a file says of itself. `problem`: why it cannot be used; None: every checksum holds."""

    created_at: float
    creator: str
    dtypes: tuple[str, ...]
    num_tensors: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Removed:
    num_files: int
    num_bytes: int


class _Reading:
    """Tells how many bytes of all have been read."""

    def __init__(self, tell: Callable[[int, int], None] | None, total: int):
        self._tell, self._total, self._done = tell, total, 0

    def begin(self, path: Path) -> None:
        if self._tell is not None:
            self._tell(self._done, self._total)
        self._done += _size(path)


class CacheInspector:
    """Everything below one cache directory."""

    def __init__(
        self,
        cache_dir: Path,
        ram_budget: int,
        disk_budget: int,
        policy: TierPolicy | None = None,
    ):
        self.cache_dir = cache_dir
        self._ram_budget = ram_budget
        self._disk_budget = disk_budget
        self._policy = policy
        self.quarantine = Quarantine(cache_dir)
        self.quantized = QuantizedModels(cache_dir)

    def check_access(self) -> None:
        """Raises OSError if the segments belong to another user, or cannot be listed."""
        check_readable(self.cache_dir)

    def tiers(self) -> tuple[TierUse, TierUse]:
        """RAM (always empty here: it belongs to a running engine) and disk."""
        used = self.namespaces()
        num_bytes = sum(use.num_bytes for use in used)
        kept = 0 if self._policy is None else min(num_bytes, self._policy.disk_kept)
        budget = max(self._disk_budget, kept)
        disk = TierUse(num_bytes, budget, sum(use.num_segments for use in used))
        return TierUse(0, self._ram_budget, 0), disk

    def namespaces(self) -> list[NamespaceUse]:
        found = []
        for store in namespaces(self.cache_dir):
            sizes = [_size(path) for path in store.paths()]
            found.append(NamespaceUse(store.namespace, store.fields(), sum(sizes), len(sizes)))
        return found

    def fields(self) -> Mapping[str, Mapping[str, str]]:
        """What each namespace stands for, by its id; nothing is known of those that have gone."""
        found = {store.namespace: store.fields() for store in namespaces(self.cache_dir)}
        return defaultdict(dict, found)

    def rows(self) -> list[SegmentRow]:
        """All segments of all namespaces, the most recently used first."""
        found: list[SegmentRow] = []
        for store in namespaces(self.cache_dir):
            with self._opened(store) as cache:
                found += cache.rows()
        return sorted(found, key=lambda row: (-row.last_used, row.segment_id))

    def tree(self, namespace: str) -> TreeShape | None:
        """The tree of a namespace, as far as it is on disk; None for an unknown one."""
        store = SegmentStore(self.cache_dir, namespace)
        if not namespace or not store.directory.is_dir():
            return None
        with self._opened(store, self._policy) as cache:
            return cache.tree()

    def path_of(self, row: SegmentRow) -> Path:
        """The file of a row."""
        return SegmentStore(self.cache_dir, row.namespace).path_of(row)

    def verify(
        self, *, fix: bool = False, tell: Callable[[int, int], None] | None = None
    ) -> VerifyReport:
        """Compare every checksum and every id. With `fix`, damaged files are set aside and
        orphans removed. `tell` hears the bytes read of all, before each file; it may raise."""
        num_checked = num_orphans = num_fixed = 0
        reading = _Reading(tell, sum(use.num_bytes for use in self.namespaces()))
        damaged: list[tuple[str, str]] = []
        for store in namespaces(self.cache_dir):
            paths = store.paths()
            num_checked += len(paths)
            problems = _problems(store, paths, reading)
            damaged += [(id_of(path.name), text) for path, text in problems.items()]
            orphans = [path for path in _orphans(store) if path not in problems]
            num_orphans += len(orphans)
            if fix:
                for path in problems:
                    store.quarantine(path)
                for path in orphans:
                    store.delete(path)
                store.forget_deleted()
                num_fixed += len(problems) + len(orphans)
        return VerifyReport(num_checked, tuple(damaged), num_orphans, num_fixed)

    def collect_garbage(self) -> Removed:
        """Remove orphans, what was set aside as damaged, quantised models that have not been used
        for long, and leftovers of killed writers."""
        doomed = [*self.orphans(), *self.quarantine.paths(), *self.quantized.unused()]
        removed = remove_files(doomed)
        self.quantized.tidy()
        for store in namespaces(self.cache_dir):
            store.forget_deleted()
            with contextlib.suppress(OSError):
                remove_leftovers(store.directory)
        return removed

    def orphans(self) -> list[Path]:
        """Segments that nothing can use any more: the one before them is gone."""
        return [path for store in namespaces(self.cache_dir) for path in _orphans(store)]

    def clear(self) -> Removed:
        """Remove every segment and quantised model. Conversations are not here and lose nothing
        but speed."""
        doomed = [path for store in namespaces(self.cache_dir) for path in store.paths()]
        removed = remove_files([*doomed, *self.quantized.paths()])
        self.collect_garbage()
        return removed

    def examine(self, row: SegmentRow) -> SegmentDetails:
        """Read the whole file of a row and compare its checksums."""
        details = SegmentDetails(0.0, "", (), 0, None)
        try:
            with SegmentFile(self.path_of(row)) as file:
                names = file.tensor_names
                dtypes = tuple(sorted({file.dtype(name) for name in names}))
                header = file.header
                details = SegmentDetails(
                    header.created_at, header.creator, dtypes, len(names), None
                )
                file.verify()
        except (SegmentDamagedError, SegmentMissingError) as error:
            return replace(details, problem=str(error))
        return details

    def num_held(self, namespace: str, journal: TokenIds) -> int:
        """How many leading tokens of a journal are on disk."""
        store = SegmentStore(self.cache_dir, namespace)
        with self._opened(store, self._policy) as cache:
            return cache.lookup(journal).num_tokens

    def on_paths(self, namespace: str, journals: Iterable[TokenIds]) -> set[str]:
        """The segments that hold a part of the journals."""
        with self._opened(SegmentStore(self.cache_dir, namespace)) as cache:
            return _segment_ids(cache, journals)

    def forget(self, namespace: str, gone: Sequence[TokenIds], kept: Sequence[TokenIds]) -> int:
        """Delete the segments that lie on journals of `gone` and on none of `kept`.

        A segment of which a kept journal uses a part stays. Returns how many were deleted.
        """
        store = SegmentStore(self.cache_dir, namespace)
        with self._opened(store) as cache:
            doomed = _segment_ids(cache, gone) - _segment_ids(cache, kept)
        for name in store.names():
            if id_of(name) in doomed:
                store.delete(store.directory / name)
        store.forget_deleted()
        return len(doomed)

    def estimate(self, namespace: str, journals: Sequence[TokenIds]) -> list[CostEstimate] | None:
        """What continuing each journal would cost a new process; None for an unknown namespace."""
        store = SegmentStore(self.cache_dir, namespace)
        if not namespace or not store.directory.is_dir():
            return None
        rates = RateBook(store.directory / "rates.json")
        with self._opened(store, self._policy) as cache:
            has_states = store.has_states()
            return [
                rates.estimate(
                    cache.lookup(journal).held, 0, len(journal), can_decline=not has_states
                )
                for journal in journals
            ]

    def branch_kv(
        self, journals: Sequence[tuple[str, TokenIds]], branches: Sequence[Collection[int]]
    ) -> list[SessionKV]:
        """For each branch (the indexes of its journals among all that there are): what is held of
        it, what of that is in segments that others hold as well, and what deleting it frees.

        `disk_tokens` are those of its longest journal."""
        caches: dict[str, PrefixCache] = {}
        held: list[tuple[int, dict[str, int]]] = []
        with contextlib.ExitStack() as stack:
            for namespace, journal in journals:
                if namespace not in caches:
                    store = SegmentStore(self.cache_dir, namespace)
                    caches[namespace] = stack.enter_context(self._opened(store, self._policy))
                found = caches[namespace].on_path(journal)
                held.append((caches[namespace].lookup(journal).disk_tokens, found))
        users = Counter(segment_id for _, found in held for segment_id in found)
        return [_branch_kv([held[index] for index in branch], users) for branch in branches]

    @contextlib.contextmanager
    def _opened(
        self, store: SegmentStore, policy: TierPolicy | None = None
    ) -> Iterator[PrefixCache]:
        """The segments as an engine would find them; without a policy, also those whose time is
        over and that no engine has removed yet.

        A model with states writes a checkpoint into each of its segments, so one of them tells."""
        cache = PrefixCache(
            self.cache_dir,
            store.namespace,
            ram_budget=self._ram_budget,
            disk_budget=self._disk_budget,
            is_spilling=False,
            needs_states=store.has_states(),
            policy=policy,
        )
        cache.open({})
        with contextlib.closing(cache):
            yield cache


def _branch_kv(held: Sequence[tuple[int, dict[str, int]]], users: Counter[str]) -> SessionKV:
    own = Counter(segment_id for _, found in held for segment_id in found)
    num_bytes = {segment_id: size for _, found in held for segment_id, size in found.items()}
    shared = sum(num_bytes[segment_id] for segment_id in own if users[segment_id] > own[segment_id])
    num_tokens = max((tokens for tokens, _ in held), default=0)
    return SessionKV(0, num_tokens, shared, sum(num_bytes.values()) - shared)


def _segment_ids(cache: PrefixCache, journals: Iterable[TokenIds]) -> set[str]:
    return {segment_id for journal in journals for segment_id in cache.on_path(journal)}


def _problems(store: SegmentStore, paths: Sequence[Path], reading: _Reading) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for path in paths:
        reading.begin(path)
        try:
            with SegmentFile(path) as file:
                file.verify()
        except SegmentFormatError:
            continue
        except SegmentDamagedError as error:
            found[path] = str(error)
        except SegmentMissingError:
            continue
    stored, unreadable = store.scan()
    for file_ in (*unreadable, *contradictions(store.namespace, stored)):
        found.setdefault(store.path_of(file_), file_.problem)
    return found


def _orphans(store: SegmentStore) -> list[Path]:
    """Files whose parent is gone, their children included."""
    reachable: set[str] = set()
    orphans = []
    for stored in sorted(store.scan()[0], key=lambda stored: stored.header.start):
        header = stored.header
        if header.start == 0 or header.parent_id in reachable:
            reachable.add(header.segment_id)
        else:
            orphans.append(stored.path)
    return orphans


def remove_files(paths: Sequence[Path]) -> Removed:
    """Delete files, of which some may be gone already. Raises OSError."""
    num_files = num_bytes = 0
    for path in paths:
        size = _size(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            num_files, num_bytes = num_files + 1, num_bytes + size
    return Removed(num_files, num_bytes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
