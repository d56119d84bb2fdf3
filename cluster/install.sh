#!/bin/sh
# Makes a virtual environment with MedFocus in it, for `make install`, the Dockerfile and a node without an image.
#   cluster/install.sh FOLDER [pip's words for what to install]
#   cluster/install.sh .venv -e '.[dev]'      a checkout to work on
#   cluster/install.sh /opt/medfocus '.[aws]' a node
# PYTHON is the interpreter to make it with. TORCH is cpu or cuda where only that build of torch will do; which of the
# two pip takes depends on its package indexes, so that this is checked when it is installed.
set -eu
[ $# -ge 1 ] || { echo "usage: cluster/install.sh FOLDER [pip's words for what to install]" >&2; exit 2; }
folder=$1
shift
[ $# -ge 1 ] || set -- .
python=${PYTHON:-python3}
torch=${TORCH:-any}
case $torch in any | cpu | cuda) ;; *) echo "TORCH is cpu, cuda or any, not $torch" >&2; exit 2 ;; esac
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "Python 3.11 or 3.12 is needed; set PYTHON to one, for instance PYTHON=python3.11" >&2
    exit 2
}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
cd "$(dirname "$0")/.."

# What the build of sam2 needs is installed first and used as it is: an isolated build would fetch another torch.
export SAM2_BUILD_CUDA=0
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install -q -c constraints.txt setuptools wheel numpy torch
"$folder/bin/python" - "$torch" <<'CHECK'
import sys

import torch

build = "cuda" if torch.version.cuda else "cpu"
if sys.argv[1] not in ("any", build):
    sys.exit(
        f"torch {torch.__version__} is a {build} build, and TORCH is {sys.argv[1]}; name an index that has the "
        f"{sys.argv[1]} build in PIP_EXTRA_INDEX_URL (pytorch.org lists them), or set TORCH to {build}"
    )
CHECK
"$folder/bin/python" -m pip install -q -c constraints.txt --no-build-isolation "$@"
