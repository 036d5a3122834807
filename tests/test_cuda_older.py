"""What CUDA's kernels do otherwise on devices that lack some instructions, by a stub of such a device."""

import pytest

from .test_cuda import STORED, assert_storage_has_the_cpus_bits

pytestmark = [pytest.mark.stub_driver(compute_capability=(7, 5)), pytest.mark.usefixtures("gpu")]


@pytest.mark.parametrize("size", [255, 256, 513])
@pytest.mark.parametrize("case", [case for case in STORED if "float16" in case or "8-bit" in case])
def test_storage_has_the_cpus_bits(case, size):
    assert_storage_has_the_cpus_bits(case, size)
