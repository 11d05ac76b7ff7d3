"""Linear layers and embeddings whose weights stay packed.

What they compute is in `computing.py`, which is imported when the first of them computes: the
compiler behind it takes a second to import, and models that are not packed need none. On a GPU it
is `device_computing.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.packed.blocks import BlockMatrix, PackedModule


class _Computed(PackedModule):
    """One whose computing depends on where its weights are."""

    is_plain = False  # by torch alone

    def computing(self, device: torch.device) -> Any:
        """The module that computes there."""
        if device.type == "cpu" and not self.is_plain:
            from chatcache.backends.local.packed import computing

            return computing
        from chatcache.backends.local.packed import device_computing

        return device_computing


class BlockLinear(_Computed):
    """`nn.Linear` with a packed weight. The results do not depend on the number of threads."""

    def __init__(self, matrix: BlockMatrix, bias: torch.Tensor | None = None):
        super().__init__()
        self.kind, self.in_features = matrix.kind, matrix.num_columns
        self.out_features = matrix.num_rows
        self.register_buffer("blocks", matrix.data)
        self.register_buffer("bias", bias)

    @property
    def matrix(self) -> BlockMatrix:
        return BlockMatrix(self.kind, self.get_buffer("blocks"), self.in_features)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        rows = states.reshape(-1, self.in_features)
        output: torch.Tensor = self.computing(states.device).product(rows, self.matrix)
        bias = self._buffers["bias"]
        if bias is not None:
            output += bias
        return output.view(*states.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind.name}"


class BlockEmbedding(_Computed):
    """`nn.Embedding` with a packed weight; gives vectors of `dtype`."""

    def __init__(self, matrix: BlockMatrix, dtype: torch.dtype, scale: float = 1.0):
        super().__init__()
        self.kind, self.embedding_dim = matrix.kind, matrix.num_columns
        self.num_embeddings, self.dtype, self.scale = matrix.num_rows, dtype, scale
        self.register_buffer("blocks", matrix.data)

    @property
    def matrix(self) -> BlockMatrix:
        return BlockMatrix(self.kind, self.get_buffer("blocks"), self.embedding_dim)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`[...]` to `[..., embedding_dim]`. Raises IndexError for an id that is no row."""
        rows = self.get_buffer("blocks")[ids.reshape(-1)]
        matrix = BlockMatrix(self.kind, rows, self.embedding_dim)
        vectors: torch.Tensor = self.computing(ids.device).unpacked(matrix, self.dtype)
        if self.scale != 1.0:
            vectors = vectors * self.scale
        return vectors.view(*ids.shape, self.embedding_dim)


def compute_plainly(model: torch.nn.Module) -> None:
    """Let torch unpack the weights of a model from now on, without kernels."""
    for module in model.modules():
        if isinstance(module, _Computed):
            module.is_plain = True
