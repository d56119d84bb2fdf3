"""Injects faults into worker processes, as environment variables ask; a test puts its folder on ``PYTHONPATH``.

``FAULT_KILL_ON``: bytes in hexadecimal; decoding a PNG that contains them kills the process.
``FAULT_COUNT``: a file; each pass of SAM2 appends a line with the number of its images.
``FAULT_PAUSE``: a file; while it exists, SAM2 waits before each pass.
``FAULT_DEVICE``: SAM2's device fails, and stays broken for the process. ``always``: at the first image. ``white``: at a
white image. ``once:FILE``: at the first image of all processes, which creates the file.
"""

import importlib.machinery
import os
import signal
import sys
import time

if "FAULT_KILL_ON" in os.environ:
    from PIL import PngImagePlugin

    _open = PngImagePlugin.PngImageFile._open

    def _killing(self):
        if bytes.fromhex(os.environ["FAULT_KILL_ON"]) in self.fp.getvalue():
            os.kill(os.getpid(), signal.SIGKILL)
        return _open(self)

    PngImagePlugin.PngImageFile._open = _killing


class _Device:
    """The device of this process; once broken, it fails at every use."""

    broken = False

    def use(self, pixels):
        import torch

        self.broken = self.broken or self._fails(os.environ["FAULT_DEVICE"], pixels)
        if self.broken:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")

    def _fails(self, fault, pixels):
        if fault == "white":
            return bool((pixels.reshape(len(pixels), -1).min(1) > 250).any())
        if fault == "always":
            return True
        try:
            os.close(os.open(fault.removeprefix("once:"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class _Patching:
    """Wraps ``stages.segment.Segment.find`` when that module is imported."""

    def find_spec(self, name, path, target=None):
        if name != "medfocus.stages.segment":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        device = _Device()

        def patched(module):
            execute(module)
            find = module.Segment.find

            def counted(self, pixels):
                if "FAULT_COUNT" in os.environ:
                    with open(os.environ["FAULT_COUNT"], "a") as file:  # noqa: PTH123  appended in one write
                        file.write(f"{len(pixels)}\n")
                while os.path.exists(os.environ.get("FAULT_PAUSE", "")):  # noqa: PTH110  no import that workers do not need
                    time.sleep(0.1)
                if "FAULT_DEVICE" in os.environ:
                    device.use(pixels)
                return find(self, pixels)

            module.Segment.find = counted

        spec.loader.exec_module = patched
        return spec


if os.environ.keys() & {"FAULT_COUNT", "FAULT_DEVICE", "FAULT_PAUSE"}:
    sys.meta_path.insert(0, _Patching())
