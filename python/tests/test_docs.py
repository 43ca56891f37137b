"""What the documentation shows works: the code of the reference, and the examples of docstrings.

They run where ``dream-7b`` is the example model.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import importlib.util
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from readme import BLOCK

import arrow_quant_v2

# Documents whose code runs, and a name that it has given to something in the end.
DOCUMENTS = {"python.md": "result", "calibration.md": "rows"}

# Packages that an example may need and this environment may lack.
OPTIONAL = ("datafusion", "duckdb", "ml_dtypes", "pandas", "polars", "pyarrow", "torch", "tqdm")

# Their examples are of models that are too large for tests, or await something outside of a function.
OF_LARGE_MODELS = {"aio", "loading", "quantizer", "results"}


@pytest.fixture
def directory(tmp_path: Path, digits_dit: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory but for ``dream-7b``."""
    (tmp_path / "dream-7b").symlink_to(digits_dit, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def uses(code: str, package: str) -> bool:
    """Whether a package is named in some code, be it as in `to_polars`."""
    return re.search(rf"(?<![a-z]){package}(?![a-z])", code) is not None


def missing(code: str) -> list[str]:
    """The optional packages that some code uses and that are not installed."""
    return [name for name in OPTIONAL if uses(code, name) and importlib.util.find_spec(name) is None]


def blocks(document: Path) -> Iterator[tuple[int, str]]:
    """The blocks of Python of a document, with the number of the line before each."""
    text = document.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        yield text.count("\n", 0, block.start(1)), block[1]


def cell(code: str, name: str) -> CodeType:
    """The code of a notebook's cell, in which `await` may stand."""
    return compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize(("name", "made"), DOCUMENTS.items())
def test_the_code_of_a_document(name: str, made: str, directory: Path, subtests: pytest.Subtests) -> None:
    document = REPOSITORY / "docs" / name
    # As in a notebook, a block uses what those before it made.
    names: dict[str, Any] = {"__name__": "__main__"}
    logger = logging.getLogger("arrow_quant_v2")
    level = logger.level
    try:
        for line, code in blocks(document):
            with subtests.test(f"line {line}"):
                if lacking := missing(code):
                    pytest.skip(f"not installed: {', '.join(lacking)}")
                # Errors tell the line of the document.
                awaitable = eval(cell("\n" * line + code, str(document)), names)
                if inspect.iscoroutine(awaitable):
                    asyncio.run(awaitable)
    finally:
        # The document says how to have no warnings; other tests look for them.
        logger.setLevel(level)
    assert names[made]


# ---------------------------------------------------------------- docstrings


def modules() -> Iterator[tuple[str, Any]]:
    """The modules of the package that are written in Python."""
    for module in pkgutil.iter_modules(arrow_quant_v2.__path__):
        if module.name != "_native":
            yield module.name, importlib.import_module(f"arrow_quant_v2.{module.name}")


def examples() -> list[tuple[str, doctest.DocTest]]:
    """The module and examples of every docstring that has some."""
    finder = doctest.DocTestFinder()
    found = [(name, test) for name, module in modules() for test in finder.find(module, extraglobs={"np": np})]
    for name in arrow_quant_v2._native.__all__:
        native = getattr(arrow_quant_v2._native, name)
        if inspect.isclass(native) or inspect.isroutine(native):
            names = {"np": np, "arrow_quant_v2": arrow_quant_v2} | vars(arrow_quant_v2)
            found += [("_native", test) for test in finder.find(native, f"_native.{name}", module=False, globs=names)]
    return [(name, test) for name, test in found if test.examples]


EXAMPLES = examples()


@pytest.mark.parametrize("module, example", EXAMPLES, ids=[example.name for _, example in EXAMPLES])
def test_the_examples_of_docstrings(module: str, example: doctest.DocTest, directory: Path) -> None:
    code = "".join(part.source for part in example.examples)
    if lacking := missing(code):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    cell(code, example.name)
    if module in OF_LARGE_MODELS:
        return
    for name in OPTIONAL:
        if uses(code, name):
            example.globs.setdefault(name, importlib.import_module(name))
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed, _ = runner.run(example, out=told.append)
    assert not failed, "".join(told)


def public() -> Iterator[tuple[str, Any]]:
    """What the package offers, with the methods of its classes."""
    for name in arrow_quant_v2.__all__:
        offered = getattr(arrow_quant_v2, name)
        if not (inspect.isclass(offered) or inspect.isroutine(offered)):
            continue
        yield name, offered
        if inspect.isclass(offered) and not issubclass(offered, Exception):
            for member, value in vars(offered).items():
                is_attribute = inspect.isdatadescriptor(value) and not inspect.ismemberdescriptor(value)
                if not member.startswith("_") and (callable(value) or is_attribute):
                    yield f"{name}.{member}", value


@pytest.mark.parametrize("name, offered", [pytest.param(*pair, id=pair[0]) for pair in public()])
def test_everything_public_has_a_docstring(name: str, offered: Any) -> None:
    text = inspect.getdoc(offered)
    assert text, f"{name} has no docstring"
    # Methods and attributes may be in the example of their class.
    if "." not in name and not (inspect.isclass(offered) and issubclass(offered, Exception)):
        assert "Example:" in text and ">>>" in text, f"{name} has no example"
