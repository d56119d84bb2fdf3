import pytest
import torch

from medfocus.cluster.devices import is_device_error, is_memory_error, names_device_error

BROKEN = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA driver error: invalid device context"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
    RuntimeError("Found no NVIDIA driver on your system."),
    RuntimeError("No CUDA GPUs are available: no CUDA-capable device is detected"),
]
SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
OTHER = [
    RuntimeError("shape '[3, 4]' is invalid for input of size 5"),
    RuntimeError("stack expects each tensor to be equal size"),
    ValueError("CUDA error: said by something else"),
    OSError(5, "Input/output error"),
]


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_an_error_of_the_device_is_known(error: Exception) -> None:
    assert is_device_error(error) and not is_memory_error(error)
    assert names_device_error(f"ray::ModelActor() {type(error).__name__}: {error}")


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_short_memory_is_transient(error: Exception) -> None:
    assert is_memory_error(error) and not is_device_error(error)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_an_error_of_the_data_is_neither(error: Exception) -> None:
    assert not is_device_error(error) and not is_memory_error(error)


def test_what_torch_raises_of_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        torch.zeros(1).to("cuda")
    assert not is_memory_error(caught.value)
