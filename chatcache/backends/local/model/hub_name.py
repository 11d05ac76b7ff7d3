"""The name of a model on the hub: `ORGANISATION/NAME`, and for one of its GGUF files `:QUANT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:\s][^:]*))?")


@dataclass(frozen=True, slots=True)
class HubName:
    """`wanted`: a quantisation such as `Q4_K_M`, or the name of a file; "" if none is named."""

    repo_id: str
    wanted: str = ""

    def of_file(self, wanted: str) -> str:
        """As it is written for one of its files."""
        return f"{self.repo_id}:{wanted}"


def hub_name(name: str) -> HubName | None:
    """What a name means on the hub; None if it can mean nothing there."""
    found = _NAME.fullmatch(name.strip())
    return None if found is None else HubName(found[1], (found[2] or "").strip())
