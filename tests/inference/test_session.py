"""A cached reader says what one parallel pass over the same latents says, whatever its policy and however long."""

import pytest
import torch
from models import CONTEXT, START, N, outspoken_model, piece, uncached

from pamusic.inference.session import REFILLS, SLIDE, InferenceConfig, InferenceSession, refill_of
from pamusic.inference.token_step import ROTARY_BLOCK, TokenStep
from pamusic.model.cache import KeyValueCache
from pamusic.model.rotary import rotation


def latents_in_use(num_read, num_steps, num_latents=N, refill=N // 2):
    """How many latents the last logits come from: the prime's, then one more a step, then the refill's again."""
    in_use = min(refill, num_read)
    for _ in range(num_steps):
        in_use = refill if in_use == num_latents else in_use + 1
    return in_use


def close(a, b):
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_layers", [1, 2, 8])
@pytest.mark.parametrize("prime_length", [1, 3, 4, 20])
@pytest.mark.parametrize(("policy", "refill"), [("half", 4), ("all", 8), (1, 1), (7, 7)])
def test_cached_logits_equal_one_parallel_pass_before_and_after_refills(num_layers, prime_length, policy, refill):
    model, ids = outspoken_model(num_layers), piece(CONTEXT)
    reader = InferenceSession(model, InferenceConfig(refill=policy))

    (logits,) = reader.prefill(ids[:prime_length])
    for length in range(prime_length, CONTEXT):
        in_use = latents_in_use(prime_length, length - prime_length, refill=refill)
        assert reader.caches.num_latents == in_use
        assert close(logits, uncached(model, ids[:length], in_use)), f"after {length} tokens"
        (logits,) = reader.step([ids[length]])


def test_last_128_makes_all_latents_anew_but_128():
    model, ids = outspoken_model(context_length=600, num_latents=130), piece(600)
    reader = InferenceSession(model, InferenceConfig(refill="last-128"))

    reader.prefill(ids[:5])
    for length in range(6, 600):
        (logits,) = reader.step([ids[length - 1]])
        in_use = latents_in_use(5, length - 5, 130, refill=2)
        assert reader.caches.num_latents == in_use
        if in_use in (2, 3, 130):
            assert close(logits, uncached(model, ids[:length], in_use)), f"after {length} tokens"


@torch.inference_mode()
def banded(model, ids, first, context_length, num_latents):
    """The plain twin past the end of a context; logits `[len(ids) - first, vocab]`.

    Each position from `first` on is a latent, and sees so many tokens up to its own, and in the layers so many latents.

    So each latent's keys and values are made once, from what it saw then, and those that follow see them as they are.
    """
    positions = torch.arange(len(ids))
    age = positions[:, None] - positions

    def band(width):
        return torch.where((age >= 0) & (age < width), 0.0, float("-inf"))

    def block(x, block, keys_values, turn, seen):
        keys, values = keys_values
        queries = block.attention.queries(block.attention_norm(x), turn)
        heads = (queries @ keys.mT / keys.shape[-1] ** 0.5 + seen).softmax(-1) @ values
        x = x + block.attention.merged(heads)
        return x + block.mlp(block.mlp_norm(x))

    def turn(attention, positions):
        return rotation(positions, attention.head_dim, model.config.rotary_fraction)

    embedded, cross = model.embedding(torch.tensor([ids])), model.cross.attention
    context = cross.keys_values(model.context_norm(embedded), turn(cross, positions))
    latents, own = model.to_latents(embedded[:, first:]), positions[first:]
    x = block(latents, model.cross, context, turn(cross, own), band(context_length)[first:])
    visible = [torch.tensor([ids[max(0, stop - context_length) : stop]]) for stop in range(first + 1, len(ids) + 1)]
    x = x + torch.cat([model.ledger(each, 1) for each in visible], dim=1)
    for layer in model.layers:
        turned = turn(layer.attention, own)
        keys_values = layer.attention.keys_values(layer.attention_norm(x), turned)
        x = block(x, layer, keys_values, turned, band(num_latents)[first:, first:])
    return model.head(model.norm(x))[0]


@pytest.mark.parametrize("num_layers", [1, 2, 8])
@pytest.mark.parametrize("prime_length", [1, 3, 20])
def test_sliding_drops_the_oldest_latent_and_leaves_the_others_what_they_learned_from_it(num_layers, prime_length):
    model, ids = outspoken_model(num_layers, context_length=32), piece(300)
    reader = InferenceSession(model, InferenceConfig(refill="slide"))
    first = max(0, prime_length - N)
    expected = banded(model, ids, first, context_length=32, num_latents=N)

    (logits,) = reader.prefill(ids[:prime_length])
    for length in range(prime_length, 300):
        assert reader.caches.num_latents == min(length, N)
        assert close(logits, expected[length - 1 - first]), f"after {length} tokens"
        (logits,) = reader.step([ids[length]])


@pytest.mark.parametrize(("num_layers", "equal"), [(1, True), (2, False)])
def test_only_a_single_layer_slides_without_hearing_of_latents_that_are_gone(num_layers, equal):
    model, ids = outspoken_model(num_layers), piece(CONTEXT)
    reader = InferenceSession(model, InferenceConfig(refill="slide"))
    reader.prefill(ids[:N])
    for id in ids[N:]:
        (logits,) = reader.step([id])

    assert close(logits, uncached(model, ids, N)) is equal


def test_a_policy_has_a_name_or_a_number():
    assert [refill_of(policy, 512) for policy in REFILLS] == [256, 384, SLIDE, 512]
    assert [refill_of(policy, 512) for policy in (1, "1", 512, "300")] == [1, 1, 512, 300]
    assert refill_of("half", 1) == 1
    for policy in ("none", "", "-1", "0", "1.5", 0, 513):
        with pytest.raises(ValueError, match="refill must be"):
            refill_of(policy, 512)
    with pytest.raises(ValueError, match="more than 128 latents, got 128"):
        refill_of("last-128", 128)


@pytest.mark.parametrize("policy", ["half", "slide", "all"])
def test_rows_are_read_as_each_would_be_alone_and_can_be_left_out(policy):
    model = outspoken_model(context_length=32)
    prime, (a, b, c) = piece(20), (piece(100, seed) for seed in (2, 3, 4))
    alone = [InferenceSession(model, InferenceConfig(refill=policy)) for _ in range(3)]
    together = InferenceSession(model, InferenceConfig(refill=policy))
    for reader in (*alone, together):
        reader.prefill(prime)

    together.select([0, 0, 0])
    for ids in zip(a[:50], b[:50], c[:50], strict=True):
        expected = torch.cat([reader.step([id]) for reader, id in zip(alone, ids, strict=True)])
        assert close(together.step(ids), expected)
    together.select([2, 0])
    for ids in zip(c[50:], a[50:], strict=True):
        expected = torch.cat([alone[2].step(ids[:1]), alone[0].step(ids[1:])])
        assert close(together.step(ids), expected)


@pytest.mark.parametrize(("num_latents", "refill"), [(1, 1), (2, 1), (8, 8), (8, 1), (8, 7), (20, 13)])
def test_so_they_do_for_any_number_of_latents_and_any_refill(num_latents, refill):
    model, ids = outspoken_model(), piece(CONTEXT)
    reader = InferenceSession(model, InferenceConfig(num_latents=num_latents, refill=refill))

    reader.prefill(ids[:5])
    for length in range(6, CONTEXT + 1):
        (logits,) = reader.step([ids[length - 1]])
        in_use = latents_in_use(5, length - 5, num_latents, refill)
        assert close(logits, uncached(model, ids[:length], in_use)), f"after {length} tokens"


def test_another_reader_of_the_same_weights_knows_nothing_of_what_the_first_one_read():
    model, ids = outspoken_model(), piece(20)
    first = InferenceSession(model, InferenceConfig(precision="int8"))
    first.prefill(ids[:9])
    after = first.step([ids[9]])

    other = first.fork()
    told = other.prefill(ids[:5])

    assert other._stepper is first._stepper  # held once
    assert torch.equal(told, InferenceSession(model, InferenceConfig(precision="int8")).prefill(ids[:5]))
    again = InferenceSession(model, InferenceConfig(precision="int8"))
    again.prefill(ids[:9])
    assert torch.equal(again.step([ids[9]]), after)
    assert torch.equal(again.step([ids[10]]), first.step([ids[10]]))  # which went on undisturbed


@pytest.mark.parametrize(("policy", "refill"), [("half", 4), ("all", 8), (1, 1)])
def test_past_the_context_each_latent_has_seen_a_whole_context_up_to_itself_and_no_more(policy, refill):
    model, ids = outspoken_model(context_length=16), piece(300)
    reader = InferenceSession(model, InferenceConfig(refill=policy))

    reader.prefill(ids[:3])
    for length in range(4, 300):
        (logits,) = reader.step([ids[length - 1]])
        in_use = latents_in_use(3, length - 3, refill=refill)
        assert reader.caches.num_latents == in_use
        if length > 16:
            before = max(0, length - 16 - N)  # what no latent has seen
            expected = banded(model, ids[before:length], length - before - in_use, context_length=16, num_latents=N)
            assert close(logits, expected[-1]), f"after {length} tokens"


def test_of_a_prime_longer_than_the_context_the_end_is_read():
    model, ids = outspoken_model(), piece(3 * CONTEXT)

    assert close(InferenceSession(model).prefill(ids)[0], uncached(model, ids[-CONTEXT:], N // 2))


def test_a_step_equals_the_models_own_read_and_extend():
    model = outspoken_model(num_layers=3, cross_num_heads=2, num_heads=4, d_model=64)
    ids = torch.randint(0, START, (2, N), generator=torch.Generator().manual_seed(1))
    stepper, twins = TokenStep(model), model.new_caches(2)
    caches = stepper.new_caches(2)

    with torch.inference_mode():
        stepper.latents(ids[:, 0], stepper.new_caches(2))
        caches.position = twins.position = ROTARY_BLOCK - 3  # a new table of rotations is due on the way
        for column in ids.T:
            model.read(column[:, None], twins)
            found = stepper.logits(stepper.latents(column, caches), caches)
            assert close(found, model.extend(column[:, None], twins)[:, 0])


def test_a_step_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    reader = InferenceSession(outspoken_model())
    reader.prefill([START])
    reader.step([3])

    assert torch.get_num_threads() == before


def test_a_cache_moves_its_window_to_the_front_when_it_is_full():
    cache = KeyValueCache(1, 1, 1, window=3, headroom=2, device=torch.device("cpu"), dtype=torch.float32)
    seen = []
    for position in range(8):
        cache.append(torch.full((1, 1, 1, 1), float(position)), torch.full((1, 1, 1, 1), -float(position)))
        keys, values = cache.last(len(cache))
        assert torch.equal(keys, -values)
        seen.append(keys.flatten().int().tolist())

    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]


@pytest.mark.parametrize("policy", REFILLS[:1] + REFILLS[2:])
def test_memory_stays_where_it_is(policy):
    reader = InferenceSession(outspoken_model(context_length=16), InferenceConfig(refill=policy))
    caches = [reader.caches.cross, *reader.caches.layers]
    places = [[(tensor.data_ptr(), tensor.shape) for tensor in cache._kept.tensors] for cache in caches]

    reader.prefill([START])
    for id in piece(1000):
        reader.step([id])

    assert [[(tensor.data_ptr(), tensor.shape) for tensor in cache._kept.tensors] for cache in caches] == places
    assert len(reader._recent) <= N


def test_the_context_is_kept_as_ids_and_read_as_keys_and_values():
    model, (ids, other) = outspoken_model(cross_num_heads=2), (piece(50), piece(50, seed=2))
    tokens = torch.tensor([ids, other])
    stepper, twins = TokenStep(model), model.new_caches(2, context_length=20)
    caches = stepper.new_caches(2, context_length=20)

    with torch.inference_mode():
        for some in tokens.split([1, 18, 1, 5, 25], dim=1):
            model.read(some, twins)
            stepper.read(some, caches)
            count = len(twins.cross)
            assert len(caches.cross) == count
            for found, expected in zip(caches.cross.last(count), twins.cross.last(count), strict=True):
                assert close(found, expected)
            queries = torch.randn(2, 2, 16)
            assert close(caches.cross.attend(queries), twins.cross.attend(queries))
            weights, seen = torch.rand(2, 2, count), caches.cross._kept.last(count)[0]
            assert close(caches.cross._gathered(weights, seen), caches.cross._gathered_by_id(weights, seen))


def test_of_a_context_less_is_kept_than_its_keys_and_values():
    model = outspoken_model(context_length=4096, d_model=256)
    sizes = [
        sum(tensor.nbytes for tensor in made.new_caches(1).cross._kept.tensors) for made in (model, TokenStep(model))
    ]

    assert sizes[1] < 0.13 * sizes[0]
