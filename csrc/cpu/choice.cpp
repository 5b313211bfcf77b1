// How a process without Python chooses, and how ifdd_kernels/_products.py does.
#include "choice.h"

#include <atomic>
#include <cstdint>

namespace {

using torch::headeronly::ScalarType;

constexpr int32_t kUndecided = -1, kDtypes = 2;
using Decide = int32_t (*)(int32_t dtype);

std::atomic<int32_t> chosen[kDtypes] = {kUndecided, kUndecided};
std::atomic<Decide> decide{nullptr};
// Of this thread alone: a measurement runs both ways while other threads compute.
thread_local int32_t forced[kDtypes] = {kUndecided, kUndecided};

// As the C functions below count them: bfloat16, float16.
int32_t place(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? 0 : dtype == ScalarType::Half ? 1 : kUndecided;
}

// With matrix tiles (AMX) bfloat16 products are fast everywhere; with AVX512_BF16 on some CPUs and not on others, and
// float16 ones are slow by orders of magnitude on most.
int32_t guess(int32_t dtype) {
#if defined(__x86_64__)
  return dtype == 0 && __builtin_cpu_supports("amx-bf16") ? 0 : 1;
#else
  return dtype == 0 ? 0 : 1;
#endif
}

}  // namespace

namespace ifdd::cpu {

bool through_float32(ScalarType dtype) {
  const int32_t index = place(dtype);
  if (index == kUndecided) return false;
  if (forced[index] != kUndecided) return forced[index] != 0;
  int32_t choice = chosen[index].load();
  if (choice == kUndecided) {
    const Decide ask = decide.load();
    choice = ask != nullptr ? ask(index) : kUndecided;
    if (choice == kUndecided) choice = guess(index);
    chosen[index].store(choice);
  }
  return choice != 0;
}

}  // namespace ifdd::cpu

// dtype: 0 bfloat16, 1 float16. choice: 0 PyTorch's own products, 1 through float32, -1 undecided.
#define IFDD_EXPORT extern "C" __attribute__((visibility("default")))

IFDD_EXPORT void ifdd_decide_products_by(Decide function) { decide.store(function); }
IFDD_EXPORT void ifdd_choose_products(int32_t dtype, int32_t choice) { chosen[dtype].store(choice); }
IFDD_EXPORT void ifdd_force_products(int32_t dtype, int32_t choice) { forced[dtype] = choice; }
IFDD_EXPORT int32_t ifdd_guess_products(int32_t dtype) { return guess(dtype); }
