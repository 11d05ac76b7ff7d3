"""Turns dialogues into token batches: loss on answers, rows of similar length, position jumps.

Each row is one dialogue from position 0, padded to a length from `ROW_LENGTHS`; every batch has
about the same number of tokens. Sorting by length costs less padding than one long row costs
attention, and no dialogue sees another.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from corpus import WARMUP_SHARES, Corpus
from dialogues import Message
from tokenizer import IM_END, IM_START, MAX_CONTEXT_TOKENS

ROW_LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
IGNORED = -100
JUMP_SHARE = 0.3
_DIALOGUES_PER_CHUNK = 500
# Which answer a question gets is settled by its first tokens; the rest of a known text teaches
# little, so most single questions end there and many more of them fit into the budget.
QUESTIONS_PER_DIALOGUE = 24
MEMORIES_PER_DIALOGUE = 3
HISTORIES_PER_DIALOGUE = 2
FIRST_ANSWER_TOKENS = 10


@dataclass
class Batch:
    """`[num_rows, num_tokens]` each; labels are shifted already."""

    token_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor


@dataclass
class Row:
    """One tokenised dialogue. `starts` are the token indices where messages begin."""

    token_ids: list[int]
    is_answer: list[bool]
    starts: list[int]


class DialogueEncoder:
    """Renders like the chat template, and knows which tokens are answers.

    Control tokens come from the structure alone: typed ones are encoded as the text they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.bpe = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.bpe.encode_special_tokens = True
        self.im_start = tokenizer.convert_tokens_to_ids(IM_START)
        self.im_end = tokenizer.convert_tokens_to_ids(IM_END)
        self.newline = self._ids("\n")

    def _ids(self, text: str) -> list[int]:
        return self.bpe.encode(text, add_special_tokens=False).ids

    def encode(self, messages: list[Message]) -> Row:
        """Token ids of a whole dialogue."""
        row = Row([], [], [])
        for message in messages:
            header = len(self._ids(message["role"] + "\n"))
            body = self._ids(f"{message['role']}\n{message['content']}")
            row.starts.append(len(row.token_ids))
            row.token_ids += [self.im_start, *body, self.im_end, *self.newline]
            learned = message["role"] == "assistant" and message.get("author") != "other"
            row.is_answer += [False] * (1 + header) + [learned] * (len(body) - header + 1)
            row.is_answer += [False] * len(self.newline)
        return row

    def prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of a dialogue up to where the next answer begins."""
        return [*self.encode(messages).token_ids, self.im_start, *self._ids("assistant\n")]


def cut_answer(row: Row) -> Row:
    """The row without what follows the first answer tokens."""
    end = row.is_answer.index(True) + FIRST_ANSWER_TOKENS
    return Row(row.token_ids[:end], row.is_answer[:end], row.starts)


def positions_with_jumps(row: Row, length: int, rng: random.Random) -> list[int]:
    """Positions that skip ahead at some message starts: far distances without far texts.

    After PoSE (Zhu et al., 2023, arXiv 2309.10400).
    """
    positions = list(range(length))
    if rng.random() >= JUMP_SHARE or len(row.starts) < 3:
        return positions
    limit = rng.choice((1024, 2048, 4096, MAX_CONTEXT_TOKENS)) - length
    jump_at = sorted(rng.sample(row.starts[1:], rng.randint(1, min(4, len(row.starts) - 1))))
    for start in jump_at:
        if limit <= 0:
            break
        jump = rng.randint(0, limit)
        limit -= jump
        for index in range(start, length):
            positions[index] += jump
    return positions


class BatchStream:
    """Endless batches; `chunk_index` is all the state that a resumed run needs."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        tokens_per_batch: int,
        warmup_chunks: int,
    ) -> None:
        self.encoder = DialogueEncoder(tokenizer)
        self.pad_id = tokenizer.pad_token_id
        self.seed = seed
        self.tokens_per_batch = tokens_per_batch
        self.warmup_chunks = warmup_chunks
        self.chunk_index = 0

    def __iter__(self) -> Iterator[Batch]:
        leftovers: dict[int, list[Row]] = {length: [] for length in ROW_LENGTHS}
        while True:
            rng = random.Random(self.seed * 1_000_003 + self.chunk_index)
            batches = self._chunk(rng, leftovers)
            rng.shuffle(batches)
            self.chunk_index += 1
            yield from batches

    def _chunk(self, rng: random.Random, leftovers: dict[int, list[Row]]) -> list[Batch]:
        corpus = Corpus(rng.randrange(2**62))
        shares = WARMUP_SHARES if self.chunk_index < self.warmup_chunks else None
        for row in self._rows(corpus, shares):
            length = next((size for size in ROW_LENGTHS if size >= len(row.token_ids)), None)
            if length is not None:
                leftovers[length].append(row)
        batches = []
        for length, rows in leftovers.items():
            num_rows = max(1, self.tokens_per_batch // length)
            while len(rows) >= num_rows:
                batches.append(self._batch(rows[:num_rows], length, rng))
                del rows[:num_rows]
        return batches

    def _rows(self, corpus: Corpus, shares: dict[str, float] | None) -> Iterator[Row]:
        for _ in range(_DIALOGUES_PER_CHUNK):
            yield self.encoder.encode(corpus.draw(shares))
            for _ in range(QUESTIONS_PER_DIALOGUE):
                yield cut_answer(self.encoder.encode(corpus.draw_question()))
            for _ in range(HISTORIES_PER_DIALOGUE):
                yield cut_answer(self.encoder.encode(corpus.draw_after_others()))
            for _ in range(MEMORIES_PER_DIALOGUE):
                yield self.encoder.encode(corpus.draw_memory())

    def _batch(self, rows: list[Row], length: int, rng: random.Random) -> Batch:
        token_ids = torch.full((len(rows), length), self.pad_id)
        labels = torch.full((len(rows), length), IGNORED)
        positions = torch.zeros((len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            ids = torch.tensor(row.token_ids)
            token_ids[index, : len(ids)] = ids
            learned = torch.where(torch.tensor(row.is_answer), ids, IGNORED)
            labels[index, : len(ids) - 1] = learned[1:]
            positions[index] = torch.tensor(positions_with_jumps(row, length, rng))
        return Batch(token_ids, labels, positions)
