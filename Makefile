# Two commands do everything on a machine with Python, a C++ compiler and a package index:
#   make demo    set up, train both methods at several densities on the embedded digits, show a table and a report
#   make test    set up, run the tests
# and `make native` checks the native library in other ways than its users build it: sanitizers, 64-bit ARM under qemu, the wheel.
# and `make fuzz` hands wrong files to everything that reads any, for SECONDS (300), and counts what became of them.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := train,report,onnx,dev

.PHONY: setup demo test fuzz lint native asan neon wheel clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt CMakeLists.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "scikit-build-core>=0.11" cmake ninja
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	touch $@

demo: setup
	$(BIN)/gossamer demo

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(TESTS)

SECONDS ?= 300
fuzz: setup
	$(BIN)/python tools/fuzz.py --seconds $(SECONDS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

native: asan neon wheel

asan neon: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset $@
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build --preset $@

wheel: setup
	tests/native/wheel.sh

clean:
	rm -rf .venv build
