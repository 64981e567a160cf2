# Both targets start from nothing but a Python and the network, and leave nothing outside this folder.

PYTHON ?= python3
PRIME := docs/prime.mid

.PHONY: demo test

# A minute of music that goes on from PRIME, as MIDI and as sound.
demo:
	rm -rf .venv-demo
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	mkdir -p demo
	.venv-demo/bin/pamusic sample --prime $(PRIME) --seconds 60 --seed 1 -o demo/demo.mid
	.venv-demo/bin/pamusic render demo/demo.mid -o demo/demo.wav
	@echo
	@echo "The music:  $(CURDIR)/demo/demo.mid"
	@echo "Its sound:  $(CURDIR)/demo/demo.wav"

# Everything that must hold before a change is merged. Where there is a wheel of python-rtmidi, and jackd, ports are tested
# on a real MIDI system; elsewhere those tests are skipped.
test:
	rm -rf .venv-test
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --only-binary :all: \
		python-rtmidi || true
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/python -m pytest
