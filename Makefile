# Everything runs inside .venv, which the first target makes from nothing but Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check slow docs notebooks bench bench-summarize bench-sft bench-packing bench-reward bench-respond bench-rl bench-detox bench-peers toxicity-scorer \
	setup setup-dev setup-bench setup-bench-trl011 clean

demo: setup                        ## the jobs, offline: evaluate, train, evaluate, compare, report
	$(BIN)/dialtune demo --out runs/demo

test: setup-dev                    ## the test suite
	$(BIN)/python -m pytest -m "not slow and not gpu and not network"

slow: setup-dev                    ## the long proofs: kills, crash points, flipped bytes
	$(BIN)/python -m pytest -m slow

check: setup-dev                   ## lint, format, types, generated docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

docs: setup-dev                    ## write the generated pages, build all of them: build/docs/index.html
	$(BIN)/python docs/generate.py
	$(BIN)/python -m mkdocs build --quiet

notebooks: setup-dev               ## execute the three labs and write them with their outputs (about 40 minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python notebooks/build.py

bench: bench-summarize bench-sft bench-packing bench-rl   ## job 1 and speed; each writes results/*.json and prints a table

bench-summarize: setup
	$(BIN)/python benchmarks/bench_summarize.py $(ARGS)

bench-sft: setup-bench
	$(BIN)/python benchmarks/bench_sft.py $(ARGS)

bench-packing: setup               ## one forward pass per dialogue against one per reply (about half an hour)
	$(BIN)/python benchmarks/bench_packing.py $(ARGS)

bench-reward: setup                ## learned rewards on DailyDialog and chitchat, held out (about 20 minutes)
	$(BIN)/python benchmarks/bench_reward.py $(ARGS)

bench-respond: setup              ## job 2 on DailyDialog, held-out dialogues (about 40 minutes)
	$(BIN)/python benchmarks/bench_respond.py $(ARGS)

bench-rl: setup-bench setup-bench-trl011   ## one step of PPO and GRPO against TRL 1.16 and 0.11.4 (about 15 minutes)
	$(BIN)/python benchmarks/bench_rl.py $(ARGS)

bench-detox: setup                 ## job 3 on DialogSum + ParaDetox, three seeds, four baselines (hours on a CPU)
	$(BIN)/python benchmarks/bench_detox.py $(ARGS)

bench-peers: setup                 ## look up in other tools' packages what they have (downloads their wheels)
	$(BIN)/python benchmarks/peers.py $(ARGS)

toxicity-scorer: setup             ## train the packaged toxicity scorer (about 15 minutes on 2 cores)
	$(BIN)/python benchmarks/train_toxicity.py $(ARGS)

setup: .venv/installed
setup-dev: .venv/installed-dev
setup-bench: .venv/installed-bench
setup-bench-trl011: .venv-trl011/installed

.venv/installed: pyproject.toml constraints.txt requirements/offline.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dialtune needs Python 3.11 or newer; run: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/offline.txt
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt trl==1.16.0 datasets
	touch $@

# TRL 0.11.4 is the last with PPO for encoder-decoders; it needs transformers 4, which dialtune no longer runs on.
.venv-trl011/installed: requirements/trl011.txt
	test -x .venv-trl011/bin/python || $(PYTHON) -m venv .venv-trl011
	.venv-trl011/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/trl011.txt
	touch $@

clean:
	rm -rf .venv .venv-trl011 runs build dist *.egg-info
