"""The sampler with flat arguments, for tests that vary one at a time. Asserts nothing."""

from dataclasses import fields

from pamusic.compose.token_stream import StreamConfig, constraints_of, stream, stream_piece
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.sampling import generate as sampler
from pamusic.sampling import guard as guards
from pamusic.sampling.constraints import PrimeTokens, TokenConstraints
from pamusic.sampling.ending import StopCondition
from pamusic.sampling.token_sampler import DecodingConfig, TokenSampler


def split(arguments, *types, **renamed):
    """Values of some dataclasses from their fields by name, and what is left of the arguments."""
    values = []
    for kind in types:
        known = {each.name for each in fields(kind)}
        values.append(kind(**{name: value for name, value in arguments.items() if name in known}))
        arguments = {name: value for name, value in arguments.items() if name not in known}
    return *values, arguments


def renamed(arguments):
    """`length` is what people say for `max_tokens`."""
    return {{"length": "max_tokens"}.get(name, name): value for name, value in arguments.items()}


def of_vocabulary(vocabulary):
    """The constraints of a vocabulary, as arguments."""
    constraints = constraints_of(vocabulary)
    return {each.name: getattr(constraints, each.name) for each in fields(constraints)}


def decoding_of(arguments):
    """How ids are chosen, by flat arguments; and what is left of these."""
    constraints, stop, rest = split(renamed(arguments), TokenConstraints, StopCondition)
    sampling = {"sampling": rest.pop("sampling")} if rest.get("sampling") is not None else {}
    rest.pop("sampling", None)
    return DecodingConfig(constraints=constraints, stop=stop, **sampling), rest


def generate_rows(model, prime_ids, *, seed, num_rows=1, kernel=None, num_resumed=0, forbidden_next=(), **arguments):
    decoding, rest = decoding_of(arguments)
    inference, rest = split(rest, InferenceConfig)
    assert not rest, rest
    session = InferenceSession(model, inference, kernel)
    prime = PrimeTokens(prime_ids, num_resumed, forbidden_next)
    return sampler.generate(session, prime, decoding, seed=seed, num_rows=num_rows)


def generate(model, prime_ids, **arguments):
    return (id for (id,) in generate_rows(model, prime_ids, **arguments) if id is not None)


def generate_guarded(model, prime_ids, *, guard, seed, on_intervention, **arguments):
    decoding, rest = decoding_of(arguments)
    assert not rest, rest
    session = InferenceSession(model)
    return guards.generate_guarded(
        session, PrimeTokens(prime_ids), decoding, guard=guard, seed=seed, on_intervention=on_intervention
    )


def token_sampler(prime_ids, *, vocab_size, seed=4, num_rows=1, num_resumed=0, forbidden_next=(), **arguments):
    decoding, rest = decoding_of(arguments)
    prime = PrimeTokens(prime_ids, num_resumed, forbidden_next)
    return TokenSampler(prime, decoding, vocab_size=vocab_size, seed=seed, num_rows=num_rows, **rest)


def stream_config(arguments):
    stop, inference, rest = split(renamed(arguments), StopCondition, InferenceConfig)
    return StreamConfig(stop=stop, inference=inference, **rest)


def stream_many(checkpoint, prime=None, *, kernel=None, monitor=None, **arguments):
    return stream(checkpoint, prime, stream_config(arguments), kernel=kernel, monitor=monitor)


def compose(checkpoint, prime=None, **arguments):
    return stream_piece(checkpoint, prime, stream_config(arguments))


class Monitor:
    """Keeps what it is told of guarded pieces."""

    def __init__(self, on_intervention=lambda piece, intervention: None, on_snapshot=lambda piece, snapshot: None):
        self.on_intervention, self.on_snapshot = on_intervention, on_snapshot
