"""Errors of an accelerator: they are of the device and the process that holds it, not of the data in hand."""

import re

# torch raises AcceleratorError for these, or a RuntimeError with the driver's or a library's own words.
_CLASS = "AcceleratorError"
_WORDS = re.compile(
    r"\b(CUDA|HIP|ROCm|XPU|MPS|cuDNN|cuBLAS|cuSOLVER|cuFFT|NVRTC|NCCL|MIOpen)\b[^.\n]{0,20}\berror\b"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|HIPBLAS|MIOPEN)_STATUS_\w+"
    r"|device-side assert|no kernel image|illegal memory access|unspecified launch failure|misaligned address"
    r"|ECC error|no CUDA-capable device|NVIDIA driver|CUDA driver|fallen off the bus",
    re.IGNORECASE,
)
# These say that memory is short, which another process may give back. The process can go on.
_MEMORY = re.compile(r"out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED", re.IGNORECASE)


def is_device_error(error: BaseException) -> bool:
    """Whether the accelerator failed: every later call of the process would fail too, whatever its data."""
    named = any(kind.__name__ == _CLASS for kind in type(error).__mro__)
    spoken = isinstance(error, RuntimeError) and names_device_error(str(error))
    return (named or spoken) and not is_memory_error(error)


def names_device_error(text: str) -> bool:
    """Whether a text that came from another process tells of such an error."""
    return _CLASS in text or _WORDS.search(text) is not None


def is_memory_error(error: BaseException) -> bool:
    """Whether memory was short, of the machine or of the accelerator.

    torch's own classes are known by their names: processes that only read do without its seconds of import.
    """
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return (
        isinstance(error, MemoryError)
        or named
        or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))
    )
