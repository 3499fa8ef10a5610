// Fibers: see cuda_runtime.h.
#include "cuda_runtime.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <random>
#include <set>

namespace mfmd {
namespace cuda {
alignas(16) unsigned char shared_memory[227 * 1024];  // of the block that runs
}
}  // namespace mfmd

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

namespace {

constexpr std::size_t kStack = 64 * 1024;
enum State { ready, at_barrier, at_exchange, ended };

struct Fiber {
  ucontext_t context;  // where it begins; from then on, jumps: they leave the signal mask alone, which would be a system call each
  jmp_buf place;
  bool begun = false, waited = false;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  State state = ended;
  int phase = 0;  // exchanges come in pairs of rows, so that a fast lane does not overwrite what a slow one has still to read
};

std::vector<Fiber> fibers;
std::vector<std::uint64_t> rows[2];
jmp_buf scheduler;
const std::function<void()>* body = nullptr;
bool to_wait = false;
std::minstd_rand chance(1);

void enter() {
  (*body)();
  if (to_wait && !fibers[threadIdx.x].waited) {
    std::fprintf(stderr, "emulator: a thread of a kernel that may begin early ends without having waited for what is before it\n");
    std::abort();
  }
  fibers[threadIdx.x].state = ended;
  _longjmp(scheduler, 1);
}
// Not inlined, so that no jump finds changed variables of the caller in registers.
__attribute__((noinline)) void wait(State state) {
  Fiber& self = fibers[threadIdx.x];
  self.state = state;
  if (!_setjmp(self.place)) _longjmp(scheduler, 1);
}
__attribute__((noinline)) void go_on(Fiber& fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

__attribute__((noinline)) void begin(Fiber& f) {
  f.state = ready, f.phase = 0, f.begun = f.waited = false;
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get();
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
}

void run_block() {
  const unsigned n = blockDim.x;
  for (unsigned t = 0; t < n; ++t) begin(fibers[t]);
  for (;;) {
    bool moved = false;
    const unsigned offset = static_cast<unsigned>(chance()) % n;
    for (unsigned k = 0; k < n; ++k) {
      const unsigned t = (k + offset) % n;
      if (fibers[t].state != ready) continue;
      moved = true;
      threadIdx = dim3(t);
      go_on(fibers[t]);
    }
    const auto all = [&](unsigned begin, unsigned end, State state) {
      bool any = false;
      for (unsigned t = begin; t < end; ++t) {
        if (fibers[t].state != state && fibers[t].state != ended) return false;
        any = any || fibers[t].state == state;
      }
      return any;
    };
    const auto release = [&](unsigned begin, unsigned end, State state) {
      for (unsigned t = begin; t < end; ++t)
        if (fibers[t].state == state) fibers[t].state = ready;
      moved = true;
    };
    for (unsigned w = 0; w < n; w += 32)
      if (const unsigned end = std::min(n, w + 32); all(w, end, at_exchange)) release(w, end, at_exchange);
    if (all(0, n, at_barrier)) release(0, n, at_barrier);
    if (moved) continue;
    for (unsigned t = 0; t < n; ++t)
      if (fibers[t].state != ended) {
        std::fprintf(stderr, "emulator: thread %u of block (%u, %u) waits for threads that do not come\n", t, blockIdx.x, blockIdx.y);
        std::abort();
      }
    return;
  }
}

}  // namespace

void barrier() { wait(at_barrier); }

const std::uint64_t* exchange(unsigned, std::uint64_t value) {
  Fiber& f = fibers[threadIdx.x];
  auto& row = rows[f.phase];
  f.phase = 1 - f.phase;
  row[threadIdx.x] = value;
  wait(at_exchange);
  return row.data() + threadIdx.x / 32 * 32;
}

void wait_for_the_kernel_before() { fibers[threadIdx.x].waited = true; }

bool load(const void* kernel) {
  static std::set<const void*> loaded;
  return !loaded.insert(kernel).second;
}

void run(dim3 grid, dim3 threads, std::size_t shared, bool waits, const std::function<void()>& kernel) {
  if (fibers.size() < threads.x) fibers = std::vector<Fiber>(threads.x);
  for (auto& row : rows) row.assign((threads.x + 31) / 32 * 32, 0);
  body = &kernel;
  to_wait = waits;
  blockDim = threads, gridDim = grid;
  const std::size_t blocks = std::size_t{grid.x} * grid.y, offset = chance() % blocks;
  for (std::size_t k = 0; k < blocks; ++k) {
    const std::size_t block = (k + offset) % blocks;
    blockIdx = dim3(static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x));
    std::memset(mfmd::cuda::shared_memory, 0xff, shared);  // rubbish: NaN
    run_block();
  }
}

}  // namespace emulator

cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  if (const char* most = std::getenv("MFMD_EMULATED_MEMORY"); most && bytes > std::strtoull(most, nullptr, 10)) return cudaErrorMemoryAllocation;
  *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*p) return cudaErrorMemoryAllocation;
  std::memset(*p, 0xff, bytes);
  return cudaSuccess;
}
