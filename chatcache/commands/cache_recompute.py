"""`chatcache cache verify --deep`: segments against the model that made them.

Owns the options, the narration and the words. What is compared is
`backends/local/study/recheck.py`'s.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any

from chatcache import compose
from chatcache.backends.base import ModelLoading
from chatcache.backends.local.study.recheck import (
    RecheckRequest,
    RecheckStarted,
    SegmentCheck,
    recheck,
)
from chatcache.cache.book.namespace import EXACT, PRECISION
from chatcache.cache.files.store import SegmentStore
from chatcache.cache.inspect import CacheInspector, NamespaceUse, VerifyReport
from chatcache.checks import whole
from chatcache.commands.parser import Parser, number_option
from chatcache.config import Settings
from chatcache.errors import UsageError
from chatcache.formatting import plural
from chatcache.frontend.shell_output import Narrator
from chatcache.remotes import remote_model


@dataclass(frozen=True, slots=True)
class DeepReport:
    """What was recomputed. `unchecked`: segments of other models, or of other settings."""

    model: str
    started: RecheckStarted
    checks: tuple[SegmentCheck, ...]
    unchecked: tuple[NamespaceUse, ...]

    @property
    def damaged(self) -> list[tuple[str, str]]:
        return [
            (check.segment_id, check.problem) for check in self.checks if check.problem is not None
        ]

    @property
    def top1_agreement(self) -> float | None:
        """The share of segments behind which the next token is the same; None: none was asked."""
        asked = [check.top1_agrees for check in self.checks if check.top1_agrees is not None]
        return sum(asked) / len(asked) if asked else None


def configure(parser: Parser) -> None:
    group = parser.add_argument_group("recomputing")
    group.add_argument(
        "--deep", action="store_true", help="compute some segments again, and compare the numbers"
    )
    for option, low, default, help_text in (
        ("--sample", 1, 8, "how many segments are computed again; default: 8"),
        ("--seed", 0, 0, "another seed chooses other segments"),
    ):
        convert = number_option(whole(low), int)
        group.add_argument(option, metavar="N", type=convert, default=default, help=help_text)
    parser.add_engine()


def check(settings: Settings, inspector: CacheInspector, arguments: Namespace) -> DeepReport:
    """Recompute a sample. Raises what keeps the model from being loaded."""
    compose.check_model(settings)
    if remote_model(settings.config.model.default, settings.config.remotes) is not None:
        raise UsageError(
            "A server's model has no segments here to be computed again.",
            "Name a model of this machine with --model.",
        )
    narrator = Narrator()
    request = RecheckRequest(compose.engine_settings(settings), arguments.sample, arguments.seed)
    started: RecheckStarted | None = None
    checks: list[SegmentCheck] = []
    for event in recheck(request):
        if isinstance(event, ModelLoading):
            narrator.progress(event.stage)
        elif isinstance(event, RecheckStarted):
            started = event
        else:
            checks.append(event)
        if started is not None:
            narrator.progress(f"computing again: {len(checks)} / {started.num_chosen} segments")
    narrator.release()
    if started is None:
        raise RuntimeError("the check ended before it had begun")
    others = tuple(
        use
        for use in inspector.namespaces()
        if use.namespace != started.namespace and use.num_segments
    )
    return DeepReport(settings.config.model.default, started, tuple(checks), others)


def added_to(
    report: VerifyReport, deep: DeepReport, settings: Settings, *, fix: bool
) -> VerifyReport:
    """What checksums found, and what the model contradicts. With `fix` that is put away as well."""
    known = {segment_id for segment_id, _ in report.damaged}
    more = [damage for damage in deep.damaged if damage[0] not in known]
    num_fixed = report.num_fixed
    if fix:
        store = SegmentStore(settings.paths.cache_dir, deep.started.namespace)
        doomed = {segment_id for segment_id, _ in more}
        for path in store.paths():
            if path.stem.split("-")[2] in doomed:
                store.quarantine(path)
                num_fixed += 1
    return replace(report, damaged=(*report.damaged, *more), num_fixed=num_fixed)


def as_json(report: DeepReport) -> dict[str, Any]:
    return {
        "model": report.model,
        "namespace": report.started.namespace,
        "dtype": report.started.dtype,
        "approximate": report.started.precision != EXACT,
        "tolerance": report.started.tolerance,
        "segments_of_model": report.started.num_segments,
        "top1_agreement": report.top1_agreement,
        "segments": [
            {
                "segment_id": check.segment_id,
                "start": check.start,
                "stop": check.stop,
                "max_abs_dk": check.max_dk,
                "max_abs_dv": check.max_dv,
                "deviation": check.deviation,
                "tensor": check.worst,
                "top1_agrees": check.top1_agrees,
                "problem": check.problem,
            }
            for check in report.checks
        ],
        "unchecked_namespaces": [
            {"namespace": use.namespace, "fields": dict(use.fields), "segments": use.num_segments}
            for use in report.unchecked
        ],
    }


def lines(report: DeepReport) -> list[str]:
    """The report for people; damage is listed by `cache verify` itself."""
    started, checks = report.started, report.checks
    if not started.num_segments:
        found = [f"{report.model} ({_kept(started)}) has no segments to compute again."]
    else:
        largest = max((check.deviation for check in checks), default=0.0)
        agreement = report.top1_agreement
        same = "" if agreement is None else f", the same next token behind {100 * agreement:.0f} %"
        found = [
            f"{len(checks):,} of {plural(started.num_segments, 'segment')} of {report.model}"
            f" computed again: largest |dK| {_largest(check.max_dk for check in checks)},"
            f" largest |dV| {_largest(check.max_dv for check in checks)}"
            f" ({largest:.2g} standard deviations, {started.tolerance:g} allowed in"
            f" {_kept(started)}){same}."
        ]
    for use in report.unchecked:
        parts = ("soft.name", "dtype", PRECISION)
        name = " ".join(use.fields[key] for key in parts if use.fields.get(key))
        found.append(
            f"Not computed again: {plural(use.num_segments, 'segment')} of {name or 'unknown'}"
            f" ({use.namespace[:12]}); choose it with --model and --dtype, int8 with the setting"
            " cache.spill."
        )
    return found


def _kept(started: RecheckStarted) -> str:
    return started.dtype if started.precision == EXACT else f"{started.precision}, approximate"


def _largest(values: Any) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.2g}" if known else "–"
