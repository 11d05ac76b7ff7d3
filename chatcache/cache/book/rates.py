"""Measured rates of one namespace on this machine: how fast it prefills, and brings segments back.

They turn tokens and bytes into the time that a reuse saved or a fork will cost, and decide whether
a segment is brought back or computed again. They are kept beside the segments, so a new process
knows them before it has computed anything, apart for each device that the model has run on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from chatcache.atomic_write import write_atomically
from chatcache.cache.book.prefill_rate import MIN_MEASURED_TOKENS, Prefill, PrefillRate
from chatcache.cache.book.transfer_rate import MIN_TELLING_BYTES, Transfer, TransferRate
from chatcache.cache.views import CostEstimate, Held, Tier, to_read

CLEARLY_DEARER = 1.5
MIN_DECLINED_BYTES = 1_000_000  # less is not worth a thought
_VERSION = 2
_TYPICAL_TOKENS = 512
_SOME_DEVICE = "cpu"


@dataclass(frozen=True, slots=True)
class Cost:
    """What bringing the tokens of some segments back would take, and computing them: in seconds,
    0 and None where nothing was measured of it."""

    num_tokens: int
    num_bytes: int
    bring_seconds: float
    compute_seconds: float | None

    @property
    def gain_seconds(self) -> float:
        """What computing saves; 0 unless it is clearly quicker and worth a thought."""
        if self.compute_seconds is None or self.num_bytes < MIN_DECLINED_BYTES:
            return 0.0
        is_dearer = self.bring_seconds > CLEARLY_DEARER * self.compute_seconds
        return self.bring_seconds - self.compute_seconds if is_dearer else 0.0


class RateBook:
    """What is believed. `device`: what the model runs on; left out, it is that of the last save."""

    def __init__(self, path: Path | None = None, device: str = ""):
        self._path = path
        self._device = device
        self._others: dict[str, Any] = {}  # of other devices, as they were kept
        self._prefill = PrefillRate()
        self._tiers: dict[str, TransferRate] = {}
        self.step_seconds: dict[int, float] = {}  # of one token, by the number of threads
        if path is not None:
            self._load(path)
        self._device = self._device or _SOME_DEVICE

    # what is measured

    def note_prefill(self, num_tokens: int, seconds: float, start: int = 0) -> None:
        self._prefill.note(Prefill(num_tokens, seconds, start))

    def note_restore(
        self, num_bytes: int, seconds: float, tier: Tier = "disk", num_segments: int = 1
    ) -> None:
        self._tier(tier).note(Transfer(num_bytes, seconds, num_segments))

    def note_declined(self, tiers: Iterable[Tier]) -> None:
        """Bringing segments back from there was declined, so it is not measured."""
        for tier in set(tiers):
            self._tier(tier).note_declined()

    # what is believed

    @property
    def is_measured(self) -> bool:
        """Whether a prefill of at least 64 tokens was timed."""
        return self._prefill.is_measured

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Of a short prompt: behind a long one it is slower."""
        seconds = self._prefill.seconds(_TYPICAL_TOKENS)
        return None if seconds is None else _TYPICAL_TOKENS / seconds

    @property
    def restore_bytes_per_second(self) -> float | None:
        """From disk; None while nothing of 16 MB was read."""
        return self._tier("disk").bytes_per_second

    def prefill_ms(self, num_tokens: int, start: int = 0) -> float | None:
        """The estimated time to compute `num_tokens` behind `start` others; None while nothing was
        measured."""
        seconds = self._prefill.seconds(num_tokens, start)
        return None if seconds is None else 1000 * seconds

    def tokens_within(self, seconds: float, start: int) -> int:
        """About how many tokens can be computed behind `start` others in this time."""
        first = self._prefill.seconds(1, start)
        many = self._prefill.seconds(1 + MIN_MEASURED_TOKENS, start)
        if first is None or many is None or many <= first:
            return 0
        return int((seconds - first) * MIN_MEASURED_TOKENS / (many - first))

    def restore_ms(self, held: Iterable[Held]) -> float | None:
        """The estimated time to bring segments back. Of little at least what a segment costs before
        its first byte; None for 16 MB and more where nothing of the kind was measured."""
        found = [self._tier(tier).about(*sizes) for tier, sizes in _by_tier(held).items()]
        return None if None in found else 1000 * sum(seconds or 0.0 for seconds in found)

    # what is decided

    def best_stop(self, held: Sequence[Held], start: int, total: int) -> int:
        """Up to where to bring back a prefix of which `start` tokens are live already, of a prompt
        of `total` tokens: all that is held, unless computing the last part is clearly quicker."""
        end = held[-1].stop if held else start
        # Within a tier it is all or nothing: the later a token, the dearer it is to compute.
        pairs = itertools.pairwise(each for each in held if each.stop > start)
        stops = [each.stop for each, following in pairs if each.tier != following.tier]
        gains = {stop: self.cost(held, stop, total).gain_seconds for stop in (start, *stops)}
        best = max(gains, key=lambda stop: gains[stop])
        return best if gains[best] > 0 else end

    def cost(self, held: Sequence[Held], start: int, total: int) -> Cost:
        """Of what is held behind `start`, for a prompt of `total` tokens. Computed it is on the way
        to what follows, so that it costs no pass of its own."""
        behind = [each for each in held if each.stop > start]
        end = behind[-1].stop if behind else start
        whole = self._prefill.seconds(total - start, start)
        rest = self._prefill.seconds(total - end, end)
        is_known = self.is_measured and whole is not None and rest is not None
        return Cost(
            num_tokens=end - start,
            num_bytes=sum(each.num_bytes for each in behind),
            bring_seconds=self._bring_seconds(behind),
            compute_seconds=max(0.0, (whole or 0.0) - (rest or 0.0)) if is_known else None,
        )

    def estimate(
        self, held: Sequence[Held], num_live: int, total: int, *, can_decline: bool = True
    ) -> CostEstimate:
        """What a prompt of `total` tokens would cost now, with `num_live` of them live and more
        held. Without `can_decline` all that is held is brought back, whatever it takes."""
        stop = held[-1].stop if held else 0
        if can_decline:
            stop = self.best_stop(held, num_live, total)
        reused = max(stop, num_live)
        brought = [each for each in held if num_live < each.stop <= stop]
        from_disk, disk_bytes = to_read(brought, num_live)
        recompute = total - reused
        compute_ms, bring_ms = self.prefill_ms(recompute, reused), self.restore_ms(brought)
        is_known = compute_ms is not None and bring_ms is not None
        estimated = (compute_ms or 0.0) + (bring_ms or 0.0) if is_known else None
        return CostEstimate(reused - from_disk, from_disk, recompute, estimated, disk_bytes)

    def trial_stop(self, held: Sequence[Held], start: int) -> int | None:
        """Where to end a restore that is made only to measure, although it seems to be dearer;
        None: not this time."""
        tiers = {each.tier for each in held if each.stop > start}
        due = {tier for tier in tiers if self._tier(tier).is_to_be_tried}
        if not due:
            return None
        num_bytes = 0
        for each in held:
            if each.stop > start and each.tier in due:
                num_bytes += each.num_bytes
                if num_bytes >= MIN_TELLING_BYTES:
                    return each.stop
        return held[-1].stop

    def _bring_seconds(self, held: Iterable[Held]) -> float:
        """What is believed of it; nothing of a tier that was never measured."""
        tiers = _by_tier(held).items()
        return sum(self._tier(tier).seconds(*sizes) or 0.0 for tier, sizes in tiers)

    def _tier(self, tier: str) -> TransferRate:
        return self._tiers.setdefault(tier, TransferRate())

    # what is kept

    def save(self) -> None:
        """Best effort: rates are a convenience."""
        if self._path is None:
            return
        doubt = self._prefill.doubt
        own = {
            "prefills": [astuple(prefill) for prefill in self._prefill.prefills],
            "doubt": None if doubt is None else astuple(doubt),
            "tiers": {
                tier: {
                    "transfers": [astuple(transfer) for transfer in rate.transfers],
                    "declines": rate.declines,
                }
                for tier, rate in self._tiers.items()
            },
            "step_seconds": self.step_seconds,
        }
        devices = {**self._others, self._device: own}
        content = {"version": _VERSION, "last_device": self._device, "devices": devices}
        with contextlib.suppress(OSError):
            write_atomically(self._path, json.dumps(content).encode())

    def _load(self, path: Path) -> None:
        """What cannot be read is measured again."""
        try:
            content = json.loads(path.read_text())
            if "version" not in content:
                self._load_first_version(content)
                return
            if content["version"] != _VERSION:
                return
            self._device = self._device or content["last_device"]
            self._others = dict(content["devices"])
            own = self._others.pop(self._device, None)
            if own is not None:
                self._restart(own)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return

    def _restart(self, own: Any) -> None:
        doubt = own["doubt"]
        prefills = [Prefill(*_measured(each)) for each in own["prefills"]]
        self._prefill.restart(prefills, None if doubt is None else Prefill(*_measured(doubt)))
        for tier, kept in own["tiers"].items():
            transfers = [Transfer(*_measured(each)) for each in kept["transfers"]]
            num_declined, patience = kept["declines"]
            self._tier(tier).restart(transfers, (int(num_declined), int(patience)))
        self.step_seconds = _by_count(own.get("step_seconds"))

    def _load_first_version(self, content: Any) -> None:
        """It had one number per kind, and that of the disk was often that of a small file."""
        if rate := content["prefill_tokens_per_second"]:
            num_tokens = _TYPICAL_TOKENS if content["is_measured"] is True else 1
            prefill = Prefill(*_measured((num_tokens, num_tokens / rate, 0)))
            self._prefill.restart([prefill], None)
        self.step_seconds = _by_count(content.get("step_seconds"))


def _by_tier(held: Iterable[Held]) -> dict[Tier, tuple[int, int]]:
    """The bytes that have to be brought from each tier, and how many segments that are."""
    sizes: dict[Tier, tuple[int, int]] = {}
    for each in held:
        if each.num_bytes:
            num_bytes, num_segments = sizes.get(each.tier, (0, 0))
            sizes[each.tier] = num_bytes + each.num_bytes, num_segments + 1
    return sizes


def _measured(numbers: Any) -> tuple[int, float, int]:
    """How many, in how many seconds, and a number of the kind. Raises ValueError and TypeError."""
    count, seconds, more = numbers
    if not (count > 0 and 0 < seconds < math.inf and more >= 0):
        raise ValueError(f"{numbers} was never measured")
    return int(count), float(seconds), int(more)


def _by_count(value: object) -> dict[int, float]:
    """Seconds by a number of threads; nothing where any of it is no such thing."""
    try:
        found = {int(count): float(seconds) for count, seconds in dict(value or {}).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return {}
    return found if all(0 < seconds < math.inf for seconds in found.values()) else {}
