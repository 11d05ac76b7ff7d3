"""The bench runs on a tiny shape; what it measures is not asserted, what it says is."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from chatcache.backends.local.model import attention, device_attention
from chatcache.backends.local.model.gguf.derived import derived_directory, open_model
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.loader import load_config
from chatcache.backends.local.packed.modules import BlockExperts
from chatcache.backends.local.run import forward
from chatcache.bench import engine, limits, loading, main, rivals, setup, sharing
from chatcache.bench import run as bench_run
from chatcache.bench.chart import first_token_chart, first_token_svg, strip_chart
from chatcache.bench.compiled import CompiledTransformers
from chatcache.bench.contenders import Transformers
from chatcache.bench.gguf_file import write_gguf
from chatcache.bench.limits import Limits
from chatcache.bench.options import parse
from chatcache.bench.report import (
    CHATCACHE,
    COMPILED,
    LLAMA_CPP,
    TRANSFORMERS,
    WIDTH,
    BenchResult,
    Figure,
    Point,
    as_json,
    as_table,
)
from chatcache.bench.rows import core_rows, default_lengths
from chatcache.bench.run import gpu_name, measure
from chatcache.bench.setup import load_models, load_shape
from chatcache.bench.targets import target_lines, targets
from chatcache.cache.book.rates import RateBook
from chatcache.cache.views import Held
from chatcache.errors import StorageError, UnavailableError, UsageError
from tests.gguf_models import write_mixture
from tests.lazy_link import LazyLink
from tests.models import build_model
from tests.recorded_calls import RecordedCalls

CORE = {
    "cold", "live", "ram", "disk", "warm", "fork", "switch", "decode", "short", "keep", "spill",
}  # fmt: skip
LOADING = {"loaded", "loaded_token", "first"}
SHARING = {"fork_session", "switch_forks", "prefix_64", "prefix_128", "prefix_256", "prefix_512"}
FIGURES = {"switch_tokens", "switch_bytes", "turn_bytes"}
QUICK = ["--shape", "tiny", "--tokens", "70", "--runs", "2", "--dtype", "float32", "--no-program"]
HAS_GGUF = importlib.util.find_spec("gguf") is not None
HAS_LLAMA = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


@pytest.fixture
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of this machine from less work: half of the time of a run on a tiny shape."""
    monkeypatch.setattr(limits, "_BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "_MATRIX", 64)


@pytest.fixture
def core_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without loading in processes of its own, and without what branches share."""
    for part in ("LoadingBench", "SharingBench"):
        monkeypatch.setattr(f"chatcache.bench.run.{part}.run", lambda *_: None)


def run_bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON of the last line, and what people read."""
    assert main(list(arguments)) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits")
def test_the_last_line_is_one_json_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory, picture = tmp_path / "measured", tmp_path / "chart.svg"
    directory.mkdir()
    result, err = run_bench(
        capsys, *QUICK, "--against", "transformers", "--lengths", "16,70",
        "--svg", str(picture), "--directory", str(directory),
    )  # fmt: skip
    assert set(result["rows"]) == CORE | SHARING | LOADING
    assert result["conditions"]["tokens"] == 70
    per_token = 2 * 2 * 2 * 16 * 4
    assert result["bytes_written"] >= 70 * per_token
    for name in ("cold", "decode", "short"):
        row = result["rows"][name]
        median = row["transformers"]["median_ms"] / row["chatcache"]["median_ms"]
        assert row["ratio"] == pytest.approx(median)
        assert row["chatcache"]["min_ms"] <= row["chatcache"]["max_ms"]
    figures = result["figures"]
    assert set(figures) >= FIGURES
    # Two forks with 100 tokens of their own each: those move, and nothing else does.
    assert figures["switch_tokens"]["value"] == 100
    assert figures["switch_bytes"]["value"] == 100 * per_token
    assert 40 * per_token < figures["turn_bytes"]["value"] <= figures["turn_bytes"]["bound"]
    assert [point["tokens"] for point in result["curve"]] == [16, 70]
    assert set(result["curve"][0]["ms"]) == set(result["curve"][1]["ms"])
    assert "from disk, page cache cold" in err
    assert max(len(line) for line in err.splitlines() if str(picture) not in line) <= WIDTH
    ElementTree.fromstring(picture.read_text())
    assert list(directory.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's compiler
def test_all_of_a_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in of one: K and V go by way of slabs, and a fork that is left stays there."""
    for module in (bench_run, loading, rivals):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr("chatcache.bench.contenders.link_to", lambda device: LazyLink())
    monkeypatch.setattr("chatcache.bench.compiled.compiled", lambda model: model)
    monkeypatch.setattr(forward, "graphs_for", lambda device: RecordedCalls())
    monkeypatch.setitem(attention._KERNELS, "cpu", device_attention.NAME)
    monkeypatch.setattr("chatcache.bench.contenders._SLAB_BYTES", 1 << 20)
    monkeypatch.setattr(sharing, "TELLING_BYTES", 1)
    monkeypatch.setattr(bench_run, "LONG", 1200)
    monkeypatch.setattr(engine, "_STOPS", 1)
    options = parse([*QUICK, "--runs", "1", "--threads", "1", "--lengths", "16"])
    result = measure(load_models(options, tmp_path), tmp_path, options, lambda line: None)
    assert result.left_out[1:] == []  # llama.cpp alone
    for name in ("cold", "decode", "short"):
        assert set(result.rows[name].samples) == {TRANSFORMERS, COMPILED, CHATCACHE}
    assert {name for name, row in result.rows.items() if not row.samples} <= {"stop_decode"}
    assert set(result.rows) >= {"vram", "ready", "first_turn", "stop_prefill", "loaded", "first"}
    assert result.limits.to_host is not None
    assert result.rows["keep"].limit == result.bytes_written / result.limits.to_host
    table = as_table(result)
    assert max(len(line) for line in table.splitlines()) <= WIDTH
    assert "to the GPU" in table
    assert all(target.measured is not None for target in result.targets)
    captures = next(target for target in result.targets if target.name == "captures")
    assert (captures.measured, captures.is_met) == (0, True)
    assert [target["is_met"] for target in as_json(result)["targets"]].count(None) == 0


def test_the_compiled_contender_says_what_the_eager_one_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its static cache, positions and mask: behind a prompt, then a shorter one."""
    monkeypatch.setattr("chatcache.bench.compiled.compiled", lambda model: model)
    loaded, draw = load_shape("tiny", "float32"), random.Random(3)
    eager, compiled = Transformers(loaded), CompiledTransformers(loaded, 100)
    with torch.inference_mode():
        for num_tokens in (70, 12):
            ids = loaded.random_ids(draw, num_tokens)
            eager.cold(ids)
            compiled.cold(ids)
            for token in loaded.random_ids(draw, 20):
                assert compiled._append(compiled._step, [token]) == eager._append([token])


def test_a_target_is_met_missed_or_not_measured() -> None:
    result = measured()
    result.rows["live"].add(CHATCACHE, 0.15)
    found = {target.name: target for target in targets(result)}
    assert (found["cold"].measured, found["cold"].is_met) == (pytest.approx(0.445), True)
    assert found["decode"].measured == pytest.approx(3.71, abs=0.01)
    assert found["live"].measured == pytest.approx(2.14, abs=0.01)
    assert (found["decode"].is_met, found["live"].is_met) == (False, False)
    assert found["switch"].is_met is None
    lines = target_lines(list(found.values()))
    assert max(map(len, lines)) <= WIDTH
    verdicts = [line.rpartition("  ")[2] for line in lines[1:]]
    assert verdicts[:2] == ["ok", "missed"]
    assert "-" in verdicts
    # 470 MB by a link of 10 GB/s take 47 ms: 1.25 times that and one turn.
    result.limits = Limits(5e10, 1e10, 1e9, 1e12, 1e10, 1e10)
    for seconds, is_met in ((0.208, True), (0.209, False)):
        result.rows["ram"].samples[CHATCACHE] = [seconds]
        assert {each.name: each for each in targets(result)}["ram"].is_met is is_met


def test_without_a_gpu_it_is_not_measured(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UnavailableError, match="torch finds none"):
        main([*QUICK, "--device", "cuda", "--directory", str(tmp_path)])


def test_the_header_names_the_card_and_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_name(torch.device("cpu")) is None
    card = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    driver = tmp_path / "version"
    cuda = torch.device("cuda")
    assert gpu_name(cuda, driver) == "NVIDIA H200, 150.0 GB, CUDA 12.8"
    driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 17 UTC 2025\nGCC: 12\n"
    )
    assert gpu_name(cuda, driver) == "NVIDIA H200, 150.0 GB, CUDA 12.8, driver 570.86.15"
    result = measured()
    result.conditions["gpu"] = gpu_name(cuda, driver)
    assert "\nNVIDIA H200, 150.0 GB, CUDA 12.8, driver 570.86.15\n" in as_table(result)


def test_on_a_gpu_the_chart_has_a_long_history_too() -> None:
    assert default_lengths(4096) == (256, 1024, 2048, 4096)
    assert default_lengths(4096, is_on_gpu=True) == (256, 1024, 2048, 4096, 30_000)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits")
@pytest.mark.skipif(not HAS_LLAMA, reason="the extra `bench` is not installed")
def test_llama_cpp_runs_in_turn_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    result, err = run_bench(capsys, *QUICK, "--lengths", "0", "--against", "llama.cpp")
    for name in ("cold", "live", "ram", "disk", "warm", "decode", "short", "keep", "spill"):
        assert result["rows"][name]["llama.cpp"]["median_ms"] > 0
        assert result["rows"][name]["ratio_llama_cpp"] > 0
        assert "transformers" not in result["rows"][name]  # it was not asked for
    for contender in ("llama.cpp", "chatcache"):
        loaded, token = (result["rows"][name][contender] for name in ("loaded", "loaded_token"))
        assert 0 < loaded["min_ms"] < token["max_ms"]
    assert result["rows"]["cold"]["llama.cpp"]["samples"] == 2
    assert result["conditions"]["llama_cpp"]
    assert result["curve"] == []
    assert "llama.cpp" in err


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits", "home")
@pytest.mark.skipif(not HAS_GGUF, reason="the package gguf is not installed")
def test_a_gguf_file_is_measured_without_its_tokenizer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And with llama.cpp, where it is installed, on the very file."""
    model = build_model(
        "llama", vocab_size=97, eos_token_id=0, seed=1, num_key_value_heads=2, hidden_size=64
    )
    file = tmp_path / "measured.gguf"
    write_gguf(model.half(), file)
    result, err = run_bench(
        capsys, "--model", str(file), "--tokens", "70", "--runs", "1", "--lengths", "0",
        "--threads", "1",
    )  # fmt: skip
    assert result["conditions"]["contenders"]["transformers"].startswith("the weights unpacked")
    assert result["conditions"]["weights"]["F16"] > 0
    for name in ("cold", "decode", "loaded", "ram", "disk"):
        assert result["rows"][name]["chatcache"]["median_ms"] > 0
    assert result["rows"]["cold"]["transformers"]["median_ms"] > 0
    if HAS_LLAMA:
        assert result["conditions"]["contenders"]["llama.cpp"] == "the same file"
        assert result["conditions"]["ratio_of"] == "llama.cpp"
        assert result["rows"]["loaded"]["llama.cpp"]["median_ms"] > 0
    assert "the file has no tokenizer" in err
    with pytest.raises(UsageError, match="packed already"):
        main(["--model", str(file), "--quantize", "4bit"])


def test_a_token_goes_through_the_experts_that_are_chosen(tmp_path: Path) -> None:
    exact = build_model(
        "qwen3_moe", vocab_size=97, eos_token_id=0, num_experts=4, num_experts_per_tok=1
    )
    experts = sum(
        weight.numel() for name, weight in exact.named_parameters() if ".experts." in name
    )
    found = setup._plain("exact", exact)
    assert found.num_parameters - found.num_active == 3 * experts // 4
    assert found.weight_bytes - found.step_bytes == 4 * (3 * experts // 4)
    path = tmp_path / "model.gguf"
    unpacked = write_mixture(path, "qwen3_moe")  # 3 of 6 experts
    source = open_model(path)
    config = load_config(derived_directory(source, None))
    model, _ = load_gguf(source, config, torch.float32, torch.device("cpu"))
    found = setup._described("packed", model, unpacked.num_parameters(), "")
    in_experts = sum(
        matrix.num_bytes
        for module in model.modules()
        if isinstance(module, BlockExperts)
        for matrix in module.matrices
    )
    assert setup.weight_kinds(found)["Q8_0"] > in_experts
    assert found.weight_bytes - found.step_bytes == in_experts // 2


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits", "home")
def test_weights_are_packed_and_say_of_what_kind_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result, _ = run_bench(
        capsys, "--model", "builtin", "--quantize", "8bit", "--tokens", "70", "--runs", "1",
        "--lengths", "0", "--threads", "1", "--no-program", "--against", "transformers",
    )  # fmt: skip
    known = result["conditions"]
    assert known["quantize"] == "8bit"
    assert known["weights"]["Q8_0"] > 0
    assert known["contenders"] == {
        "transformers": "the weights before they were packed, in float32"
    }
    assert known["ratio_of"] == "transformers"
    assert result["rows"]["loaded"]["chatcache"]["median_ms"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits", "core_only")
def test_without_llama_cpp_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatcache.bench.rivals.why_not", lambda config: "it is not installed")
    result, err = run_bench(capsys, *QUICK, "--runs", "1", "--lengths", "0")
    assert result["left_out"] == ["llama.cpp is left out: it is not installed."]
    assert "llama.cpp is left out: it is not installed." in err
    assert "llama.cpp" not in result["rows"]["cold"]
    with pytest.raises(UsageError, match="not installed"):
        main([*QUICK, "--against", "llama.cpp"])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_limits", "core_only")
def test_a_model_of_this_machine_learns_its_rates(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    run_bench(
        capsys, "--model", "builtin", "--tokens", "80", "--runs", "1", "--lengths", "0",
        "--against", "transformers", "--no-program",
    )  # fmt: skip
    (rates,) = (home / "cache" / "segments").glob("*/rates.json")
    known = RateBook(rates)
    assert known.is_measured
    assert (known.prefill_tokens_per_second or 0) > 0
    assert (known.restore_ms([Held(80, "disk", 400_000)]) or 0) > 0


def test_long_prompts_have_a_row_of_512_tokens() -> None:
    assert "cold_512" in core_rows(513)
    assert "cold_512" not in core_rows(512)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shape", "unknown"],
        ["--quantize", "3bit"],
        ["--tokens", "0"],
        ["--tokens", "x"],
        ["--against", "nothing"],
        ["--lengths", "16,x"],
        ["shrink"],
        ["?"],
    ],
)
def test_wrong_options_are_wrong_use(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        main(arguments)


def test_a_directory_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        main([*QUICK, "--directory", str(tmp_path / "missing")])


def measured() -> BenchResult:
    """A result with round numbers."""
    rows = core_rows(4096)
    for name, theirs, llama, ours in (
        ("cold", 20.0, 25.0, 8.9), ("ram", None, 0.09, 0.104), ("decode", 0.26, 0.08, 0.07),
    ):  # fmt: skip
        for contender, seconds in ((TRANSFORMERS, theirs), (LLAMA_CPP, llama), (CHATCACHE, ours)):
            if seconds is not None:
                for factor in (0.9, 1.0, 1.2):
                    rows[name].add(contender, factor * seconds)
    rows["cold"].limit = 5.5
    conditions = {
        "model": "m", "parameters": 1_000_000, "dtype": "bfloat16", "cpu": "a processor",
        "weights": {"Q4_K": 280_000_000, "Q6_K": 110_000_000}, "kernels": "its kernels",
        "capability": "AVX2", "contenders": {"llama.cpp": "the same file"},
        "threads": 1, "tokens": 4096, "message_tokens": 16, "runs": 3, "torch": "2",
        "transformers": "5", "llama_cpp": "0.3", "device": "cpu", "ratio_of": TRANSFORMERS,
    }  # fmt: skip
    figure = Figure(
        "turn_bytes", "written by a turn", 4_700_000, "bytes", 4_800_000, "40 new tokens"
    )
    return BenchResult(conditions, Limits(5e10, 1e10, 1e9, 1e12), rows, 470_000_000, [figure])


def test_the_table_fits_a_terminal_and_says_medians_extremes_and_bounds() -> None:
    table = as_table(measured())
    assert max(len(line) for line in table.splitlines()) <= WIDTH
    lines = table.splitlines()
    at = next(number for number, line in enumerate(lines) if "cold, all 4,096" in line)
    assert lines[at].split()[4:] == ["20.0", "s", "25.0", "s", "8.90", "s", "2.2", "x", "5.50", "s"]
    assert lines[at + 1].split() == ["matrix", "rate", "18.0–24.0", "22.5–30.0", "8.01–10.7"]
    assert "192 x" in table  # resumed from RAM, against a cold prefill by transformers
    assert "next turn of an open chat" not in table  # it has no samples
    assert any("4.7 MB  at most 4.8 MB" in line for line in lines)
    assert "a processor, 1 thread, torch for AVX2\n" in table
    assert "Q4_K 280 MB, Q6_K 110 MB; computed in bfloat16 by its\n  kernels\n" in table
    assert "llama.cpp runs the same file\n" in table


def test_the_ratio_of_packed_weights_is_that_of_llama_cpp_on_the_same_row() -> None:
    result = measured()
    result.conditions["ratio_of"] = LLAMA_CPP
    table = as_table(result)
    line = next(line for line in table.splitlines() if "resumed from RAM" in line)
    assert line.split()[3:] == ["-", "90.0", "ms", "104", "ms", "0.9", "x"]
    assert "ratio: of llama.cpp" in table.replace("\n  ", " ")
    assert as_json(result)["rows"]["ram"]["ratio"] == pytest.approx(192, abs=1)  # as ever


def test_the_slowest_key_in_a_hundred_is_what_counts() -> None:
    result = measured()
    row = result.rows["live"]
    row.is_p99 = True
    for milliseconds in range(1, 201):
        row.add(CHATCACHE, milliseconds / 1000)
    assert row.p99(CHATCACHE) == pytest.approx(0.198)
    assert as_json(result)["rows"]["live"]["chatcache"]["p99_ms"] == pytest.approx(198)
    assert "200 keys, median 100 ms" in as_table(result)


POINTS = [
    Point(256, {"transformers, cold": 1.2, "chatcache, from RAM": 0.09}),
    Point(4096, {"transformers, cold": 20.0, "chatcache, from RAM": 0.12}),
]


def test_bars_of_the_chart_are_as_long_as_their_logarithms() -> None:
    chart = first_token_chart(POINTS)
    assert max(len(line) for line in chart.splitlines()) <= WIDTH
    bars = [line.count("█") for line in chart.splitlines() if "█" in line]
    assert bars[2] > bars[0] > bars[3] > bars[1] > 0
    assert "4,096" in chart
    assert "20.0 s" in chart
    assert "90.0 ms" in chart


def test_the_picture_is_sound_and_labels_every_line() -> None:
    root = ElementTree.fromstring(first_token_svg(POINTS, "a <model> & its machine"))
    words = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <model> & its machine" in words
    assert "transformers, cold: 20.0 s" in words
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_a_strip_of_bars_has_one_per_value_up_to_its_width() -> None:
    text = strip_chart("Title", [1.0, 2.0, 4.0], lambda value: f"{value:g}")
    assert text.splitlines() == ["Title", "  ▃▅█", "  first 1, last 4, most 4"]
    assert len(strip_chart("T", [1.0] * 500, str, columns=40).splitlines()[1].strip()) == 40
