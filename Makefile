# Everything a fresh machine needs: `make demo` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# without an NVIDIA GPU, the release that every number in the README was made with
TORCH ?= $(shell command -v nvidia-smi > /dev/null && echo torch || echo torch==2.13.0)
DEMO ?= demo
GENOMES := tests/assets/genomes
ECOLI := $(GENOMES)/ecoli_536_NC_008253.fna.gz
NANO := build/nano
CORPUS ?= $(NANO)/corpus.fa.gz

.PHONY: help setup demo nano test test-gpu check format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.installed  ## make the virtual environment and install evo with its development tools

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train on a real genome, beat a Markov model, score variants, generate, draw
	@mkdir -p $(DEMO)
	@echo "== 1. prepare E. coli 536: 4.9 million bases, one in twenty held out"
	$(BIN)/evo prepare $(ECOLI) -o $(DEMO)/ecoli.h5
	@echo "== 2. train the debug model (0.9 million parameters)"
	$(BIN)/evo train $(DEMO)/ecoli.h5 --preset debug --steps 120 --lr 3e-3 --valid-every 40 --save-every 40 \
	    -o $(DEMO)/run $$(test -d $(DEMO)/run/checkpoints && echo --resume)
	@echo "== 3. compare it with Markov models of orders 1 to 8, on the same held-out bases"
	$(BIN)/evo eval markov $(DEMO)/ecoli.h5 | tee $(DEMO)/markov.tsv
	$(BIN)/evo eval perplexity $(DEMO)/ecoli.h5 --model $(DEMO)/run/model | tee $(DEMO)/perplexity.tsv
	@echo "== 4. score made-up variants of the gene thrA: silent, stop-making, frame-shifting"
	$(BIN)/evo score $(GENOMES)/ecoli_536_thrA.vcf --reference $(ECOLI) --model $(DEMO)/run/model --window 1024 \
	    -o $(DEMO)/thrA.tsv
	@awk -F'\t' 'NR > 1 {sub(/_.*/, "", $$3); n[$$3]++; sum[$$3] += $$7} \
	    END {for (kind in n) printf "%s\tmean delta %.2f\t(%d variants)\n", kind, sum[kind] / n[kind], n[kind]}' \
	    $(DEMO)/thrA.tsv | sort
	@echo "== 5. generate three sequences"
	$(BIN)/evo generate --model $(DEMO)/run/model --prompt ATGCGAGTGTTGAAGTTCGGCGG --length 300 --samples 3 --seed 1 \
	    -o $(DEMO)/generated.fa
	@head -5 $(DEMO)/generated.fa
	@echo "== done: held-out bits per base, fewer is better"
	@awk -F'\t' 'FNR > 1 {name = $$1 ~ /markov/ ? "best Markov" : "this model"; \
	        if (!(name in bits) || $$NF < bits[name]) {bits[name] = $$NF; who[name] = $$1}} \
	    END {for (name in bits) printf "%-12s%s  %s\n", name, bits[name], who[name]}' \
	    $(DEMO)/markov.tsv $(DEMO)/perplexity.tsv | sort
	@echo "model $(DEMO)/run/model, curve $(DEMO)/run/loss.png, scores $(DEMO)/thrA.tsv, sequences $(DEMO)/generated.fa"

$(NANO)/corpus.fa.gz: evo_cli/box/corpus.tsv
	$(BIN)/python -m evo_cli.box.fetch $< $@

nano: $(VENV)/.installed $(CORPUS)  ## make the model in the box again: fetches 55 million bases from NCBI, then trains for minutes on a large GPU
	$(BIN)/evo prepare $(CORPUS) -o $(NANO)/corpus.h5 --valid 0.02
	$(BIN)/evo train $(NANO)/corpus.h5 --preset nano --length 8192 --batch-size 8 --steps 2900 --lr 2e-3 \
	    --min-lr-fraction 0.02 --warmup-fraction 0.02 --valid-every 250 --save-every 500 --seed 0 \
	    -o $(NANO)/run $$(test -d $(NANO)/run/checkpoints && echo --resume)
	$(BIN)/python -c "import sh2, torch; \
	    sh2.save_model(sh2.load('$(NANO)/run/model', dtype=torch.bfloat16), '$(NANO)/model')"
	$(BIN)/evo eval perplexity $(GENOMES)/lambda_NC_001416.1.fa.gz --model $(NANO)/model

test: $(VENV)/.installed  ## run the tests that need no GPU
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-gpu: $(VENV)/.installed  ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -q -m gpu

check: $(VENV)/.installed  ## lint, format, types, architecture: reads only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## rewrite the code as `check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, the demo and caches
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
