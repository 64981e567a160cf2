"""Steps in bytes say nearly what whole ones do, compiled ones what the plain twin does, and nobody waits in vain."""

import os
import stat
from itertools import islice
from pathlib import Path

import pytest
import torch
from flat_sampling import generate_rows
from models import START, VOCAB, N, outspoken_model, piece

from pamusic.inference import native_kernel as kernels
from pamusic.inference.compact_cache import ContextCache, Int8Cache, Int8ContextCache
from pamusic.inference.int8 import (
    MAX_INT8,
    CacheView,
    ContextCacheView,
    Int8Block,
    Int8Matrix,
    ReferenceKernel,
    quantize_rows,
)
from pamusic.inference.native_kernel import default_folder, kernel, kernel_for, kernel_path
from pamusic.inference.precision import resolve_precision
from pamusic.inference.session import InferenceConfig, InferenceSession

WHERE_COMPILED = pytest.mark.skipif(kernel(32) is None, reason="there is no C++ compiler")


def wide(**changes):
    return outspoken_model(num_layers=3, d_model=64, num_heads=2, **changes)


def steps(reader, prime, ids, num_rows=1):
    reader.prefill(prime)
    if num_rows > 1:
        reader.select([0] * num_rows)
    return torch.stack([reader.step([(id + row) % START for row in range(num_rows)]) for id in ids])


def test_the_largest_number_of_each_key_is_127_and_none_is_off_by_more_than_half_a_step():
    x = torch.randn(3, 5, 64)
    bytes, scales = quantize_rows(x)

    assert bytes.dtype == torch.int8
    assert (bytes.abs().amax(-1) == MAX_INT8).all()
    assert ((bytes * scales[..., None] - x).abs() <= scales[..., None] * 0.5001).all()
    zeros, scales = quantize_rows(torch.zeros(2, 4))
    assert not zeros.any()
    assert scales.isfinite().all()


@pytest.mark.parametrize("policy", ["half", "slide", 1])
def test_steps_in_bytes_say_nearly_what_whole_ones_do(policy):
    model, prime, ids = wide(), piece(20), piece(60, seed=2)
    whole = steps(InferenceSession(model, InferenceConfig(refill=policy)), prime, ids)
    reader = InferenceSession(model, InferenceConfig(refill=policy, precision="int8"), kernel=ReferenceKernel())

    found = steps(reader, prime, ids)

    assert all(isinstance(layer, Int8Cache) for layer in reader.caches.layers)
    assert isinstance(reader.caches.cross, Int8ContextCache)
    distance = (found.softmax(-1) - whole.softmax(-1)).abs().sum(-1).mean()
    assert 0 < distance < 0.15 * (whole.softmax(-1) - whole.roll(1, 0).softmax(-1)).abs().sum(-1).mean()


def test_what_a_byte_cache_gives_back_is_what_it_took():
    cache = Int8Cache(2, 2, 16, window=5, headroom=2)
    keys, values = torch.randn(2, 2, 2, 4, 16)
    more = torch.randn(2, 2, 2, 3, 16)
    cache.append(keys, values)
    cache.append(*more)

    found = cache.last(len(cache))

    assert len(cache) == 5
    for each, before, after in zip(found, (keys, values), more, strict=True):
        assert torch.allclose(each, torch.cat([before, after], dim=2)[:, :, -5:], atol=0.02)
    last = cache.rows(slice(1, 2))
    assert isinstance(last, Int8Cache)
    assert torch.equal(last.last(5)[0], found[0][1:])


def test_a_context_in_bytes_gives_back_nearly_what_a_whole_one_does():
    tables, ids = torch.randn(2, 9, 2, 16), torch.randint(9, (1, 40))
    whole = ContextCache(*tables, 4, 1, window=24, headroom=8)
    held = Int8ContextCache(*tables, 4, 1, ReferenceKernel(), window=24, headroom=8)
    for start in (0, 20, 23):
        for cache in (whole, held):
            cache.append(ids[:, start : start + 20], torch.ones(1, 2, min(20, 40 - start), 4) * start)
    queries = torch.randn(1, 2, 16)

    assert torch.equal(held.ids(), whole.ids())
    for one, other in zip(held.last(24), whole.last(24), strict=True):
        assert torch.allclose(one, other, rtol=0.01)
    assert torch.allclose(held.attend(queries), whole.attend(queries), atol=0.05)


def test_what_is_seen_has_room_for_one_more_and_moves_to_the_front_when_there_is_none():
    cache = Int8Cache(1, 1, 16, window=3, headroom=1)
    places = []
    for _ in range(6):
        seen = cache.view()
        places.append((seen.first, seen.n))

    assert places == [(0, 1), (0, 2), (0, 3), (1, 3), (0, 3), (1, 3)]


def block_of(width, wide, draws):
    def matrix(out, into):
        return Int8Matrix.of(torch.randn(out, into, generator=draws) / into**0.5)

    return Int8Block(
        project=matrix(3 * width, width), output=matrix(width, width), up=matrix(wide, width), down=matrix(width, wide),
        least=1e-3, least_of_heads=1e-3,
    )  # fmt: skip


@WHERE_COMPILED
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "heads", "head_dim", "n"), [(1, 2, 32, 1), (1, 3, 64, 70), (5, 1, 24, 33), (9, 2, 8, 2)]
)
def test_a_compiled_block_is_its_plain_twin_to_a_ten_thousandth(rows, heads, head_dim, n, threads, set_threads):
    set_threads(threads)
    draws, room = torch.Generator().manual_seed(1), n + 6
    width = heads * head_dim
    block, x = block_of(width, 4 * width + 3, draws), torch.randn(rows, width, generator=draws)
    held = [torch.randn(rows, heads, room, head_dim, generator=draws) for _ in range(2)]
    memory = [*quantize_rows(held[0]), *quantize_rows(held[1])]
    turn = (*torch.randn(2, 2, 1, head_dim, generator=draws), torch.arange(head_dim).roll(head_dim // 2))
    found, expected = [], []
    for who, results in ((kernel(head_dim), found), (ReferenceKernel(), expected)):
        own = [each.clone() for each in memory]
        results += [
            who.step(block, x.clone(), CacheView(4, n, *own), turn),
            who.finish(block, x.clone(), x.flip(0)),
            own,
        ]

    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3 * other.abs().max())
        assert (one - other).abs().median() < 1e-4
    for before, one, other in zip(memory, found[2], expected[2], strict=True):
        assert ((one.float() - other.float()).abs() <= (1 if one.dtype == torch.int8 else 1e-5)).all()
        untouched = [place for place in range(room) if place != 4 + n - 1]
        assert torch.equal(one[:, :, untouched], before[:, :, untouched])


@WHERE_COMPILED
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "heads", "num_turned", "n"), [(1, 1, 2, 1), (1, 4, 32, 70), (3, 2, 6, 33)])
def test_a_compiled_look_at_the_context_is_its_plain_twin(rows, heads, num_turned, n, threads, set_threads):
    set_threads(threads)
    draws, room, vocab = torch.Generator().manual_seed(1), n + 6, 11
    keys = torch.randn(rows, heads, room, num_turned, generator=draws)
    context = ContextCacheView(4, n, torch.randint(vocab, (rows, room), generator=draws), *quantize_rows(keys))
    queries = torch.randn(rows, heads, num_turned, generator=draws)
    of_ids = torch.randn(rows, heads, vocab, generator=draws)

    found = kernel(32).share(queries, of_ids, context)

    assert torch.allclose(found, ReferenceKernel().share(queries, of_ids, context), rtol=1e-3, atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(rows, heads))
    unseen = set(range(vocab)) - set(context.ids[0, 4 : 4 + n].tolist())
    assert not found[0, :, list(unseen)].any()


@WHERE_COMPILED
@pytest.mark.parametrize("num_rows", [1, 6])
def test_compiled_steps_say_what_plain_ones_say(num_rows):
    model, prime, ids = wide(), piece(20), piece(3 * N, seed=2)
    expected = steps(
        InferenceSession(model, InferenceConfig(precision="int8"), kernel=ReferenceKernel()), prime, ids, num_rows
    )

    found = steps(InferenceSession(model, InferenceConfig(precision="int8"), kernel=kernel(32)), prime, ids, num_rows)

    # Not to the last bit: sums in another order round a few numbers to the next byte.
    assert torch.allclose(found, expected, atol=0.05, rtol=0.02)
    assert (found - expected).abs().median() < 1e-3


@WHERE_COMPILED
def test_the_same_seed_gives_the_same_ids_on_any_number_of_threads(set_threads):
    model, found = wide(), []
    for threads in (1, 2, 2):
        set_threads(threads)
        ids = generate_rows(model, [START], seed=3, num_rows=6, precision="int8", kernel=kernel(32))
        found.append(list(islice(ids, 3 * N)))

    assert found[0] == found[1] == found[2]


@WHERE_COMPILED
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("layers.1.attention.query", "nan"), ("layers.1.attention.key", "nan"), ("layers.1.attention.value", "inf"),
        ("layers.1.mlp.up", "inf"), ("cross.attention.query", "nan"), ("cross.attention.value", "nan"),
        ("embedding", "nan"),
    ],
)  # fmt: skip
def test_a_weight_that_is_no_number_is_heard_of_in_the_logits(name, number):
    model, prime, ids = wide(), piece(20), piece(3 * N, seed=2)
    with torch.no_grad():
        model.get_submodule(name).weight[3, 0] = float(number)

    found, expected = (
        steps(InferenceSession(model, InferenceConfig(precision="int8"), kernel=who), prime, ids).sum(-1).isnan()
        for who in (kernel(32), ReferenceKernel())
    )

    assert expected.sum() > len(ids) / 2
    assert torch.equal(found, expected)


def test_an_id_that_is_none_is_refused_and_not_looked_for_beside_the_tables():
    for reader in (
        InferenceSession(wide()),
        InferenceSession(wide(), InferenceConfig(precision="int8"), kernel=ReferenceKernel()),
    ):
        with pytest.raises(IndexError):
            reader.prefill([-1, *piece(2 * N)])
        reader.prefill(piece(4))
        with pytest.raises(IndexError):
            reader.step([-1])
        with pytest.raises(IndexError):
            reader.step([VOCAB])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_none_is_made_for_other_numbers_than_float32(dtype):
    model = wide().to(dtype)

    assert kernel_for(model, "auto") is None
    with pytest.raises(AssertionError, match="a kernel needs float32 weights"):
        InferenceSession(model, InferenceConfig(precision="int8"), kernel=ReferenceKernel())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_none_is_used_for_weights_that_are_not_in_bytes(precision):
    model, prime, ids = wide(), piece(4), piece(5)

    found = steps(InferenceSession(model, InferenceConfig(precision=precision), kernel=ReferenceKernel()), prime, ids)

    assert torch.equal(found, steps(InferenceSession(model, InferenceConfig(precision=precision)), prime, ids))
    assert kernel_for(model, precision) is None


def test_none_is_made_for_a_model_without_layers():
    assert kernel_for(outspoken_model(num_layers=0), "auto") is None


@WHERE_COMPILED
def test_with_one_weights_are_in_bytes_by_themselves():
    assert kernel_for(wide(), "auto") is not None
    assert resolve_precision("auto", "cpu", has_kernel=True) == "int8"
    assert resolve_precision("fp32", "cpu", has_kernel=True) == "fp32"
    assert resolve_precision("auto", "cuda", has_kernel=True) == "fp32"


def test_where_bfloat16_is_slow_latents_are_made_anew_in_float32(monkeypatch):
    model = wide()
    for is_fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("pamusic.inference.session.has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        assert (
            InferenceSession(
                model, InferenceConfig(precision="int8"), kernel=ReferenceKernel()
            )._parallel.head.weight.dtype
            == dtype
        )


@WHERE_COMPILED
def test_a_kernel_is_made_once_and_found_again(tmp_path):
    told = []
    assert kernel(16, tmp_path, told.append) is not None
    assert kernel(16, tmp_path, told.append) is not None

    assert told == ["compiling a kernel for this machine, once"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
    assert kernel_path(16, tmp_path) != kernel_path(24, tmp_path)


@WHERE_COMPILED
def test_a_kernel_that_is_broken_is_done_without(tmp_path):
    kernel_path(16, tmp_path).write_bytes(b"no kernel")

    assert kernel(16, tmp_path) is None


@WHERE_COMPILED
def test_a_kernel_that_computes_something_else_is_done_without(tmp_path, monkeypatch):
    wrong = tmp_path / "block.cpp"
    text = kernels.SOURCE.read_text(encoding="utf-8")
    wrong.write_text(text.replace("std::max(product, 0.0f)", "std::fabs(product)"), encoding="utf-8")
    assert wrong.read_text(encoding="utf-8") != text
    monkeypatch.setattr(kernels, "SOURCE", wrong)

    assert kernel(16, tmp_path) is None
    assert kernel_path(16, tmp_path).exists()


def compiler(tmp_path, *lines):
    """A program that is called as a compiler is."""
    path = tmp_path / "compiler"
    path.write_text("\n".join(["#!/bin/sh", *lines]), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(os.name != "posix", reason="calls a shell script")
def test_a_compiler_that_fails_or_hangs_or_is_none_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "PATIENCE", 0.5)
    for line in ("exit 1", "exec sleep 60"):
        monkeypatch.setenv("CXX", str(compiler(tmp_path, line)))
        told = []
        assert kernel(16, tmp_path / "kept", told.append) is None
        assert "gave no usable kernel" in told[-1]
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert kernel(16, tmp_path / "kept", pytest.fail) is None

    assert not any((tmp_path / "kept").glob("*"))


@pytest.mark.skipif(os.name != "posix", reason="calls a shell script")
def test_a_compiler_that_hangs_is_waited_for_once(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setattr(kernels, "PATIENCE", 0.5)
    monkeypatch.setenv("CXX", str(compiler(tmp_path, f"echo >> {calls}", "exec sleep 60")))

    assert kernel(16, tmp_path / "kept") is None
    assert calls.read_text(encoding="utf-8").count("\n") == 1


@WHERE_COMPILED
@pytest.mark.skipif(os.name != "posix", reason="calls a shell script")
def test_a_compiler_may_be_called_by_another_program(tmp_path, monkeypatch):
    own = " ".join(kernels._compiler())
    caller = compiler(tmp_path, 'exec "$@"')
    monkeypatch.setenv("CXX", f"{caller} {own}")
    assert kernel(16, tmp_path) is not None
    monkeypatch.setenv("CXX", " ")
    assert kernels._compiler() is not None


@WHERE_COMPILED
def test_where_kernels_cannot_be_kept_they_are_done_without(tmp_path, monkeypatch):
    monkeypatch.setenv("PAMUSIC_KERNELS", str(tmp_path / ("long" * 100)))
    assert kernel(16) is None
    monkeypatch.setenv("PAMUSIC_KERNELS", "~nobody-of-this-name/kernels")
    assert kernel(16) is None


@WHERE_COMPILED
@pytest.mark.skipif(os.name != "posix", reason="calls a shell script")
def test_a_compiler_without_openmp_makes_one_for_one_thread(tmp_path, monkeypatch):
    own = " ".join(kernels._compiler())
    lines = ['for word in "$@"; do [ "$word" = -fopenmp ] && exit 1; done', f'exec {own} "$@"']
    monkeypatch.setenv("CXX", str(compiler(tmp_path, *lines)))

    assert kernel(16, tmp_path) is not None


def test_kernels_are_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PAMUSIC_KERNELS", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("PAMUSIC_KERNELS", "~/kernels")
    assert default_folder() == Path.home() / "kernels"
    monkeypatch.delenv("PAMUSIC_KERNELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pamusic" / "kernels"


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
