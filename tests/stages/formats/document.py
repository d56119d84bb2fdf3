"""The table of docs/formats.md, made from what the decode stage does with ``file_cases``.

``python -m tests.stages.formats.document --write`` puts it into the document.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from tests.stages.formats.cases import VALUE, WINDOW
from tests.stages.formats.file_cases import cases

DOCUMENT = Path(__file__).parents[3] / "docs" / "formats.md"
BEGIN, END = "<!-- table: python -m tests.stages.formats.document --write -->", "<!-- end of table -->"


def table() -> str:
    """Cases of equal container, colour space and outcome are one row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for case in cases():
        kinds = rows.setdefault((case.container, case.colour, _text(case.outcome())), [])
        if case.samples not in kinds:
            kinds.append(case.samples)
    lines = ["| container | colour space | samples | what happens |", "|---|---|---|---|"]
    lines += [
        f"| {container} | {colour} | {_joined(kinds)} | {what} |" for (container, colour, what), kinds in rows.items()
    ]
    return "\n".join(lines)


def _text(outcome: str) -> str:
    """An outcome for the table; the message only where it is not about the one file."""
    if outcome in (VALUE, WINDOW):
        return {VALUE: "shown by value", WINDOW: "windowed"}[outcome]
    error, _, message = outcome.partition(": ")
    return f"refused: {error}" + (f" ({message.partition(';')[0]})" if error == "Unsupported" else "")


def _joined(kinds: list[str]) -> str:
    """``1 bit``, ``8 bit`` and ``float32`` as ``1, 8 bit, float32``."""
    groups: dict[str, list[str]] = {}
    for kind in kinds:
        sign = "signed " if kind.startswith("signed ") else ""
        unit = " bit" if kind.endswith(" bit") else ""
        groups.setdefault((sign + "#" + unit) if unit else kind, []).append(kind.removeprefix(sign).removesuffix(unit))
    return ", ".join(key.replace("#", ", ".join(numbers)) for key, numbers in groups.items())


def document(change: Callable[[str], str] | None = None) -> str:
    """The text between the marks of docs/formats.md, or, with a change, the document with another text there."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN + change(inside) + END + after if change else inside.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the table of docs/formats.md, from what the decode stage does")
    parser.add_argument("--write", action="store_true", help="put it into the document")
    if parser.parse_args().write:
        DOCUMENT.write_text(document(lambda _: f"\n{table()}\n"), encoding="utf-8")
    else:
        print(table())
