"""The Python of a README, so that what runs is what is printed.

    python3 readme.py README

prints the sample: the first of its Python blocks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(readme: Path) -> list[str]:
    """The Python blocks of a README, in order."""
    found = BLOCK.findall(readme.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{readme} has no Python")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(blocks(Path(sys.argv[1]))[0], end="")
