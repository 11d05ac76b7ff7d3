"""Linear layers, embeddings and experts whose weights stay packed.

What they compute is in `computing.py`, which is imported when the first of them computes: the
compiler behind it takes a second to import, and models that are not packed need none. On a GPU it
is `device_computing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from chatcache.backends.local.packed.blocks import BlockMatrix, PackedMatrix, PackedModule
from chatcache.backends.local.packed.mixture import Mixture, Stack, add_each

if TYPE_CHECKING:
    from chatcache.backends.local.packed.device_layout import SplitMatrix


class _Computed(PackedModule):
    """One whose computing depends on where its weights are."""

    is_plain = False  # by torch alone
    why_whole = ""  # on a GPU: why its blocks lie as in the file, and no kernel computes with them

    def computing(self, device: torch.device) -> Any:
        """The module that computes there."""
        if device.type == "cpu" and not self.is_plain:
            from chatcache.backends.local.packed import computing

            return computing
        from chatcache.backends.local.packed import device_computing

        return device_computing


class BlockModule(_Computed):
    """One with one packed weight, `[num_rows, num_columns]`."""

    def __init__(self, matrix: BlockMatrix):
        super().__init__()
        self.kind, self._num_columns = matrix.kind, matrix.num_columns
        self.register_buffer("blocks", matrix.data)
        self.split: SplitMatrix | None = None  # what took the place of the blocks, on a GPU

    @property
    def matrix(self) -> BlockMatrix:
        return BlockMatrix(self.kind, self.get_buffer("blocks"), self._num_columns)

    @property
    def weights(self) -> BlockMatrix | SplitMatrix:
        """In the form that they have."""
        return self.split or self.matrix

    @property
    def matrices(self) -> Sequence[PackedMatrix]:
        return [self.weights]

    def replace_blocks(self, split: SplitMatrix) -> None:
        """Compute with the same weights in another form from now on."""
        self.split = split
        self.blocks = self.get_buffer("blocks").new_empty(0)


class BlockLinear(BlockModule):
    """`nn.Linear` with a packed weight. The results do not depend on the number of threads."""

    def __init__(self, matrix: BlockMatrix, bias: torch.Tensor | None = None):
        super().__init__(matrix)
        self.in_features, self.out_features = matrix.num_columns, matrix.num_rows
        self.register_buffer("bias", bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        rows = states.reshape(-1, self.in_features)
        output: torch.Tensor = self.computing(states.device).product(rows, self.weights)
        bias = self._buffers["bias"]
        if bias is not None:
            output += bias
        return output.view(*states.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind.name}"


class BlockEmbedding(BlockModule):
    """`nn.Embedding` with a packed weight; gives vectors of `dtype`."""

    def __init__(self, matrix: BlockMatrix, dtype: torch.dtype, scale: float = 1.0):
        super().__init__(matrix)
        self.num_embeddings, self.embedding_dim = matrix.num_rows, matrix.num_columns
        self.dtype, self.scale = dtype, scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`[...]` to `[..., embedding_dim]`. Raises IndexError for an id that is no row."""
        rows = self.weights.rows(ids.reshape(-1))
        vectors: torch.Tensor = self.computing(ids.device).unpacked(rows, self.dtype)
        if self.scale != 1.0:
            vectors = vectors * self.scale
        return vectors.view(*ids.shape, self.embedding_dim)


class BlockExperts(_Computed):
    """The experts of a layer. What a token gets does not depend on the number of threads."""

    def __init__(self, mixture: Mixture):
        super().__init__()
        self._mixture = mixture
        gate, up, down = mixture.stacks
        self.register_buffer("gate_blocks", gate.matrix.data)
        # Both may lie in one matrix.
        self.register_buffer("up_blocks", None if up.matrix is gate.matrix else up.matrix.data)
        self.register_buffer("down_blocks", down.matrix.data)
        self.register_buffer("gate_bias", gate.bias)
        self.register_buffer("up_bias", up.bias)
        self.register_buffer("down_bias", down.bias)

    @property
    def mixture(self) -> Mixture:
        """With the weights where they are now."""
        gate, up, down = self._mixture.stacks
        return replace(
            self._mixture,
            gate=self._now(gate, "gate_blocks", "gate_bias"),
            up=self._now(up, "up_blocks", "up_bias"),
            down=self._now(down, "down_blocks", "down_bias"),
        )

    def _now(self, stack: Stack, blocks: str, bias: str) -> Stack:
        data = self._buffers[blocks]
        data = self.get_buffer("gate_blocks") if data is None else data
        matrix = BlockMatrix(stack.matrix.kind, data, stack.matrix.num_columns)
        return replace(stack, matrix=matrix, bias=self._buffers[bias])

    @property
    def matrices(self) -> Sequence[PackedMatrix]:
        gate, up, down = (stack.matrix for stack in self.mixture.stacks)
        return [gate, down] if self._buffers["up_blocks"] is None else [gate, up, down]

    def forward(
        self, states: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """`[num_tokens, hidden]` to the same, by the experts of each token and their weights,
        `[num_tokens, num_chosen]` each."""
        output: torch.Tensor
        if states.device.type == "cpu" and not self.is_plain:
            from chatcache.backends.local.packed import mixing

            output = mixing.mixed(self.mixture, states, choices, weights)
        else:
            output = torch.zeros(states.shape, device=states.device)
            computing = self.computing(states.device)
            add_each(self.mixture, computing, states, choices, weights, output)
        return output.to(states.dtype)

    def extra_repr(self) -> str:
        kinds = ", ".join(stack.matrix.kind.name for stack in self._mixture.stacks)
        return f"{self._mixture.num_experts} experts, {kinds}"


def compute_plainly(model: torch.nn.Module) -> None:
    """Let torch unpack the weights of a model from now on, without kernels."""
    for module in model.modules():
        if isinstance(module, _Computed):
            module.is_plain = True
