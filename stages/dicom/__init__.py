"""From the bytes of a DICOM file to its frames as a viewer shows them.

Messages of pydicom, GDCM and their plug-ins may quote values of a file. A process that imports this package switches
them off. Attributes are not validated while they are read.
"""

import logging
import warnings

import gdcm  # type: ignore[import-untyped]
from pydicom import config as _config

from medfocus.stages.dicom.header import is_dicom, read_header
from medfocus.stages.dicom.kinds import not_an_image
from medfocus.stages.dicom.show import read_frames
from medfocus.stages.formats.frames import Display, Frame, FrameChoice

__all__ = ["Display", "Frame", "FrameChoice", "is_dicom", "not_an_image", "read_frames", "read_header"]

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module="pydicom")
_config.settings.reading_validation_mode = _config.IGNORE
for _turn_off in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
    _turn_off()
