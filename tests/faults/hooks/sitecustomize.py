"""Faults inside of worker processes, where the environment asks for them; on ``PYTHONPATH`` of a run under test.

``FAULT_KILL_ON``: decoding an image that contains these bytes, in hexadecimal, kills the process. ``FAULT_COUNT``: file
to which each pass of SAM2 adds the number of its images, a line each.
"""

import importlib.machinery
import os
import signal
import sys

if "FAULT_KILL_ON" in os.environ:
    from PIL import Image

    _open = Image.open

    def _killing(file, *arguments, **options):
        if bytes.fromhex(os.environ["FAULT_KILL_ON"]) in file.getvalue():
            os.kill(os.getpid(), signal.SIGKILL)
        return _open(file, *arguments, **options)

    Image.open = _killing


class _Counting:
    """Wraps ``stages.segment.Segment.find`` when that module is imported."""

    def find_spec(self, name, path, target=None):
        if name != "medfocus.stages.segment":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            find = module.Segment.find

            def counted(self, pixels):
                with open(os.environ["FAULT_COUNT"], "a") as file:  # noqa: PTH123  appended in one write
                    file.write(f"{len(pixels)}\n")
                return find(self, pixels)

            module.Segment.find = counted

        spec.loader.exec_module = patched
        return spec


if "FAULT_COUNT" in os.environ:
    sys.meta_path.insert(0, _Counting())
