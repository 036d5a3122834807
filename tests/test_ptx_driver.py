"""The stub CUDA driver: what cuda.bindings, cuda.core and numba-cuda find of it, and what it lets tests see."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from .ptx.memory import LaunchError

pytestmark = pytest.mark.stub_driver

PTX = """
.version 9.0
.target sm_75
.address_size 64
.visible .entry add(.param .u64 a, .param .u64 b, .param .u32 n)
{
    .reg .pred %p<2>;  .reg .b32 %r<8>;  .reg .b64 %rd<8>;  .reg .f32 %f<4>;
    ld.param.u64 %rd1, [a];  ld.param.u64 %rd2, [b];  ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;  mov.u32 %r3, %ntid.x;  mov.u32 %r4, %tid.x;  mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    mul.wide.u32 %rd3, %r5, 4;  add.s64 %rd4, %rd1, %rd3;  add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];  ld.global.f32 %f2, [%rd5];
    add.rn.f32 %f3, %f1, %f2;
    st.global.f32 [%rd4], %f3;
$done:
    ret;
}
"""


@pytest.fixture
def cu(gpu):
    """cuda.bindings' driver with a current context."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    value(driver.cuInit(0))
    value(driver.cuCtxSetCurrent(value(driver.cuDevicePrimaryCtxRetain(0))))
    return driver


def value(result):
    """Return the result of a call that must succeed."""
    error, *values = result
    assert error == 0, error
    return values[0] if values else None


class Adder:
    """The kernel, its arguments packed once, as a bound optimizer would."""

    def __init__(self, gpu, cu, n=50):
        self.cu, self.stream = cu, value(cu.cuStreamCreate(1))
        module = value(cu.cuModuleLoadData(PTX.encode() + b"\0"))
        self.function = value(cu.cuModuleGetFunction(module, b"add"))
        self.a, self.b = np.arange(n, dtype="f4"), np.full(n, 0.5, "f4")
        gpu.register(self.a, "a")
        gpu.register(self.b, "b", writable=False)
        self.gpu, self.packed = gpu, np.array([self.a.ctypes.data, self.b.ctypes.data, n], "u8")
        self.pointers = self.packed.ctypes.data + 8 * np.arange(3, dtype="u8")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.gpu.unregister(self.a)
        self.gpu.unregister(self.b)

    def __call__(self):
        return self.cu.cuLaunchKernel(self.function, 2, 1, 1, 32, 1, 1, 0, self.stream, self.pointers.ctypes.data, 0)[0]


def test_launches_with_packed_arguments(gpu, cu):
    with Adder(gpu, cu) as add:
        assert add() == 0
        assert add() == 0
        assert add.a.tolist() == [i + 1 for i in range(50)]
        first, second = gpu.launches
        assert (first.name, first.grid, first.block, first.stream) == ("add", 2, 32, int(add.stream))
        assert first.statistics == second.statistics == {("ld", 4): 100, ("st", 4): 50}
        gpu.execute = False
        assert add() == 0
        assert gpu.launched == 3
        assert len(gpu.launches) == 2
        assert add.a[0] == 1.0


def test_errors_of_launches(gpu, cu):
    with Adder(gpu, cu) as add:
        add.packed[2] = 51
        assert add() == cu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        with pytest.raises(LaunchError, match=r"add: load out of bounds: 4 bytes at .* offset 200 of region '[ab]'"):
            gpu.check()
        gpu.check()
        add.packed[2] = 50
        add.packed[:2] = add.packed[1::-1]
        assert add() == cu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        with pytest.raises(LaunchError, match=r"read-only memory.*'b'"):
            gpu.check()
        add.packed[:2] = add.packed[0]
        gpu.unregister(add.b)
        assert add() == cu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        with pytest.raises(LaunchError, match=r"load (out|below)"):
            gpu.check()
        gpu.register(add.b, "b")
        module = value(cu.cuModuleLoadData(PTX.encode() + b"\0"))
        assert cu.cuModuleGetFunction(module, b"ad")[0] == cu.CUresult.CUDA_ERROR_NOT_FOUND


def test_capture_and_replay(gpu, cu):
    with Adder(gpu, cu) as add:
        gpu.capturing = True
        assert value(cu.cuStreamIsCapturing(add.stream)) == 1
        assert cu.cuStreamGetCaptureInfo(add.stream)[:2] == (0, 1)
        assert add() == 0
        for refused in (
            cu.cuMemAlloc(8),
            cu.cuCtxSynchronize(),
            cu.cuStreamSynchronize(add.stream),
            cu.cuMemcpyHtoD(add.a.ctypes.data, add.b.ctypes.data, 4),
        ):
            assert refused[0] == cu.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        gpu.capturing = False
        assert value(cu.cuStreamIsCapturing(add.stream)) == 0
        assert add.a[0] == 0
        add.packed[:] = 0  # parameters are those of the capture
        for _ in range(3):
            gpu.replay()
        assert add.a.tolist() == [i + 1.5 for i in range(50)]


def test_allocations(gpu, cu):
    gpu.fail_allocations_after(1000)
    first = value(cu.cuMemAlloc(600))
    assert cu.cuMemAlloc(600)[0] == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    assert value(cu.cuMemGetInfo()) == 400
    gpu.fail_allocations_after(None)
    second = value(cu.cuMemAlloc(600))
    assert int(first) % 256 == int(second) % 256 == 0
    data, back = np.arange(75.0), np.zeros(75)
    value(cu.cuMemcpyHtoD(first, data.ctypes.data, 600))
    value(cu.cuMemcpyDtoDAsync(second, first, 600, 0))
    value(cu.cuMemcpyDtoH(back.ctypes.data, second, 600))
    np.testing.assert_array_equal(back, data)
    value(cu.cuMemsetD8(first, 0, 600))
    for pointer in (first, second):
        value(cu.cuMemFree(pointer))
    assert cu.cuMemFree(first)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
    pinned = value(cu.cuMemHostAlloc(100, 2))
    assert int(value(cu.cuMemHostGetDevicePointer(pinned, 0))) == int(pinned)
    assert value(cu.cuPointerGetAttribute(cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pinned)) == 1
    value(cu.cuMemFreeHost(pinned))


def test_what_waits_is_counted(gpu, cu):
    stream, event, host = value(cu.cuStreamCreate(1)), value(cu.cuEventCreate(0)), np.zeros(1)
    pointer = value(cu.cuMemAlloc(8))
    value(cu.cuEventRecord(event, stream))
    value(cu.cuStreamWaitEvent(stream, event, 0))
    value(cu.cuMemcpyHtoDAsync(pointer, host.ctypes.data, 8, stream))
    assert gpu.synchronizations == 0
    value(cu.cuStreamSynchronize(stream))
    value(cu.cuEventSynchronize(event))
    value(cu.cuCtxSynchronize())
    value(cu.cuMemcpyDtoH(host.ctypes.data, pointer, 8))
    value(cu.cuMemFree(pointer))
    assert gpu.synchronizations == 5


def test_whose_memory_an_address_is(gpu, cu):
    names = cu.CUpointer_attribute
    kinds = [names.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, names.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL]
    here, there, host = np.zeros(4), np.zeros(4), np.zeros(4)
    gpu.register(here, "here")
    gpu.register(there, "there", device=1)
    try:
        assert value(cu.cuPointerGetAttributes(2, kinds, here.ctypes.data + 8)) == [2, 0]
        assert value(cu.cuPointerGetAttributes(2, kinds, there.ctypes.data)) == [2, 1]
        assert value(cu.cuPointerGetAttributes(2, kinds, host.ctypes.data)) == [0, -2]
        error = cu.cuPointerGetAttribute(kinds[0], host.ctypes.data)[0]
        assert error == cu.CUresult.CUDA_ERROR_INVALID_VALUE
    finally:
        gpu.unregister(here)
        gpu.unregister(there)


def test_several_devices(gpu, cu):
    assert value(cu.cuDeviceGetCount()) == 1
    assert cu.cuDeviceGet(1)[0] == cu.CUresult.CUDA_ERROR_INVALID_DEVICE
    gpu.devices = 2
    try:
        assert value(cu.cuDeviceGetCount()) == 2
        value(cu.cuCtxPushCurrent(value(cu.cuDevicePrimaryCtxRetain(1))))
        stream, pointer = value(cu.cuStreamCreate(1)), value(cu.cuMemAlloc(8))
        ordinal = cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        assert value(cu.cuPointerGetAttribute(ordinal, pointer)) == 1
        assert int(value(cu.cuCtxGetDevice())) == 1
        value(cu.cuCtxPopCurrent())
        assert int(value(cu.cuCtxGetDevice())) == 0
        assert int(value(cu.cuStreamGetDevice(stream))) == 1
        value(cu.cuMemFree(pointer))
    finally:
        gpu.devices = 1


def test_cuda_core(gpu):
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    device = core.Device(0)
    device.set_current()
    assert device.compute_capability == (9, 0)
    kernel = core.ObjectCode.from_ptx(PTX.encode()).get_kernel("add")
    a, b = np.arange(40, dtype="f4"), np.ones(40, "f4")
    gpu.register(a, "a")
    gpu.register(b, "b")
    stream = device.create_stream()
    config = core.LaunchConfig(grid=2, block=32)
    core.launch(stream, config, kernel, a.ctypes.data, b.ctypes.data, np.uint32(40))
    stream.sync()
    assert a.tolist() == [i + 1 for i in range(40)]
    with pytest.raises(Exception, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        core.launch(stream, config, kernel, a.ctypes.data, b.ctypes.data, np.uint32(41))
    with pytest.raises(LaunchError, match="out of bounds"):
        gpu.check()
    gpu.unregister(a)
    gpu.unregister(b)


def test_numba_dispatches(gpu):
    cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
    if getattr(cuda, "implementation", None) != "NVIDIA":
        pytest.skip("numba-cuda is not installed")
    gpu.record_numba()
    assert cuda.is_available()

    @cuda.jit
    def accumulate(x, y, factor):
        i = cuda.grid(1)
        if i < x.size:
            x[i] += factor * y[i]

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(1000) for _ in range(2))
    on_device = cuda.to_device(x), cuda.to_device(y)
    accumulate[8, 128](*on_device, 0.5)
    gpu.check()
    np.testing.assert_array_equal(on_device[0].copy_to_host(), x + 0.5 * y)
    assert gpu.launches[0].grid == 8
    del on_device
    gc.collect()


def test_these_tests_have_a_process_of_their_own(gpu):
    """Its parent, which runs other tests as well, knows nothing of the stub."""
    loaded = [Path(f"/proc/{process}/maps").read_text() for process in (os.getpid(), os.getppid())]
    assert ["fastopt-stub-driver" in text for text in loaded] == [True, False]
