"""Chat templates that behave like those of well-known model families, written for the tests.

Each shape says what it stands for: what is trimmed, stripped, folded, dated or refused, and with
which control tokens. The behaviour is what matters, not the wording.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.models import CHATML_TEMPLATE, build_metaspace_tokenizer, build_tokenizer

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class Shape:
    """`end` closes an answer. `reasons`: the model thinks before it answers, between `marks`."""

    name: str
    template: str | None
    special: tuple[str, ...] = CHATML
    added: tuple[str, ...] = ()
    end: str = "<|im_end|>"
    reasons: bool = False
    opens_reasoning: bool = False
    metaspace: str = ""
    loses_first_turn: bool = False
    marks: tuple[str, str] = THINK

    def tokenizer(self) -> Any:
        """Special tokens first the padding, last the end token."""
        special = (*(token for token in self.special if token != self.end), self.end)
        if self.metaspace:
            tokenizer = build_metaspace_tokenizer(
                chat_template=self.template,
                control_tokens=special,
                prepend_scheme=self.metaspace,
            )
        else:
            tokenizer = build_tokenizer(
                chat_template=self.template, control_tokens=special, plain_added_tokens=self.added
            )
        tokenizer.bos_token = special[0]
        return tokenizer


QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if not (loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# Reasoning is kept only in answers after the last user message.
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{%- set content = message.content %}{%- set reasoning = '' %}"
    "{%- if message.reasoning_content is string %}"
    "{%- set reasoning = message.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and reasoning %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n'"
    " + content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)

SEED_MARKS = ("<seed:think>", "</seed:think>")
SEED = QWEN3.replace(THINK[0], SEED_MARKS[0]).replace(THINK[1], SEED_MARKS[1])
MAGISTRAL_MARKS = ("[THINK]", "[/THINK]")
# Says nothing of reasoning: the marks are among the tokens alone.
TOKENS_ALONE = ("<|begin_of_thought|>", "<|end_of_thought|>")

# The generation prompt opens the reasoning; history has none of it.
QWQ = (
    "{%- for message in messages %}"
    "{%- set content = message.content.split('</think>')[-1].lstrip('\\n')"
    " if message.role == 'assistant' else message.content %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)

R1 = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}"
    "{%- elif message.role == 'assistant' %}"
    "{{- '<｜Assistant｜>' + message.content.split('</think>')[-1]"
    " + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}"
)

DEEPSEEK = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{- message.content }}"
    "{%- elif message.role == 'user' %}{{- '<｜User｜>' + message.content + '<｜Assistant｜>' }}"
    "{%- if not loop.last or add_generation_prompt %}{{- '</think>' }}{%- endif %}"
    "{%- else %}{{- message.content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
)

_LLAMA3_TURN = (
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}" + _LLAMA3_TURN + "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
LLAMA32 = (
    "{{- bos_token }}{%- set date = strftime_now('%d %b %Y') %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n"
    "Today Date: ' + date + '\\n\\n' }}"
    "{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] | trim }}{%- endif %}"
    "{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{%- if message.role != 'system' %}"
    + _LLAMA3_TURN
    + "{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

GEMMA = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}"
    "{%- endif %}{%- for message in messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/...') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)

# The system prompt stands in front of the last user message.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in rest %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}"
    "{{- '[INST]' + system + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST]' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)

LLAMA2 = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}"
    "{{- bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{%- elif message['role'] == 'system' %}"
    "{{- raise_exception('Only user and assistant roles are supported!') }}"
    "{%- else %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{%- endif %}{%- endfor %}"
)

PHI3 = (
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)

HARMONY = (
    "{{- '<|start|>system<|message|>You are a model.\\nCurrent date: '"
    " + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}"
    "{{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' }}"
    "{%- elif message.role == 'user' %}"
    "{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}"
    "{%- elif loop.last and not add_generation_prompt %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}"
    "{%- else %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)

# A default system prompt that changes once there is one, and reasoning kept for good.
SMOLLM3 = (
    "{{- '<|im_start|>system\\n## Metadata\\n\\n' }}"
    "{{- 'Reasoning Mode: ' + ('/no_think' if enable_thinking is defined and not enable_thinking"
    " else '/think') + '\\n\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content.rstrip() }}"
    "{%- else %}{{- 'You are SmolLM.' }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if message.reasoning_content is string %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- message.content.lstrip('\\n') + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

GLM = (
    "[gMASK]<sop>{%- for message in messages %}"
    "{{- '<|' + message.role + '|>\\n' + message.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)

# Never mentions the system role: it is silently left out.
DEAF = (
    "{%- for message in messages %}{%- if message.role in ('user', 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

_DEEPSEEK_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
)
_DEEPSEEK_END = _DEEPSEEK_TOKENS[-1]
_LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_PHI3_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

SHAPES = (
    Shape("chatml", CHATML_TEMPLATE),
    Shape("qwen2.5", QWEN25),
    Shape("qwen3", QWEN3, added=THINK),
    Shape("qwen3-thinking", QWEN3, added=THINK, reasons=True),
    Shape("qwq", QWQ, added=THINK, reasons=True, opens_reasoning=True),
    Shape(
        "r1",
        R1,
        special=_DEEPSEEK_TOKENS,
        added=THINK,
        end=_DEEPSEEK_END,
        reasons=True,
        opens_reasoning=True,
    ),
    # Special tokens, which decoders hide.
    Shape("seed", SEED, special=(*CHATML, *SEED_MARKS), reasons=True, marks=SEED_MARKS),
    Shape(
        "magistral",
        CHATML_TEMPLATE,
        special=(*CHATML, *MAGISTRAL_MARKS),
        reasons=True,
        marks=MAGISTRAL_MARKS,
    ),
    Shape(
        "tokens-alone",
        CHATML_TEMPLATE,
        special=(*CHATML, *TOKENS_ALONE),
        reasons=True,
        marks=TOKENS_ALONE,
    ),
    Shape("deepseek", DEEPSEEK, special=_DEEPSEEK_TOKENS, added=THINK, end=_DEEPSEEK_END),
    Shape("llama3", LLAMA3, special=_LLAMA3_TOKENS, end="<|eot_id|>"),
    Shape("llama3.2", LLAMA32, special=_LLAMA3_TOKENS, end="<|eot_id|>"),
    Shape(
        "gemma",
        GEMMA,
        special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        end="<end_of_turn>",
    ),
    Shape("mistral", MISTRAL, special=("<s>", "[INST]", "[/INST]", "</s>"), end="</s>"),
    Shape("llama2", LLAMA2, special=("<s>", "</s>"), end="</s>", metaspace="first"),
    Shape("llama2-legacy", LLAMA2, special=("<s>", "</s>"), end="</s>", metaspace="always"),
    Shape("phi3", PHI3, special=_PHI3_TOKENS, end="<|end|>", metaspace="never"),
    Shape(
        "gpt-oss",
        HARMONY,
        special=(
            "<|endoftext|>",
            "<|start|>",
            "<|channel|>",
            "<|message|>",
            "<|end|>",
            "<|return|>",
        ),
        end="<|return|>",
    ),
    Shape("smollm3", SMOLLM3, added=THINK),
    Shape("smollm3-thinking", SMOLLM3, added=THINK, reasons=True),
    Shape(
        "glm",
        GLM,
        special=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<|user|>"),
        end="<|user|>",
    ),
    Shape("deaf", DEAF),
    Shape("plain", None),
)
BY_NAME = {shape.name: shape for shape in SHAPES}
