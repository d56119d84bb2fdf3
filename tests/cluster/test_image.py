"""The Dockerfile and the script that installs MedFocus, without Docker.

``make install``, which every change passes, runs the script as a whole.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medfocus.pipeline.commands.parser import build_parser

REPOSITORY = Path(__file__).parents[2]
SCRIPT = "cluster/install.sh"
Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    """Instructions of the Dockerfile in order, each as its name and its arguments on one line."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last_stage(instructions: list[Instruction]) -> list[Instruction]:
    """The instructions that make the image itself."""
    start = max(number for number, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def arguments(instructions: list[Instruction], name: str) -> list[str]:
    return [rest for instruction, rest in instructions if instruction == name]


def install(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the script as the Dockerfile and the Makefile do."""
    call = [str(REPOSITORY / SCRIPT), *words]
    return subprocess.run(call, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_every_file_that_is_copied_exists_and_reaches_docker(instructions: list[Instruction]) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copies = [rest.split() for rest in arguments(instructions, "COPY") if not rest.startswith("--from=")]
    sources = {source for copy in copies for source in copy[:-1]}
    assert all((REPOSITORY / source).exists() for source in sources)
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == sources


def test_the_image_has_what_the_package_is_made_of(instructions: list[Instruction]) -> None:
    copies = " ".join(arguments(instructions, "COPY")).split()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {"pyproject.toml", "constraints.txt", "medfocus", project["readme"], *project["license-files"]}
    links = {path.name for path in (REPOSITORY / "medfocus").iterdir() if path.is_symlink()}
    assert links and needed | links <= set(copies)


def test_the_image_is_built_by_the_script_without_what_developers_need(instructions: list[Instruction]) -> None:
    (call,) = (shlex.split(run) for run in arguments(instructions, "RUN") if SCRIPT in run)
    assert call == [SCRIPT, "/opt/medfocus", ".[${EXTRAS}]"]
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (default,) = (rest.partition("=")[2] for rest in arguments(instructions, "ARG") if rest.startswith("EXTRAS"))
    assert default in extras and default != "dev"
    assert not [run for run in arguments(instructions, "RUN") if "pip install" in run]


def test_the_image_belongs_to_a_plain_user(instructions: list[Instruction]) -> None:
    stage = last_stage(instructions)
    *_, user = arguments(stage, "USER")
    assert user == "1000:1000"
    assert [name for name, _ in stage].index("RUN") < [name for name, _ in stage].index("USER")


def test_the_image_says_what_it_is_and_how_it_is(instructions: list[Instruction]) -> None:
    stage = last_stage(instructions)
    (labels,) = arguments(stage, "LABEL")
    names = dict(word.split("=", 1) for word in shlex.split(labels))
    prefix = "org.opencontainers.image."
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {prefix + name for name in ("title", "description", "version", "revision", "licenses")} == set(names)
    assert names[prefix + "licenses"] == project["license"]
    assert f"VERSION={project['version']}" in arguments(stage, "ARG")
    (health,) = arguments(stage, "HEALTHCHECK")
    program, *words = re.findall(r'"([^"]+)"', health)
    assert program == "medfocus" and build_parser().parse_args(words).command.name == "doctor"


def test_no_secret_and_no_package_index_is_in_the_image(instructions: list[Instruction]) -> None:
    text = "\n".join(" ".join(instruction) for instruction in instructions)
    assert not re.search(r"(?i)secret|password|token|://", text)
    index = [rest for rest in arguments(last_stage(instructions), "ARG") if "INDEX" in rest]
    assert not index  # a build argument may hold a password, and stays in the first stage


def test_make_uses_the_script() -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "install"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert f"{SCRIPT} .venv -e '.[dev]'" in recipe and "pip install" not in recipe


def test_a_wrong_call_of_the_script_is_refused(tmp_path: Path) -> None:
    assert install().returncode == 2
    wrong = install(str(tmp_path / "venv"), TORCH="gpu")
    assert wrong.returncode == 2 and "TORCH is cpu, cuda or any, not gpu" in wrong.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    refused = install(str(tmp_path / "venv"), PYTHON=str(tmp_path / "python"))
    assert refused.returncode == 2 and refused.stderr.startswith("Python 3.11 or 3.12 is needed")


def test_another_build_of_torch_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    """The script with a stand-in for ``venv``, which gives this environment: its torch is there, and no pip runs."""
    import torch

    other = "cpu" if torch.version.cuda else "cuda"
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") echo "$@" >> {tmp_path}/pip.log ;;
*) exec {sys.executable} "$@" ;;
esac
"""
    )
    python.chmod(0o755)
    refused = install(str(tmp_path / "venv"), PYTHON=str(python), TORCH=other)
    assert refused.returncode == 1 and f"and TORCH is {other}" in refused.stderr
    assert len((tmp_path / "pip.log").read_text().splitlines()) == 1  # stopped before MedFocus was installed
    accepted = install(str(tmp_path / "venv"), ".[aws]", PYTHON=str(python))
    assert accepted.returncode == 0, accepted.stderr
    assert (tmp_path / "pip.log").read_text().endswith("--no-build-isolation .[aws]\n")
