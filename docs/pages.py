"""A hook of mkdocs: pages that are made from the code and from files outside of ``docs/`` when the pages are built.

``configuration.md`` comes from the configuration tree and ``commands.md`` from the help of each command, so that
neither has a second copy. The pages in ``_COPIES`` are Markdown files of the repository.
"""

import os
import posixpath
import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from medfocus.pipeline.commands.parser import COMMANDS, build_parser
from medfocus.pipeline.config import documented_keys

REPOSITORY = Path(__file__).parents[1]
# Pages by the Markdown file of the repository that they show.
_COPIES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "starter/README.md": "starter.md",
}
_LINK = re.compile(r"(?<!\!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
_PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<target>[^):\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made when the pages are built."""
    contents = {page: (REPOSITORY / source).read_text(encoding="utf-8") for source, page in _COPIES.items()}
    contents |= {"configuration.md": configuration(), "commands.md": commands()}
    for name, content in contents.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page, which lead through the repository, to pages; others become plain text."""
    source = {page_name: name for name, page_name in _COPIES.items()}.get(page.file.src_uri)
    folder = posixpath.dirname(source) if source else "docs"

    def link(found: re.Match[str]) -> str:
        target = _page_of(folder, found["target"])
        return f"[{found['text']}]({target}{found['anchor'] or ''})" if target else found["text"]

    def picture(found: re.Match[str]) -> str:
        return f"![{found['text']}]({_page_of(folder, found['target'])})"

    return _PICTURE.sub(picture, _LINK.sub(link, markdown))


def _page_of(folder: str, target: str) -> str | None:
    """The page or picture that a link in a file of a folder leads to; None for a file that is no page."""
    path = posixpath.normpath(posixpath.join(folder, target))
    return _COPIES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def configuration() -> str:
    """The table of all configuration keys."""
    lines = [
        "# Configuration",
        "",
        "Every command takes `--config FILE` (YAML with these sections) and `--set section.key=value`, which may be"
        " repeated. A value of `--set` goes before the file, the file before the preset (`--preset NAME`), and the"
        " preset before the default. In Python, "
        "`medfocus.Config` and `medfocus.load_config` make the same tree. `medfocus COMMAND --help` lists the keys"
        " that a command reads.",
    ]
    section = None
    for key, default, description in documented_keys():
        head = key.rpartition(".")[0] or "general"
        if head != section:
            section = head
            lines += ["", f"## {head}", "", "| key | default | meaning |", "|---|---|---|"]
        lines.append(f"| `{key}` | {_cell(default)} | {description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _cell(default: object) -> str:
    if default is None:
        return "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def commands() -> str:
    """The help of every command, as a terminal of 100 columns shows it."""
    parts = [f"# Commands\n\nWhat `medfocus --help` and `medfocus COMMAND --help` print.\n\n```text\n{_help()}\n```"]
    parts += [f"## medfocus {command.name}\n\n```text\n{_help(command.name)}\n```" for command in COMMANDS]
    return "\n\n".join(parts) + "\n"


def _help(*command: str) -> str:
    text = StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), redirect_stdout(text), suppress(SystemExit):
        build_parser().parse_args([*command, "--help"])
    return text.getvalue().strip()
