"""YAML whose values stay the text that is written, so that ``2024`` and ``no`` can be names."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from medfocus.pipeline.errors import UsageError


class NullText(str):
    """A text without quotes that YAML reads as no value: ``null``, ``~``, or empty."""


class _TextLoader(yaml.SafeLoader):
    """Resolves no plain value but null to another type than text."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TextLoader.add_constructor("tag:yaml.org,2002:null", lambda _, node: NullText(node.value))


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a configuration file holds.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}; give the path of a YAML file") from error
    return parse_mapping(content, f"--config {path}", "sections with keys")


def parse_mapping(content: bytes, name: str, expected: str) -> dict[str, Any]:
    """The mapping in a text of YAML. It is UTF-8, or UTF-16 with a byte order mark, whatever the locale.

    Args:
        content: the text.
        name: the option and the file, for messages.
        expected: what the mapping holds, for messages.

    Raises:
        UsageError: the text holds something else.
    """
    try:
        tree = yaml.load(content, _TextLoader)
    except ReaderError as error:
        raise UsageError(f"{name}: not a text in UTF-8; save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        where = f" in line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise UsageError(
            f"{name}: not YAML{where} ({getattr(error, 'problem', None) or str(error).splitlines()[0]});"
            " correct the file, and put a text that holds ': ' or ' #' in quotes"
        ) from error
    if tree is None or isinstance(tree, NullText):
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{name}: expected {expected}, found {type(tree).__name__}")
    return tree


def without_quotes(text: str) -> str:
    """A value of a command line without the quotes that YAML knows."""
    if text in ("", "~", "null", "Null", "NULL"):
        return NullText(text)
    if text[0] in ("'", '"'):
        with suppress(yaml.YAMLError):
            if isinstance(quoted := yaml.load(text, _TextLoader), str):
                return quoted
    return text


def with_quotes(text: str) -> str:
    """A text as a value of a command line: in quotes of YAML where it would be read as another one without."""
    read = without_quotes(text.strip())
    if read == text and not isinstance(read, NullText):
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")
