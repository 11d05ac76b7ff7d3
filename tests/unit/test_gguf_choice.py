"""Which GGUF file a name means: parts, quantisations in file names, what is taken unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.backends.local.model.gguf.choice import (
    listed,
    matching,
    models_among,
    preferred,
    quantization_in,
)
from chatcache.backends.local.model.gguf.parts import parts_of, stem, whole_parts
from chatcache.errors import ModelLoadError


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Qwen3-0.6B-Q4_K_M", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m", "Q4_K_M"),
        ("mistral-7b-instruct-v0.1.Q5_K_S", "Q5_K_S"),
        ("Llama-3.2-1B-Instruct-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("Some-Model.i1-IQ3_XXS", "I1-IQ3_XXS"),
        ("gemma-3-1b-it-qat-q4_0", "Q4_0"),
        ("Phi-3-mini-4k-instruct-fp16", "F16"),
        ("Phi-3-mini-4k-instruct-q4", "Q4"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-bf16", "BF16"),
        ("Model.Q8_0-imat", "Q8_0"),
        ("ggml-model-IQ4_NL", "IQ4_NL"),
        ("BitNet-TQ1_0", "TQ1_0"),
        ("tinyllama", ""),
        ("Q4-something-else", "Q4"),
        ("HQQ2-thing", ""),
    ],
)
def test_the_name_of_a_file_says_its_quantisation(name: str, word: str) -> None:
    assert quantization_in(name) == word


FILES = [
    ("Big-Q4_K_M.gguf", 400),
    ("Big-Q8_0.gguf", 600),
    ("Big-UD-Q2_K_XL.gguf", 200),
    ("BF16/Big-BF16-00001-of-00002.gguf", 700),
    ("BF16/Big-BF16-00002-of-00002.gguf", 500),
    ("Big-F32-00002-of-00003.gguf", 1),
    ("mmproj-Big-F16.gguf", 50),
    ("imatrix_unsloth.gguf", 5),
    ("README.md", 3),
]


def test_models_are_told_from_what_lies_beside_them() -> None:
    models = {model.quantization: model for model in models_among(FILES)}
    assert sorted(models) == ["BF16", "F32", "Q4_K_M", "Q8_0", "UD-Q2_K_XL"]
    assert models["BF16"].num_bytes == 1200
    assert len(models["BF16"].names) == 2
    assert not models["BF16"].missing
    assert models["F32"].missing == ("Big-F32-00001-of-00003.gguf", "Big-F32-00003-of-00003.gguf")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("Q4_K_M", ["Big-Q4_K_M.gguf"]),
        ("q4_k_m", ["Big-Q4_K_M.gguf"]),
        ("bf16", ["BF16/Big-BF16-00001-of-00002.gguf"]),
        ("q2_k_xl", ["Big-UD-Q2_K_XL.gguf"]),
        ("big-q8_0", ["Big-Q8_0.gguf"]),
        ("Big-Q8_0.gguf", ["Big-Q8_0.gguf"]),
        ("BF16/Big-BF16-00002-of-00002.gguf", ["BF16/Big-BF16-00001-of-00002.gguf"]),
        ("Q4_K", []),
        ("Q4", []),
        ("", []),
    ],
)
def test_a_quantisation_or_a_file_is_named(wanted: str, found: list[str]) -> None:
    assert [model.names[0] for model in matching(models_among(FILES), wanted)] == found


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-Q2_K.gguf"], "a-Q4_K_M.gguf"),
        (["a-Q8_0.gguf", "a-Q4_0.gguf", "a-BF16.gguf"], "a-Q4_0.gguf"),
        (["a-F16.gguf", "a-Q8_0.gguf"], "a-Q8_0.gguf"),
        (["a-UD-Q4_K_XL.gguf", "a-UD-Q8_K_XL.gguf"], "a-UD-Q4_K_XL.gguf"),
        (["a.gguf"], "a.gguf"),
    ],
)
def test_what_is_taken_where_none_is_named(there: list[str], taken: str) -> None:
    assert preferred(models_among((name, 1) for name in there)).names == (taken,)


def test_a_list_is_short_and_says_sizes() -> None:
    models = models_among((f"m-Q{number}_0.gguf", 10**9 * number) for number in range(1, 8))
    assert listed(models, 2) == "Q1_0 (1.0 GB), Q2_0 (2.0 GB) and 5 more"


def test_any_part_leads_to_all(tmp_path: Path) -> None:
    names = [f"Big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names:
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in names]
    for name in names:
        assert parts_of(tmp_path / name) == expected
        assert whole_parts(tmp_path / name) == expected
    assert stem(names[1]) == "Big"
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / names[0]
    link.symlink_to(tmp_path / names[0])
    assert whole_parts(link) == expected
    (tmp_path / names[0]).unlink()
    with pytest.raises(ModelLoadError, match=r"lacks Big-00001-of-00003\.gguf"):
        whole_parts(tmp_path / names[2])


@pytest.mark.parametrize("name", ["a-00001-of-00000.gguf", "a-00001-of-99999.gguf", "a.gguf"])
def test_a_name_that_claims_nonsense_is_one_file(name: str, tmp_path: Path) -> None:
    assert parts_of(tmp_path / name) == [tmp_path / name]
