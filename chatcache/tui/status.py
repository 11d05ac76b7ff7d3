"""What the backend last said of itself, and how that is put into words."""

from __future__ import annotations

from dataclasses import dataclass

from chatcache.backends.base import BackendEvent, BackendFailed, ModelInfo, ModelLoading, ModelReady
from chatcache.errors import ChatcacheError
from chatcache.tui.formatting import one_line


@dataclass
class BackendStatus:
    """`info` stays known over a restart of the engine."""

    info: ModelInfo | None = None
    loading: ModelLoading | None = None
    failure: Exception | None = None
    is_restarting: bool = False

    @property
    def is_ready(self) -> bool:
        return self.info is not None and self.loading is None and self.failure is None

    def absorb(self, event: BackendEvent) -> None:
        if isinstance(event, ModelLoading):
            self.loading = event
            if not self.is_restarting:
                self.failure = None
        elif isinstance(event, ModelReady):
            self.info = event.info
            self.loading, self.failure, self.is_restarting = None, None, False
        elif isinstance(event, BackendFailed):
            self.loading = None
            self.failure, self.is_restarting = event.error, event.will_restart

    @property
    def model_line(self) -> str:
        """The right end of the title: which model, and whether it can answer."""
        if self.is_restarting:
            return "engine restarting"
        if self.failure is not None:
            return "no model"
        if self.info is None or self.loading is not None:
            return "loading"
        return f"{one_line(self.info.model)} · {self.info.device}"

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
