"""`chatcache models download`: fetch a model from the Hugging Face hub before it is needed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from chatcache.backends.base import ModelLoading
from chatcache.backends.local.model import resolve
from chatcache.backends.local.model.progress import download
from chatcache.commands.parser import Parser, settings_of
from chatcache.errors import UsageError
from chatcache.formatting import size
from chatcache.frontend.shell_output import Narrator, print_result
from chatcache.remotes import remote_model


def configure(parser: Parser) -> None:
    parser.description = (
        "Fetch a model into the Hugging Face cache, where every program finds it. What has been\n"
        "fetched of it before is not fetched again."
    )
    parser.add_argument("model", metavar="ORGANISATION/NAME", help="a model on the hub")
    parser.add_argument(
        "--offline", action="store_true", default=None, help="only say whether it is here"
    )
    parser.add_json()
    parser.add_quiet()


def run(arguments: Namespace) -> int:
    narrator = Narrator(arguments.quiet)
    settings = settings_of(arguments)
    if remote_model(arguments.model, settings.config.remotes) is not None:
        raise UsageError("A server has its model already.", "Only a model of the hub is fetched.")
    found = resolve.resolve_model(arguments.model, is_offline=settings.config.model.offline)
    is_new = not isinstance(found, Path)

    def tell(event: ModelLoading) -> None:
        of_total = f" of {size(event.total)}" if event.total else ""
        narrator.progress(f"{event.stage}: {size(event.done)}{of_total}")

    try:
        path = found if isinstance(found, Path) else download(found, tell)
    finally:
        narrator.release()
    resolve.check_model_dir(path)
    num_bytes = resolve.count_bytes(path)
    model = arguments.model
    data = {"model": model, "path": str(path), "bytes": num_bytes, "downloaded": is_new}
    words = "is here now" if is_new else "is on this machine already"
    text = f"{model} {words}: {path}, weights {size(num_bytes)}."
    print_result(data, text, as_json=arguments.json)
    return 0
