"""Tells errors of an accelerator, which lie with the device and its process, from errors of the data."""

import re

# torch raises AcceleratorError for these, or a RuntimeError with the words of the driver or of a library.
_DEVICE_ERROR_CLASS = "AcceleratorError"
_DEVICE_ERROR_WORDS = re.compile(
    r"\b(CUDA|HIP|ROCm|XPU|MPS|cuDNN|cuBLAS|cuSOLVER|cuFFT|NVRTC|NCCL|MIOpen)\b[^.\n]{0,20}\berror\b"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|HIPBLAS|MIOPEN)_STATUS_\w+"
    r"|device-side assert|no kernel image|illegal memory access|unspecified launch failure|misaligned address"
    r"|ECC error|no CUDA-capable device|NVIDIA driver|CUDA driver|fallen off the bus",
    re.IGNORECASE,
)
# These mean that memory is short, which is transient: the process can go on, and memory may be freed.
_MEMORY_ERROR_WORDS = re.compile(r"out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED", re.IGNORECASE)


def is_device_error(error: BaseException) -> bool:
    """Whether the accelerator failed: every later call of the process would fail too, with any data."""
    has_class = any(kind.__name__ == _DEVICE_ERROR_CLASS for kind in type(error).__mro__)
    has_words = isinstance(error, RuntimeError) and names_device_error(str(error))
    return (has_class or has_words) and not is_memory_error(error)


def names_device_error(text: str) -> bool:
    """Whether a text that came from another process names an error of an accelerator."""
    return _DEVICE_ERROR_CLASS in text or _DEVICE_ERROR_WORDS.search(text) is not None


def is_memory_error(error: BaseException) -> bool:
    """Whether memory of the machine or of the accelerator was short.

    torch's classes are known by their names: importing torch takes seconds, and processes that only read do without.
    """
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and _MEMORY_ERROR_WORDS.search(str(error)) is not None
