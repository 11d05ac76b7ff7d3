"""Buffers of K and V for steps that read a whole bucket, of which a length counts.

A captured graph reads the same memory at each replay, so buffers stay where they are until a path
outgrows them, and what lies behind the length takes part: its scores are masked, and its values
have weight zero, which only finite numbers survive. The length of a bucket is a function of the
position alone, so that a path that is resumed is computed as if it had never been left.
"""

from __future__ import annotations

import torch

from chatcache.cache.tensors.layers import GrowingLayer

MIN_BUCKET = 1024
_MARGIN = 256  # so many more fit: a short message does not move a path to other buffers
_STEPS_BITS = 2  # so many buckets per doubling, as a power of two: at most a fifth is idle


def bucket_for(num_tokens: int) -> int:
    """The shortest bucket that holds so many tokens."""
    step = max(MIN_BUCKET, 1 << max(0, (num_tokens - 1).bit_length() - 1 - _STEPS_BITS))
    return max(1, -(-num_tokens // step)) * step


class BucketLayer(GrowingLayer):  # type: ignore[no-untyped-call]
    """A growing layer whose buffers are as long as a bucket, and finite throughout."""

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all. Buffers never become shorter: they stay in place."""
        self.claim(self.num_tokens, num_tokens)

    @torch.inference_mode()
    def scrub(self, start: int) -> None:
        """What lies from `start` on does not count, and may be no numbers: make it zero."""
        for tensor in self.home.tensors.values():
            tensor[:, :, start:].zero_()

    def _room(self, num_tokens: int) -> int:
        return bucket_for(num_tokens + _MARGIN)

    def _memory(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(shape)
