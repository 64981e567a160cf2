# All targets start from nothing but a Python and the network, and leave nothing outside this folder.

PYTHON ?= python3
PRIME := docs/prime.mid

.PHONY: check-cuda demo examples test

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

# The pieces of examples/ anew, from the bundled checkpoint, and the page that plays them; examples/README.md says by what
# rule. With PAMUSIC=pamusic, or another command, it makes no environment but takes that one.
PAMUSIC ?= .venv-examples/bin/pamusic
EXAMPLE = $(PAMUSIC) sample --checkpoint small --precision fp32 --minutes 3 --end

examples:
ifeq ($(PAMUSIC), .venv-examples/bin/pamusic)
	rm -rf .venv-examples
	$(PYTHON) -m venv .venv-examples
	.venv-examples/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
endif
	$(EXAMPLE) --seed 1 -o examples/nothing-1.mid
	$(EXAMPLE) --seed 2 -o examples/nothing-2.mid
	$(EXAMPLE) --seed 11 --best-of 8 -o examples/nothing-best.mid
	$(EXAMPLE) --prime $(PRIME) --seed 1 -o examples/prime-1.mid
	$(EXAMPLE) --prime $(PRIME) --seed 2 -o examples/prime-2.mid
	$(EXAMPLE) --prime $(PRIME) --seed 11 --best-of 8 -o examples/prime-best.mid
	$(PAMUSIC) page examples --title "Six examples, composed by pamusic" -o examples/index.html

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

# What can be checked of the CUDA path without a card: shapes, types and devices, with PyTorch's CUDA build (several
# gigabytes; about 3 minutes to install from a fast index). Not part of `make test`.
check-cuda:
	rm -rf .venv-cuda
	$(PYTHON) -m venv .venv-cuda
	grep -v '^torch==' constraints.txt > .venv-cuda/constraints.txt
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-cuda/constraints.txt 'torch>=2.9'
	.venv-cuda/bin/python -c "import sys, torch; sys.exit(None if torch.version.cuda else 'pip gave a CPU build of PyTorch')"
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-cuda/constraints.txt -e . pytest hypothesis
	.venv-cuda/bin/python -m pytest tests/test_fake_device.py
