# All targets start from nothing but a Python and the network. Outside this folder they write caches alone: pip's,
# matplotlib's list of fonts, what torch and the tests compile (in the folder for temporary files), and the step of sampling that is compiled for this machine (in
# ~/.cache/pamusic/kernels, or where PAMUSIC_KERNELS says).

PYTHON ?= python3
PRIME := docs/prime.mid
WORKERS := -n 2 --dist loadfile  # processes that share the tests, by file

.PHONY: check-cuda demo examples test test-fast

# $(call environment,FOLDER,PACKAGES) makes an environment with PACKAGES in it. It is reused as long as Python, this
# folder's place, constraints.txt and pyproject.toml are the same.
define environment
@set -e; \
wanted="$$(cat constraints.txt pyproject.toml | cksum) $$($(PYTHON) -VV | tr '\n' ' ') $(PYTHON) $(CURDIR) $(2)"; \
if [ "$$(cat $(1)/made-of 2>/dev/null)" = "$$wanted" ]; then \
	echo "using $(1), which was made before (remove it to make it anew)"; \
else \
	echo "making $(1), a Python environment"; \
	rm -rf $(1); \
	$(PYTHON) -m venv $(1); \
	echo "installing pamusic and what it needs into $(1); this takes minutes the first time, and pip is silent"; \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(2)'; \
	echo "$$wanted" > $(1)/made-of; \
fi
endef

# A minute of music that continues PRIME and comes to an end, as MIDI and as sound.
demo:
	$(call environment,.venv-demo,.)
	@mkdir -p demo
	@echo "composing a minute of music that continues $(PRIME)"
	.venv-demo/bin/pamusic sample --checkpoint nocturne --prime $(PRIME) --seconds 60 --end-near-length --seed 1 -o demo/demo.mid
	@echo "playing it into a WAV file"
	.venv-demo/bin/pamusic render demo/demo.mid -o demo/demo.wav
	@echo
	@echo "The music:  $(CURDIR)/demo/demo.mid (open it in a DAW, or in MuseScore)"
	@echo "Its sound:  $(CURDIR)/demo/demo.wav"
	@for player in afplay pw-play paplay aplay; do \
		if command -v $$player > /dev/null; then echo "Hear it:    $$player demo/demo.wav"; exit; fi; \
	done; echo "Hear it:    open demo/demo.wav in any player or browser"

# The pieces of examples/ anew, from the bundled checkpoint, and the page that plays them; examples/README.md says by what
# rule. With PAMUSIC=pamusic, or another command, it makes no environment but takes that one.
PAMUSIC ?= .venv-examples/bin/pamusic
EXAMPLE = $(PAMUSIC) sample --checkpoint nocturne --precision fp32 --minutes 3 --end-near-length

examples:
ifeq ($(PAMUSIC), .venv-examples/bin/pamusic)
	$(call environment,.venv-examples,.)
endif
	$(EXAMPLE) --seed 1 -o examples/nothing-1.mid
	$(EXAMPLE) --seed 2 -o examples/nothing-2.mid
	$(EXAMPLE) --seed 11 --best-of 8 -o examples/nothing-best.mid
	$(EXAMPLE) --prime $(PRIME) --seed 1 -o examples/prime-1.mid
	$(EXAMPLE) --prime $(PRIME) --seed 2 -o examples/prime-2.mid
	$(EXAMPLE) --prime $(PRIME) --seed 11 --best-of 8 -o examples/prime-best.mid
	$(EXAMPLE) --prime docs/primes/four-chord-loop.mid --seed 1 -o examples/loop.mid
	$(EXAMPLE) --prime docs/primes/two-part-invention.mid --seed 1 -o examples/invention.mid
	$(EXAMPLE) --prime docs/primes/sonata-opening.mid --seed 1 -o examples/sonata.mid
	$(PAMUSIC) page examples --title "Nine examples, composed by pamusic" -o examples/index.html

# Everything that must hold before a change is merged. Where there is a wheel of python-rtmidi, and jackd, ports are tested
# on a real MIDI system; elsewhere those tests are skipped.
test:
	$(call environment,.venv-test,.[dev])
	@.venv-test/bin/python -c "import rtmidi" 2>/dev/null || .venv-test/bin/python -m pip install --quiet \
		--disable-pip-version-check -c constraints.txt --only-binary :all: python-rtmidi || \
		echo "python-rtmidi cannot be installed without a compiler, so tests of real MIDI ports are skipped"
	@echo "checking style and types"
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	@echo "running the tests; the slowest of them train small models"
	.venv-test/bin/python -m pytest $(WORKERS)

# The same without what is marked slow: for daily use.
test-fast:
	$(call environment,.venv-test,.[dev])
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy
	.venv-test/bin/python -m pytest $(WORKERS) -m "not slow"

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
