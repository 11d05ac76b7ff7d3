"""The few colours that are said in code, as Textual style strings."""

from __future__ import annotations

MUTED = "$foreground-muted"
