"""``medfocus submit``: runs a command on a cluster, as a job."""

import argparse
import io
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from json import dumps
from typing import Any
from urllib.parse import urlsplit

from medfocus.cluster.jobs import JobServer
from medfocus.pipeline.commands.jobs import check_id, follow, mend
from medfocus.pipeline.commands.parser import build_parser
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import event, log, show
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.yaml_text import with_quotes

# Commands that run here, and no job.
_OF_THIS_MACHINE = ("submit", "jobs")
# Variables of this machine that say where things are. What proves who somebody is stays here.
_SENT = (
    "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GOOGLE_CLOUD_PROJECT",
    "HF_ENDPOINT",
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def run(
    config: Config,
    line: list[str],
    address: str | None,
    id: str | None,
    detach: bool,
    json: bool,
    verbose: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Submit a command and follow it until it ends.

    Args:
        config: what is set in it is handed on to the command.
        line: the command line, with or without ``medfocus`` at its beginning.
        address: URL of the job server; None takes what the environment names, else a tunnel on this machine.
        id: name of the job; None makes one of the command and the time.
        detach: whether to leave the job to itself.
        json: handed on to the command, whose result is then returned.
        verbose: handed on to the command.
        quiet: handed on to the command.

    Returns:
        With ``detach`` the ``job`` and the ``address``; else, where it is JSON, the result of the command.

    Raises:
        UsageError: the call or the command line is wrong; nothing was sent.
        ClusterError: the job server does not answer or refuses the job.
        MedFocusError: the command has failed, with its exit code; or the job is left to itself.
    """
    arguments = job_arguments(config, line, json=json, verbose=verbose, quiet=quiet)
    variables = job_variables(os.environ)
    id = id or f"{arguments[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    check_id(id)
    server = JobServer(address)
    try:
        server.submit(id, arguments, variables)
    except KeyboardInterrupt as interrupt:
        raise MedFocusError(f"job {id} may have been submitted; medfocus jobs {id} tells") from interrupt
    log.info("job %s is submitted to %s; %s", id, server.url, mend(id))
    if not detach:
        return follow(server, id, as_json=json)
    if not json:
        show(id)
    return {"job": id, "address": server.url}


def job_arguments(config: Config, line: Sequence[str], **options: bool) -> list[str]:
    """The command line of a job: the user's, with the configuration in place of its file, which the nodes have not.

    Args:
        config: what is set in it counts less than what the command line sets.
        line: the command line of the user.
        options: ``json``, ``verbose`` and ``quiet``; those that are true become options of the command.

    Raises:
        UsageError: the parser or the configuration refuses the command line, or it does not fit a job.
    """
    name, *rest = line[1:] if line[0] == "medfocus" and len(line) > 1 else line
    if name in _OF_THIS_MACHINE:
        raise UsageError(f"{name} cannot be submitted; it runs on this machine: medfocus {name}")
    call = _parse([name, *rest])
    settings = list(_settings(config))
    if call.config is not None:
        settings += _settings(load_config(call.config))
        reader = argparse.ArgumentParser(add_help=False)
        reader.add_argument("--config")
        rest = reader.parse_known_args(rest)[1]
    flags = [f"--{option}" for option, is_on in options.items() if is_on and not getattr(call, option)]
    arguments = [name, *flags, *(part for setting in settings for part in ("--set", setting)), *rest]
    _check(_parse(arguments), arguments)
    return arguments


def job_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job gets of an environment: those that say where things are, without credentials.

    The dashboard shows them. An address of this machine means nothing on a node and is left out.
    """
    variables = {}
    for name in _SENT:
        if not (value := environment.get(name)):
            continue
        host = urlsplit(value).hostname if "://" in value else None
        if value.startswith(("/", ".", "~")) or ("://" in value and (host is None or host in _LOOPBACK)):
            event(f"{name} names this machine, and is not sent: the nodes take their own")
            continue
        variables[name] = without_credentials(value)
        if variables[name] != value:
            event(f"{name} is sent without its credentials: the nodes must have them")
    if "MLFLOW_TRACKING_URI" not in variables:
        event("no tracking server is named: runs go to MLFLOW_TRACKING_URI of the nodes, else to the disk of the head")
    return variables


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line as on this machine.

    Raises:
        UsageError: the parser refuses it, or it asks for help only.
    """
    printed = io.StringIO()
    try:
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            return build_parser().parse_args(arguments)
    except SystemExit as end:
        if not end.code:
            raise UsageError(f"nothing to submit; run medfocus {' '.join(arguments)} on this machine") from end
        *_, reason = printed.getvalue().strip().splitlines()
        raise UsageError(f"{reason}; correct the command behind --") from end


def _check(call: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Raise UsageError if a command cannot run on another machine as it was written for this one."""
    if load_config(None, call.set).cluster.address is not None:
        raise UsageError("cluster.address: a job runs on the cluster that it is submitted to; leave it out")
    for place in _places(call):
        if "://" not in place and not place.startswith("/"):
            raise UsageError(
                f"{place}: a job has no folder of yours, so that a relative path leads nowhere; give a URI such as s3://,"
                " or an absolute path that the nodes have"
            )
    for argument in arguments:
        if (shown := without_credentials(argument)) != argument:
            raise UsageError(f"{shown}: holds credentials, which the dashboard would show; give them to the nodes")


def _places(call: argparse.Namespace) -> Iterator[str]:
    """The paths and URIs of a call; an option that is given several times has several."""
    for argument in call.command.arguments:
        value = getattr(call, argument.name)
        if argument.complete is not None and value:
            yield from value if isinstance(value, list) else [value]


def _settings(config: Config) -> Iterator[str]:
    """What is set in a configuration, as texts ``section.key=value``."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            elif f"{prefix}{key}" == "cluster.address":
                event("cluster.address is left out: a job runs on the cluster that it is submitted to")
            else:
                yield f"{prefix}{key}={with_quotes(value) if isinstance(value, str) else dumps(value)}"

    yield from walk(config.model_dump(exclude_unset=True), "")
