"""The sampler draws what the model says, as fast twin of a parallel pass, for as long as one likes."""

from itertools import islice

import pytest
import torch

from pamusic.errors import PamusicError
from pamusic.generation.config import SamplingConfig
from pamusic.generation.sampler import Reader, generate
from pamusic.model.cache import KeyValueCache
from pamusic.model.config import ModelConfig
from pamusic.model.perceiver_ar import PerceiverAR
from pamusic.model.stepper import TURNS, Stepper

VOCAB, START, END, PAD = 24, 21, 22, 23
N, CONTEXT = 8, 64


def tiny_model(num_layers=2, seed=0, **changes):
    """A model that says something different everywhere: output projections and gains are random too."""
    shape = {
        "context_length": CONTEXT,
        "num_latents": N,
        "d_model": 32,
        "num_heads": 2,
        "cross_num_heads": 1,
        **changes,
    }
    model = PerceiverAR(ModelConfig(vocab_size=VOCAB, pad_id=PAD, num_layers=num_layers, **shape)).eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def piece(length, seed=1):
    return torch.randint(0, START, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def latents_in_use(num_read, num_steps, num_latents=N, refill=N // 2):
    """How many latents the last logits come from: the prime's, then one more a step, then the refill's again."""
    in_use = min(refill, num_read)
    for _ in range(num_steps):
        in_use = refill if in_use == num_latents else in_use + 1
    return in_use


@torch.inference_mode()
def uncached(model, ids, num_latents):
    """The plain twin: one parallel pass over everything, every time."""
    return model(torch.tensor([ids]), num_latents=num_latents)[0, -1]


def close(a, b):
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_layers", [1, 2, 8])
@pytest.mark.parametrize("prime_length", [1, 3, 4, 20])
def test_cached_logits_equal_one_parallel_pass_before_and_after_refills(num_layers, prime_length):
    model, ids = tiny_model(num_layers), piece(CONTEXT)
    reader = Reader(model)

    logits = reader.read(ids[:prime_length])
    for length in range(prime_length, CONTEXT):
        in_use = latents_in_use(prime_length, length - prime_length)
        assert reader.caches.num_latents == in_use
        assert close(logits, uncached(model, ids[:length], in_use)), f"after {length} tokens"
        logits = reader.step(ids[length])


@pytest.mark.parametrize(("num_latents", "refill"), [(1, 1), (2, 1), (8, 8), (8, 1), (8, 7), (20, 13)])
def test_so_they_do_for_any_number_of_latents_and_any_refill(num_latents, refill):
    model, ids = tiny_model(), piece(CONTEXT)
    reader = Reader(model, num_latents=num_latents, refill=refill)

    reader.read(ids[:5])
    for length in range(6, CONTEXT + 1):
        logits = reader.step(ids[length - 1])
        in_use = latents_in_use(5, length - 5, num_latents, refill)
        assert close(logits, uncached(model, ids[:length], in_use)), f"after {length} tokens"


def test_past_the_context_a_refill_sees_the_last_tokens_and_no_others():
    model, ids = tiny_model(context_length=16), piece(600)
    reader = Reader(model)

    reader.read(ids[:3])
    refills = 0
    for length in range(4, 600):
        logits = reader.step(ids[length - 1])
        assert logits.isfinite().all()
        if length > 16 and reader.caches.num_latents == N // 2:
            refills += 1
            assert close(logits, uncached(model, ids[length - 16 : length], N // 2)), f"after {length} tokens"
    assert refills > 100


def test_of_a_prime_longer_than_the_context_the_end_is_read():
    model, ids = tiny_model(), piece(3 * CONTEXT)

    assert close(Reader(model).read(ids), uncached(model, ids[-CONTEXT:], N // 2))


def test_a_step_equals_the_models_own_read_and_extend():
    model = tiny_model(num_layers=3, cross_num_heads=2, num_heads=4, d_model=64)
    ids = torch.randint(0, START, (2, N), generator=torch.Generator().manual_seed(1))
    stepper, caches, twins = Stepper(model), model.new_caches(2), model.new_caches(2)

    with torch.inference_mode():
        stepper(ids[:, 0], model.new_caches(2))
        caches.position = twins.position = TURNS - 3  # a new table of rotations is due on the way
        for column in ids.T:
            model.read(column[:, None], twins)
            assert close(stepper(column, caches), model.extend(column[:, None], twins)[:, 0])


def test_a_step_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    reader = Reader(tiny_model())
    reader.read([START])
    reader.step(3)

    assert torch.get_num_threads() == before


def test_a_cache_moves_its_window_to_the_front_when_it_is_full():
    cache = KeyValueCache(1, 1, 1, window=3, slack=2, device=torch.device("cpu"), dtype=torch.float32)
    seen = []
    for position in range(8):
        cache.append(torch.full((1, 1, 1, 1), float(position)), torch.full((1, 1, 1, 1), -float(position)))
        keys, values = cache.last(len(cache))
        assert torch.equal(keys, -values)
        seen.append(keys.flatten().int().tolist())

    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]


def test_memory_stays_where_it_is():
    reader = Reader(tiny_model(context_length=16))
    caches = [reader.caches.cross, *reader.caches.layers]
    places = [(cache._keys.data_ptr(), cache._values.data_ptr(), cache._keys.shape) for cache in caches]

    reader.read([START])
    for id in piece(1000):
        reader.step(id)

    assert [(cache._keys.data_ptr(), cache._values.data_ptr(), cache._keys.shape) for cache in caches] == places
    assert len(reader._recent) == N // 2


def test_the_same_seed_gives_the_same_ids_and_another_others():
    model = tiny_model()
    first, again, other = (list(generate(model, [START, 3], length=100, seed=seed)) for seed in (5, 5, 6))

    assert first == again
    assert first != other
    assert list(generate(model, [START, 3], length=40, seed=5)) == first[:40]


def test_torchs_own_randomness_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(generate(tiny_model(seed=0), [START], length=5, seed=1))
    torch.manual_seed(0)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_the_length_is_exact(length):
    assert len(list(generate(tiny_model(), [START], length=length, seed=0))) == length


def test_without_a_length_there_is_no_end():
    ids = generate(tiny_model(context_length=16), [START], seed=0)

    assert len(list(islice(ids, 1000))) == 1000


def test_barred_ids_never_appear():
    loud = tiny_model()
    with torch.no_grad():
        loud.head.weight[3] *= 20  # a third of all draws, where it may be drawn
    free = list(generate(loud, [START], length=300, seed=0))
    barred = list(generate(loud, [START], length=300, seed=0, barred_ids=[3, START, PAD], end_id=END))

    assert 3 in free
    assert not {3, START, PAD, END} & set(barred)


def test_the_first_id_may_be_barred_more_than_the_others():
    later = []
    for seed in range(20):
        first, *rest = generate(tiny_model(), [START], length=40, seed=seed, barred_at_first=range(5, VOCAB))
        assert first < 5
        later += rest
    assert max(later) > 5


@pytest.mark.parametrize("end_after", [0, 50])
def test_the_end_is_barred_before_its_time_and_ends_the_piece_after(end_after):
    ids = list(generate(tiny_model(), [START], length=5000, seed=0, end_id=END, end_after=end_after))

    assert end_after <= len(ids) < 5000
    assert END not in ids


def test_it_stops_with_the_id_that_completes_the_seconds():
    seconds_of_id = [0.0] * VOCAB
    seconds_of_id[5] = 1.5
    ids = list(generate(tiny_model(), [START], seconds=4, seconds_of_id=seconds_of_id, seed=0))

    assert ids.count(5) == 3
    assert ids[-1] == 5


def test_temperature_zero_takes_the_likeliest_id_whatever_the_seed():
    model, greedy = tiny_model(), SamplingConfig(temperature=0)
    first, other = (list(generate(model, [START], length=N // 2, seed=seed, sampling=greedy)) for seed in (1, 2))

    ids = [START]
    for in_use in range(1, N // 2 + 1):
        ids.append(int(uncached(model, ids, in_use).argmax()))
    assert first == other == ids[1:]


def test_drawn_ids_follow_the_models_distribution():
    model = tiny_model()
    expected = uncached(model, [START], 1).softmax(-1)
    sampling = SamplingConfig(top_p=1)
    first = [next(generate(model, [START], seed=seed, sampling=sampling)) for seed in range(1000)]
    counted = torch.bincount(torch.tensor(first), minlength=VOCAB) / len(first)

    assert (counted - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"prime_ids": []},
        {"length": 0},
        {"seconds": 0.0},
        {"seconds": 1.0},
        {"num_latents": CONTEXT + 1},
        {"refill": N + 1},
        {"refill": 0},
        {"barred_ids": range(VOCAB)},
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(wrong):
    with pytest.raises(ValueError):
        generate(tiny_model(), **{"prime_ids": [START], "seed": 0, **wrong})


def test_a_model_gone_astray_is_named():
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))

    with pytest.raises(PamusicError, match="not numbers"):
        next(generate(model, [START], seed=0))
