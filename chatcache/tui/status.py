"""What the backend last said of itself, and how that is put into words."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatcache.errors import ChatcacheError
from chatcache.formatting import model_label, one_line

if TYPE_CHECKING:
    from chatcache.backends.base import BackendEvent, ModelInfo, ModelLoading

# A rate is said once it was measured for so long: the first seconds of a download mislead.
_MEASURED_SECONDS = 2.0


@dataclass
class BackendStatus:
    """`info` stays known over a restart of the engine. `can_cancel`: Esc ends the loading."""

    info: ModelInfo | None = None
    loading: ModelLoading | None = None
    failure: Exception | None = None
    is_restarting: bool = False
    can_cancel: bool = False
    _began: ModelLoading | None = None
    _began_at: float = 0.0
    _seconds_left: float | None = None

    @property
    def is_ready(self) -> bool:
        return self.info is not None and self.loading is None and self.failure is None

    @property
    def seconds_left(self) -> float | None:
        """How long the present stage will take; None while it is not known."""
        return self._seconds_left if self.loading is not None else None

    def absorb(self, event: BackendEvent, now: float | None = None) -> None:
        # Imported late: the first paint comes before anything is known of a backend.
        from chatcache.backends.base import BackendFailed, ModelLoading, ModelReady

        if isinstance(event, ModelLoading):
            self._time(event, time.monotonic() if now is None else now)
            self.loading = event
            if not self.is_restarting:
                self.failure = None
        elif isinstance(event, ModelReady):
            self.info = event.info
            self.loading, self.failure, self.is_restarting = None, None, False
            self.can_cancel = False
        elif isinstance(event, BackendFailed):
            self.loading = None
            self.failure, self.is_restarting = event.error, event.will_restart
            self.can_cancel = False

    def _time(self, event: ModelLoading, now: float) -> None:
        began = self._began
        if began is None or began.stage != event.stage or event.done < began.done:
            self._began, self._began_at, self._seconds_left = event, now, None
            return
        spent, done = now - self._began_at, event.done - began.done
        if spent >= _MEASURED_SECONDS and done > 0 and event.total > 0:
            self._seconds_left = spent / done * max(0, event.total - event.done)

    @property
    def model_line(self) -> str:
        """The right end of the title: which model, and whether it can answer."""
        if self.is_restarting:
            return "engine restarting"
        if self.failure is not None:
            return "no model"
        if self.info is None or self.loading is not None:
            return "loading"
        label = model_label(self.info.model, self.info.quantization)
        return f"{label} · {self.info.device}"

    @property
    def failure_words(self) -> tuple[str, str]:
        """The failure as a sentence and a hint."""
        if self.failure is None:
            return "", ""
        if self.is_restarting:
            return "The engine ended and is being started again.", "Nothing that was said is lost."
        if isinstance(self.failure, ChatcacheError):
            return self.failure.message, self.failure.hint
        return one_line(str(self.failure)) or type(self.failure).__name__, ""
