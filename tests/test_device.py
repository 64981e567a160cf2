"""Where a processor multiplies bfloat16 fast is known without a clock, and no probe takes long."""

import time

import pytest
import torch

from pamusic import device
from pamusic.device import Machine, choose_machine, cost_of, cpu_bf16_units, has_fast_bf16, product_rates

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """Pretends to be a processor, as PyTorch and oneDNN see it."""

    def be(*, supported=True, capability="AVX512", avx512_bf16=False, amx=False, name="x86_64", limit=None):
        cpu_bf16_units.cache_clear()
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(device.platform, "machine", lambda: name)
        for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(variable, raising=False)
        if limit is not None:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)

    yield be
    cpu_bf16_units.cache_clear()


@pytest.mark.parametrize(
    ("what", "units"),
    [
        ({"avx512_bf16": True}, "AVX-512 bf16"),  # AMD Zen 4
        ({"avx512_bf16": True, "amx": True}, "AMX"),  # Intel Sapphire Rapids
        ({"supported": False, "capability": "AVX2"}, ""),  # AMD Zen 3, Intel desktops
        ({}, ""),  # Intel Skylake-X: AVX-512, where oneDNN emulates bf16
        ({"avx512_bf16": True, "capability": "AVX2"}, ""),  # Zen 4 under ATEN_CPU_CAPABILITY=avx2
        ({"avx512_bf16": True, "supported": False}, ""),  # Zen 4 under ONEDNN_MAX_CPU_ISA=AVX2
        ({"avx512_bf16": True, "amx": True, "limit": "avx512_core"}, ""),
        ({"avx512_bf16": True, "limit": "AVX512_CORE_BF16"}, "AVX-512 bf16"),
        ({"name": "arm64", "capability": "DEFAULT"}, "Arm bf16"),
        ({"name": "aarch64", "capability": "DEFAULT", "supported": False}, ""),
    ],
)
def test_what_pytorch_will_use_decides(processor, what, units):
    processor(**what)

    assert cpu_bf16_units() == units
    assert has_fast_bf16("cpu") == bool(units)
    assert choose_machine("cpu").precision == ("bf16" if units else "fp32")
    assert (cost_of("bf16", "cpu") is None) == bool(units)
    assert cost_of("fp32", "cpu") is None


def test_without_units_nothing_is_probed(processor, monkeypatch):
    processor(supported=False, capability="AVX2")
    monkeypatch.setattr(device, "product_rates", lambda *args, **how: pytest.fail("a product was timed"))

    assert choose_machine("cpu", probe=True).precision == "fp32"


@pytest.mark.parametrize(
    ("rates", "why"),
    [
        ((3e9, 1e11), "AVX-512 bf16 units: 0.0 times the products of fp32; try --precision fp32"),
        ((3e11, 1e11), "AVX-512 bf16 units: 3.0 times the products of fp32"),
    ],
)
def test_a_probe_tells_and_decides_nothing(processor, monkeypatch, rates, why):
    """A busy moment must not change what a resumed run, or one of several processes, computes with."""
    processor(avx512_bf16=True)
    monkeypatch.setattr(device, "product_rates", lambda where, *dtypes, seconds: rates)

    assert choose_machine("cpu", probe=True) == Machine(CPU, "bf16", choose_machine("cpu").compile, why)


def test_int8_without_a_kernel_names_its_cost_where_bf16_is_slow(processor):
    processor(supported=False, capability="AVX2")
    assert "in fp32" in cost_of("int8", "cpu", has_kernel=False)
    assert cost_of("int8", "cpu", has_kernel=True) is None
    processor(avx512_bf16=True)
    assert cost_of("int8", "cpu", has_kernel=False) is None


def test_an_asked_precision_is_taken_and_its_cost_named(processor):
    processor(supported=False, capability="AVX2")
    machine = choose_machine("cpu", "bf16")

    assert machine.precision == "bf16"
    assert "no bf16 units" in machine.precision_reason
    assert choose_machine("cpu", "fp32").precision_reason == "as asked"


@pytest.mark.parametrize("gflops", [1.0, 50.0])
def test_a_slow_kernel_is_never_given_a_large_product(monkeypatch, gflops):
    """A clock that knows what each product would take: a probe of 0.2 s stays near it on any machine."""
    clock, sides = [0.0], []
    real = torch.Tensor.__matmul__

    def timed(left, right):
        sides.append(left.shape[0])
        clock[0] += 2 * left.shape[0] ** 3 / (gflops * 1e9)
        return real(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])

    rates = product_rates(CPU, torch.bfloat16, torch.float32, seconds=0.2)

    assert rates == pytest.approx([gflops * 1e9] * 2, rel=1e-6)
    assert clock[0] <= 0.21  # what warms up is not counted
    assert max(sides) == (128 if gflops < 2 else 512)


def test_a_real_probe_ends_in_time():
    assert torch.get_num_threads() == 1  # so that the time of the CPU is that of the probe
    began = time.process_time()

    assert product_rates(CPU, torch.bfloat16, seconds=0.1)[0] > 1e6
    assert time.process_time() - began < 1
