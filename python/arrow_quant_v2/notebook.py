"""How notebooks show results: dicts and rows as tables of HTML. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

# The most rows that are shown.
_ROWS = 20

# The most characters that are shown of a value.
_CHARACTERS = 120

# What is shown of tensors, as far as they have it: what was lost first.
_COLUMNS = (
    "component",
    "tensor",
    "sqnr_db",
    "cosine_similarity",
    "max_abs_error",
    "bits",
    "group_size",
    "dtype",
    "shape",
    "elements",
    "bytes",
    "because",
)


class ShownDict(dict[str, Any]):
    """A dict that a notebook shows as its figures and, if it has some, its tensors.

    Example:
        >>> ShownDict(size=3, name="<b>")._repr_html_().count("&lt;b&gt;")
        1
    """

    def _repr_html_(self) -> str:
        facts = {name: value for name, value in self.items() if not _is_long(value)}
        tables = [facts_html(facts)]
        for name, value in self.items():
            if name == "per_layer_accuracy":
                rows = [{"tensor": tensor, "cosine_similarity": cosine} for tensor, cosine in value.items()]
                tables.append(rows_html(sorted(rows, key=lambda row: float(row["cosine_similarity"]))))
            elif name == "tensors":
                tables.append(rows_html(sorted(value, key=_worst_first)))
        return "".join(tables)


def facts_html(facts: Mapping[str, Any]) -> str:
    """Names and values, one a row."""
    rows = (f"<tr><th style='text-align: left'>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items())
    return f"<table class='dataframe'><tbody>{''.join(rows)}</tbody></table>"


def rows_html(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = _COLUMNS) -> str:
    """The first rows as a table, of those columns that they have."""
    every = list(rows)
    shown = every[:_ROWS]
    names = [name for name in columns if any(row.get(name) not in (None, "") for row in shown)]
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in names)}</tr>" for row in shown)
    count = f"{len(shown)} of {len(every)} tensors" if len(every) > len(shown) else f"{len(every)} tensors"
    return f"<table border='1' class='dataframe'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{count}</p>"


def _worst_first(tensor: Mapping[str, Any]) -> tuple[bool, float]:
    sqnr = tensor.get("sqnr_db")
    return (sqnr is None, 0.0 if sqnr is None else float(sqnr))


def _is_long(value: object) -> bool:
    """Whether a value is shown as a table of its own, or not at all."""
    return isinstance(value, (list, dict)) or hasattr(value, "__arrow_c_stream__")


def _cell(value: object) -> str:
    side = " style='text-align: right'" if isinstance(value, (int, float)) else ""
    return f"<td{side}>{_text(value)}</td>"


def _text(value: object) -> str:
    """A value as HTML."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "exact" if value == math.inf else f"{value:.6g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return escape(text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…")
