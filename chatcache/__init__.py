"""chatcache: a terminal chat whose conversations remember their attention state."""

from __future__ import annotations

__version__ = "0.1.0"
