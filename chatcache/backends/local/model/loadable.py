"""Whether a model in a directory can be loaded; and if not, what it is, and what then.

Owns every reason that files alone can tell. No weights are read, and neither torch nor transformers
is imported, so that lists, downloads and the loading itself all ask here, and say the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chatcache.backends.local.model.bases import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    base_of_adapter,
    base_of_model,
    is_only_adapter,
    lent_tokenizer,
)
from chatcache.backends.local.model.families import CAUSAL_FAMILIES, text_family
from chatcache.backends.local.model.files import (
    INDEX,
    WEIGHTS,
    architecture_of,
    read_header,
    read_object,
    weight_files,
    weights_are_named,
)
from chatcache.backends.local.model.gguf.derived import open_model
from chatcache.backends.local.model.quantization import PACKAGES, quantization_of
from chatcache.backends.local.model.stand_ins import stand_in
from chatcache.errors import ModelLoadError

ANEW = "Download the model again, or choose another with --model."
_COPY = "Choose a copy of it whose weights are safetensors files for transformers."

_HEAD_BYTES = 64
_DESCRIBING = (
    *("config.json", "generation_config.json", "chat_template.jinja", INDEX),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json"),
)

# Other layouts of weights, by a file that gives them away.
_LAYOUTS = (
    (ADAPTER_WEIGHTS, "the weights of an adapter only"),
    ("consolidated*", "its weights in the layout of its publisher only, not of transformers"),
    ("pytorch_model*.bin*", "its weights as a pickle only, which can run code"),
    ("*.pth", "its weights as a pickle only, which can run code"),
    ("*.pt", "its weights as a pickle only, which can run code"),
    ("tf_model.h5", "its weights for TensorFlow only"),
    ("flax_model.msgpack", "its weights for Flax only"),
    ("weights*.npz", "its weights for MLX only"),
    ("*.onnx", "its weights for ONNX only"),
    ("onnx/*.onnx", "its weights for ONNX only"),
    ("openvino_model.xml", "its weights for OpenVINO only"),
)

# Kinds of model that have a config.json, and write no text after text.
_SENSES = {
    "images": re.compile(r"vision|image|llava|idefics|(^|_)vlm?(_|$)"),
    "sound": re.compile(r"audio|speech|whisper"),
}
_OTHER_TASKS = (
    *("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification"),
    *("ForQuestionAnswering", "ForMultipleChoice", "ForImageClassification", "RewardModel"),
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a directory cannot be loaded (a sentence that names the file), and what then.

    `is_final`: no download of the same model would change it."""

    problem: str
    advice: str = ANEW
    is_final: bool = False

    def error(self) -> ModelLoadError:
        return ModelLoadError(self.problem, self.advice)


def obstacle(path: Path, *, has_weights: bool = True) -> Obstacle | None:
    """What keeps the model in `path` from being loaded; None: nothing that files can tell.

    Without `has_weights` only what describes the model is there yet."""
    try:
        return next(_obstacles(path, has_weights), None)
    except ModelLoadError as error:
        return Obstacle(error.message, error.hint or ANEW)
    except OSError as error:
        return Obstacle(f"{path} cannot be read: {error.strerror}.", "Check its permissions.", True)


def check_adapter(directory: Path | None) -> None:
    """Raises ModelLoadError for what is no adapter, and says what it is if that shows."""
    if directory is None:
        return
    if not directory.is_dir():
        raise ModelLoadError(
            f"The adapter directory {directory} does not exist.", "Check --adapter."
        )
    weights, config = directory / ADAPTER_WEIGHTS, directory / ADAPTER_CONFIG
    for file in (config, weights):
        if not file.is_file():
            is_model = (directory / "config.json").is_file()
            raise ModelLoadError(
                f"{directory} is no adapter: {file.name} is missing.",
                f"It is a model: --model {directory}"
                if is_model
                else "Name a directory saved by peft.",
            )
    for found in _stand_ins(iter((config, weights))):
        raise found.error()


def _obstacles(path: Path, has_weights: bool) -> Iterator[Obstacle]:
    """All that is in the way, what says most first."""
    if path.is_file():
        open_model(path)
        return
    config_path = path / "config.json"
    if not config_path.is_file() or is_only_adapter(path):
        yield _without_model(path)
        return
    yield from _stand_ins(path / name for name in _DESCRIBING)
    config = read_object(config_path)
    if "model_type" not in config:
        yield Obstacle(f"{config_path} does not say its model_type.")
        return
    if (path / "generation_config.json").exists():  # transformers makes one up if it is broken
        read_object(path / "generation_config.json")
    for judge in (_kind, _packing):
        if (found := judge(path, config)) is not None:
            yield replace(found, is_final=True)
    if has_weights:
        yield from _weights(path)
    yield from _tokenizer(path, config)


# a directory that is something else


def _without_model(path: Path) -> Obstacle:
    if (path / ADAPTER_CONFIG).is_file():
        base = base_of_adapter(path)
        return Obstacle(
            f"{path} is an adapter for {base or 'a model'}, not a whole model: config.json or the "
            "weights are missing.",
            f"Put it on its model: --model {base or 'MODEL'} --adapter {path}",
            is_final=True,
        )
    missing = f"{path / 'config.json'} is missing"
    inside = sorted(file.parent for file in path.glob("*/config.json"))
    if (path / "model_index.json").is_file():
        return Obstacle(f"{missing}: this is a model that makes images.", is_final=True)
    if (path / "snapshots").is_dir():
        return Obstacle(f"{path} holds no whole download of its model: {missing}.")
    if inside:
        names = ", ".join(str(directory) for directory in inside[:3])
        return Obstacle(
            f"{missing}: the models are in directories inside.", f"Name one of them: {names}"
        )
    if (found := _other_layout(path)) is not None:
        return Obstacle(f"{path} has {found}; config.json is missing.", _COPY)
    return Obstacle(f"{missing}.")


def _stand_ins(files: Iterator[Path]) -> Iterator[Obstacle]:
    """Files that are only a pointer to what they should be, or the page of an error."""
    for file in files:
        if file.is_file() and (words := stand_in(file)):
            is_git = "pointer" in words
            yield Obstacle(
                f"{file} {words}.",
                f"Run `git lfs pull` in {file.parent}, or download the model again."
                if is_git
                else "Download the model again, as files.",
            )


# what the config says


def _kind(path: Path, config: Mapping[str, Any]) -> Obstacle | None:
    """A model of another kind than those that only write text after text."""
    family, architecture = config["model_type"], architecture_of(config)
    if not isinstance(family, str):
        return Obstacle(f"{path / 'config.json'} does not say its model_type.")
    clues = [family, *config]
    senses = [sense for sense, words in _SENSES.items() if any(map(words.search, clues))]
    if config.get("is_encoder_decoder"):
        what = "has an encoder and a decoder, where chatcache runs models that only go on with text"
    elif architecture.endswith(_OTHER_TASKS) or _has_no_head(architecture, config):
        what = "was made for another task than going on with a text"
    elif family in CAUSAL_FAMILIES or text_family(config) is not None:
        return None
    elif senses:
        what = f"reads {' and '.join(senses)} beside text, where chatcache runs models of text only"
    elif "auto_map" in config:
        what = "brings its own code, which is not run"
    else:
        what = "is no language model that this version of transformers knows"
    return Obstacle(
        f"{path / 'config.json'} describes no model that can be loaded: {architecture} "
        f"({family}) {what}.",
        "Choose a model that reads and writes text only; a newer chatcache may know more of them.",
    )


def _has_no_head(architecture: str, config: Mapping[str, Any]) -> bool:
    """Whether a model has no output layer: it makes embeddings, or was saved without one."""
    is_bare = architecture.endswith("Model") and not architecture.endswith("HeadModel")
    return is_bare and not config.get("tie_word_embeddings")


def _packing(path: Path, config: Mapping[str, Any]) -> Obstacle | None:
    """Weights packed into few bits, in a way that nothing here reads."""
    found = quantization_of(config)
    if found is None or found.is_by_transformers or found.is_unpacked_here:
        return None
    where = f"The weights in {path} are quantised with {found.words}"
    other = "choose a copy of it that is not quantised, such as one in bfloat16"
    if lacking := lacking_packages(found.method):
        names = [_PACKAGE_NAMES.get(name, name.replace("_", "-")) for name in lacking]
        return Obstacle(
            f"{where}, which needs {' and '.join(names)}, not installed here.",
            f"Run `pip install {' '.join(names)}` in chatcache's environment, or {other}.",
        )
    is_known = found.method in PACKAGES
    problem = f"{where}, which cannot be read."
    return None if is_known else Obstacle(problem, f"{other[:1].upper()}{other[1:]}.")


def lacking_packages(method: str) -> list[str]:
    """The packages that transformers needs for a way to pack weights, and that are not here."""
    return [name for name in PACKAGES.get(method, ()) if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# weights and tokenizer


def _weights(path: Path) -> Iterator[Obstacle]:
    if not weights_are_named(path):
        found = _other_layout(path)
        parts = list(path.glob("*.safetensors"))
        if found is None and parts:
            yield Obstacle(
                f"{path} has {len(parts)} weight files without {INDEX}, which says what is where."
            )
        what = f"{found}; {WEIGHTS} is missing" if found else f"no weights: {WEIGHTS} is missing"
        yield Obstacle(f"{path} has {what}.", _COPY if found else ANEW)
        return
    files = weight_files(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        yield Obstacle(f"{path} lacks weight files: {', '.join(missing)}.")
    yield from _stand_ins(iter(files))
    for file in files:
        if any(".lora_A." in name for name in read_header(file)):
            yield Obstacle(
                f"{file} holds a model with an adapter that is not merged into it.",
                "Merge it with peft (merge_and_unload), or save the adapter alone and put it on "
                "its model with --adapter.",
                is_final=True,
            )


def _other_layout(path: Path) -> str | None:
    return next((words for pattern, words in _LAYOUTS if any(path.glob(pattern))), None)


def _tokenizer(path: Path, config: Mapping[str, Any]) -> Iterator[Obstacle]:
    """transformers reads tokenizer.json by itself, and the rest with the help of other packages."""

    def has(name: str) -> bool:
        return (path / name).is_file()

    if has("tokenizer.json"):
        if not _is_object(path / "tokenizer.json"):
            read_object(path / "tokenizer.json")  # says what is wrong with it
        return
    if has("vocab.txt") or (has("vocab.json") and has("merges.txt")):
        return
    for is_there, name, packages in _foreign_tokenizers(path):
        if not is_there:
            continue
        lacking = [package for package in packages if not _is_installed(package)]
        if lacking:
            names = [_PACKAGE_NAMES.get(package, package) for package in lacking]
            yield Obstacle(
                f"{path} has its tokenizer as {name} only; reading that needs "
                f"{' and '.join(names)}, not installed here.",
                f"Run `pip install {' '.join(names)}` in chatcache's environment, or choose a copy "
                "of the model that has tokenizer.json.",
                is_final=True,
            )
        return
    if lent_tokenizer(path) is not None:
        return
    base = base_of_model(path)
    of_base = "" if base is None else f" ({base})"
    yield Obstacle(
        f"{path} has no tokenizer: tokenizer.json is missing.",
        "Copy tokenizer.json and tokenizer_config.json into it from the model that it was trained "
        f"from{of_base}, or download it again.",
    )


def _is_object(file: Path) -> bool:
    """Whether a file begins and ends like a JSON object: one of a tokenizer has megabytes, and to
    read all of it would take longer than everything else here."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
        opened.seek(max(0, file.stat().st_size - _HEAD_BYTES))
        return head.lstrip()[:1] == b"{" and opened.read().rstrip()[-1:] == b"}"


_PACKAGE_NAMES = {
    "optimum.quanto": "optimum-quanto",
    "google.protobuf": "protobuf",
    "mistral_common": "mistral-common",
}
_SENTENCEPIECE = ("sentencepiece", "google.protobuf")


def _foreign_tokenizers(path: Path) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    """(whether it is there, its name, what reads it), the better one first."""
    yield (path / "tekken.json").is_file(), "tekken.json", ("mistral_common",)
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        file = path / name
        is_tiktoken = file.is_file() and _is_tiktoken(file)
        yield file.is_file(), name, ("tiktoken",) if is_tiktoken else _SENTENCEPIECE
    tiktoken = next(path.glob("*.tiktoken"), None)
    yield tiktoken is not None, tiktoken.name if tiktoken else "", ("tiktoken",)


def _is_tiktoken(file: Path) -> bool:
    """Lines of a token in base64 and its rank; the other kind is binary."""
    with file.open("rb") as opened:
        return opened.readline(_HEAD_BYTES).rstrip().endswith(b" 0")
