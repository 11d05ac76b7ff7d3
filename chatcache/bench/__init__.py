"""`chatcache bench`: what a turn costs here, against other programs on the same work.

All contenders run in turn (A B A B ...) in one invocation, on the same prompt ids, weights, dtype
and threads; medians are shown with their extremes, and beside them the physical limit: the bytes
that must move, over the memory or disk bandwidth measured in the same run. The last line on stdout
is one JSON object.

A shape is a real model's exact configuration with random weights: speed depends on the shape and
not on the weights, and nothing is downloaded. With `--model`, the rates that were measured are kept
for the chats with this model.

What was tried for speed and did not pay, on 2 cores with avx512_bf16:

- Scores of attention in float32 and blocks of 256 queries and more: they leave the cache. (In
  bfloat16, whose softmax adds up in float32 anyway, the bits are the same, and 256 is best: 37 ms a
  layer for 512 tokens behind 4,096, where 128 with scores in float32 took 46.)
- Attention by matmul behind fewer than 512 tokens: torch's kernel is as fast.
- Packed weights for float32: they do not give the same bits.
- `torch.compile` of the MLP and the norms: nothing measurable, after 31 s of compiling.
- sdpa with the query heads of a group as query length: 0.70 ms a layer at 4,096 keys, where two
  grouped matmuls take 0.32 ms.
- Batched matmul on a slice of the growing buffer: it copies the slice (2.1 ms a layer); one `mm`
  per KV head does not (1.08 ms).
- Batched matmul over whole buffers for the values, too (for the scores it pays): 0.93 ms a layer
  instead of 1.19, but the bits of the sum then depend on how much room the buffer has, and a
  resumed chat would not have those of one that was never stopped.
- Scores as keys times queries instead of queries times keys, and the products of all heads as one
  with zeros between them: 0.30 and 0.67 ms where 0.25 and 0.64 ms were.
- Two Python threads with half of the heads and one OpenMP thread each: twice as slow while OpenMP's
  idle threads spin (3.8 ms a layer instead of 2.2, 16 tokens behind 4,096); 15 % quicker for one
  token when they do not (`GOMP_SPINCOUNT=100`), which makes everything else slower.
- Copying a long run out when it is kept and back in when it is resumed, into memory that was not
  used before: 0.7 GB/s on this machine. It is lent where it lies instead
  (`cache/tensors/layers.py`).
- One product for the queries, keys and values of a layer, and one for gate and up: 0.8 and 0.7 ms
  less in a step of 42 ms; packed linear layers run at 37 of 47 GB/s already.
- Weights in 8 bits (`_weight_int8pack_mm`): 0.09 ms against 0.12 ms at one row of 3,072 x 1,024,
  but 0.46 against 0.21 at 16 rows, and 2.8 times the time at 512.
- Telling the kernel how a file will be read (`posix_fadvise`), and more than two readers.
- Computing behind the read, layer by layer: on 2 cores the readers need what computing would gain
  (warm: 93 ms for 470 MB by two readers, then 145 ms for the message), so it is not done.
- Speculation from n-grams of the context: five rows of one pass do not have the bits of five steps
  (logits differ by up to 0.06 in bfloat16), so the greedy text could become another one; not done.
- Keys token-major instead of head-major: 1.6 times the time in bfloat16 sdpa.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run the bench; returns the exit code. Raises UsageError, ModelLoadError, NotFoundError."""
    from chatcache.backends.local.engine.child_process import use_large_pages
    from chatcache.bench.options import parse

    use_large_pages(os.environ)
    options = parse(arguments)
    module = "chatcache.bench.growth" if options.what == "growth" else "chatcache.bench.run"
    code: int = importlib.import_module(module).run(options)
    return code
