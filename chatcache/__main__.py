"""`python -m chatcache` and the console script: one way in."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command of the command line; returns its exit code."""
    from chatcache import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
