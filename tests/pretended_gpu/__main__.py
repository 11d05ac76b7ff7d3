"""Runs Python with the pretended device; see the package."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent


def built() -> Path:
    """The compiled device, made at first use."""
    source = HERE / "device.cpp"
    key = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"chatcache-pretended-gpu-{os.getuid()}" / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        includes = [TORCH / "include", TORCH / "include/torch/csrc/api/include"]
        command = ["c++", "-std=c++20", "-O1", "-fPIC", "-shared", str(source), "-o", str(part)]
        command += [word for folder in includes for word in ("-isystem", str(folder))]
        command += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
        subprocess.run(command, check=True)
        part.replace(library)
    return library


def main() -> int:
    paths = [str(HERE / "path"), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CHATCACHE_PRETENDED_GPU": str(built()),
    }
    return subprocess.run([sys.executable, *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
