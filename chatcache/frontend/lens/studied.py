"""A turn, and what the model was asked about it for a view. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from chatcache.backends.questions import TokenPiece
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens.visible import shown_piece

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class StudiedTurn(Generic[Told]):
    """`told` is the answer to the question of the view; None: nobody could be asked, and `reason`
    may say why. `pieces` are what the ids of the turn stand for."""

    reading: TurnReading
    told: Told | None = None
    pieces: Mapping[int, TokenPiece] = field(default_factory=dict)
    reason: str = ""

    @property
    def problem(self) -> str:
        """Why there is nothing to show, but for a model that is not loaded; "" else."""
        return self.reading.unknown or self.reason

    def text_of(self, token_id: int) -> str:
        """A token as it is shown, by its number where nobody can tell its text."""
        piece = self.pieces.get(token_id)
        return (shown_piece(piece) if piece else "") or f"#{token_id}"
