"""The type hints say what the module is, and a user's program passes with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SAMPLE = Path(__file__).with_name("typed_sample.py")

# Packages that are imported for type hints alone, under the names they are given; none of them has to be installed.
OPTIONAL = "datafusion|ml_dtypes|pa|pandas|pd|pl|polars|pyarrow|torch|tqdm"


def run(directory: Path, *arguments: str) -> None:
    """Runs a tool elsewhere than in the sources, so that it sees the package as it is installed."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}"


def test_the_stubs_agree_with_the_module(tmp_path: Path) -> None:
    config, allowlist = tmp_path / "mypy.ini", tmp_path / "allowlist"
    config.write_text("[mypy]\nignore_missing_imports = True\n")
    # The fields of a configuration are keywords in signatures, where the code has ``**fields``.
    takes_fields = r"arrow_quant_v2(\..*)?\.(quantize_model|quantize_diffusion_model|quantize_query|plan)"
    allowlist.write_text(rf"arrow_quant_v2(\.[a-z_]+)?\.({OPTIONAL})" + f"\n{takes_fields}\n.*__signature__\n")
    options = ["--concise", "--mypy-config-file", str(config), "--allowlist", str(allowlist)]
    # Of how memory is laid out, type checkers have no need.
    options += ["--ignore-unused-allowlist", "--ignore-disjoint-bases"]
    run(tmp_path, "mypy.stubtest", "arrow_quant_v2", *options)


def test_a_program_passes_the_strict_checks_of_mypy(tmp_path: Path) -> None:
    run(tmp_path, "mypy", "--strict", "--no-incremental", str(SAMPLE))
