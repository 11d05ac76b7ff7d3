"""Sizes: where the screen changes its shape, and how. Pure functions."""

from __future__ import annotations

from typing import Literal

PanelMode = Literal["full", "compact", "off"]
PANEL_MODES: tuple[PanelMode, ...] = ("full", "compact", "off")
NARROW_BELOW = 100
TINY_BELOW = 16
MIN_WIDTH, MIN_HEIGHT = 40, 10
READING_WIDTH = 100
HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [
    (0, "-narrow"),
    (NARROW_BELOW, "-normal"),
    (160, "-wide"),
]
VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [
    (0, "-tiny"),
    (TINY_BELOW, "-short"),
    (26, "-tall"),
]


def as_panel_mode(word: str) -> PanelMode | None:
    return next((mode for mode in PANEL_MODES if mode == word), None)


def next_panel_mode(mode: PanelMode) -> PanelMode:
    return PANEL_MODES[(PANEL_MODES.index(mode) + 1) % len(PANEL_MODES)]


def side_margin(width: int) -> int:
    """Empty columns on either side of the text, so that lines stay readable on a wide screen."""
    return max(1, (width - READING_WIDTH) // 2)


def is_too_small(width: int, height: int) -> bool:
    return width < MIN_WIDTH or height < MIN_HEIGHT
