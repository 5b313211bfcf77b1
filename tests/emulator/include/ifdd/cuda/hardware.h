// The host emulator's side of csrc/include/ifdd/cuda/hardware.h: the same functions, and what of CUDA's C++ the kernels
// use. A kernel that uses more does not compile here until it is added; float atomics are left out on purpose, since
// the kernels are deterministic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "emulator/count.h"
#include "emulator/halves.h"
#include "emulator/machine.h"
#include "emulator/warp.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define IFDD_DEVICE inline

// Where in the source a function that waits was called; the last parameters of such functions.
#define IFDD_EMULATOR_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

// --- types and built-in variables ------------------------------------------------------------------------------------

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define IFDD_EMULATOR_VECTORS(T, name)                               \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                 \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };           \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
IFDD_EMULATOR_VECTORS(float, float)
IFDD_EMULATOR_VECTORS(int, int)
IFDD_EMULATOR_VECTORS(unsigned, uint)
#undef IFDD_EMULATOR_VECTORS

inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }

#define threadIdx (::emulator::position().thread)
#define blockIdx (::emulator::position().block)
#define blockDim (::emulator::position().block_size)
#define gridDim (::emulator::position().grid_size)

// --- barriers --------------------------------------------------------------------------------------------------------

inline void __syncthreads(IFDD_EMULATOR_CALLER) { ::emulator::block_barrier({"__syncthreads", file, line}); }
inline int __syncthreads_count(int value, IFDD_EMULATOR_CALLER) {
  return ::emulator::block_barrier({"__syncthreads_count", file, line}, value != 0);
}
inline int __syncthreads_or(int value, IFDD_EMULATOR_CALLER) {
  return ::emulator::block_barrier({"__syncthreads_or", file, line}, value != 0) > 0;
}
inline int __syncthreads_and(int value, IFDD_EMULATOR_CALLER) {
  return ::emulator::block_barrier({"__syncthreads_and", file, line}, value == 0) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, IFDD_EMULATOR_CALLER) {
  ::emulator::warp_barrier({"__syncwarp", file, line}, mask);
}
inline void __threadfence() { ::emulator::fence(); }
inline void __threadfence_block() { ::emulator::fence(); }

// --- exchanges between lanes -----------------------------------------------------------------------------------------

namespace emulator {

// The value of lane `source`.
template <class T>
T exchange(const Site& site, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange_bits(site, mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

// Lanes exchange within segments of `width`; a lane whose source is outside gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, IFDD_EMULATOR_CALLER) {
  const int lane = ::emulator::position().lane;
  return ::emulator::exchange({"__shfl_sync", file, line}, mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, IFDD_EMULATOR_CALLER) {
  const int lane = ::emulator::position().lane, source = lane ^ bits;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return ::emulator::exchange({"__shfl_xor_sync", file, line}, mask, value, inside ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, IFDD_EMULATOR_CALLER) {
  const int lane = ::emulator::position().lane, step = static_cast<int>(by);
  const bool inside = (lane & (width - 1)) + step < width;
  return ::emulator::exchange({"__shfl_down_sync", file, line}, mask, value, inside ? lane + step : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, IFDD_EMULATOR_CALLER) {
  const int lane = ::emulator::position().lane, step = static_cast<int>(by);
  const bool inside = (lane & (width - 1)) >= step;
  return ::emulator::exchange({"__shfl_up_sync", file, line}, mask, value, inside ? lane - step : lane);
}
inline unsigned __ballot_sync(unsigned mask, int value, IFDD_EMULATOR_CALLER) {
  return ::emulator::ballot({"__ballot_sync", file, line}, mask, value != 0);
}
inline int __any_sync(unsigned mask, int value, IFDD_EMULATOR_CALLER) {
  return ::emulator::ballot({"__any_sync", file, line}, mask, value != 0) != 0;
}
inline int __all_sync(unsigned mask, int value, IFDD_EMULATOR_CALLER) {
  return ::emulator::ballot({"__all_sync", file, line}, mask, value == 0) == 0;
}

// --- atomics on integers ---------------------------------------------------------------------------------------------

template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicAdd(T* address, std::common_type_t<T> value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicOr(T* address, std::common_type_t<T> value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicExch(T* address, std::common_type_t<T> value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  T seen = expected;
  __atomic_compare_exchange_n(address, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return seen;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicMax(T* address, std::common_type_t<T> value) {
  T seen = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (seen < value &&
         !__atomic_compare_exchange_n(address, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return seen;
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

using std::max;
using std::min;

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* address) {
  return *address;
}

// --- host side of the runtime ----------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };

namespace emulator {
inline std::string& last_error() {
  static std::string message;
  return message;
}
}  // namespace emulator

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : ::emulator::last_error().c_str();
}

namespace ifdd::cuda {

// --- memory ----------------------------------------------------------------------------------------------------------

template <class Word>
IFDD_EMULATOR_ACCESS Word read_word(const void* address, IFDD_EMULATOR_CALLER) {
  ::emulator::check_alignment({"read_word", file, line}, address, sizeof(Word));
  IFDD_EMULATOR_COUNTED(load, address, sizeof(Word));
  return *static_cast<const Word*>(address);
}

template <class Word>
IFDD_EMULATOR_ACCESS void write_word(void* address, Word word, IFDD_EMULATOR_CALLER) {
  ::emulator::check_alignment({"write_word", file, line}, address, sizeof(Word));
  IFDD_EMULATOR_COUNTED(store, address, sizeof(Word));
  *static_cast<Word*>(address) = word;
}

template <class Word>
IFDD_EMULATOR_ACCESS void write_global(void* address, const Word& word, IFDD_EMULATOR_CALLER) {
  ::emulator::check_global({"write_global", file, line}, address);
  ::emulator::check_alignment({"write_global", file, line}, address, sizeof(Word));
  IFDD_EMULATOR_COUNTED(store, address, sizeof(Word));
  *static_cast<Word*>(address) = word;
}

template <class T>
T& static_shared() {
  static const char tag = 0;
  return *static_cast<T*>(::emulator::static_shared(&tag, sizeof(T), alignof(T)));
}

inline unsigned char* dynamic_shared() { return ::emulator::dynamic_shared(); }

template <int Bytes>
IFDD_EMULATOR_ACCESS void copy_async(void* shared, const void* global, bool valid, IFDD_EMULATOR_CALLER) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const ::emulator::Site site{"copy_async", file, line};
  struct alignas(Bytes) Word {
    unsigned char byte[Bytes];
  };
  Word word{};
  // The source is read here, where a wrong address has a line. It must not change before the wait, as on a GPU.
  if (valid) {
    ::emulator::check_alignment(site, global, Bytes);
    IFDD_EMULATOR_COUNTED(load, global, Bytes);
    word = *static_cast<const Word*>(global);
  }
  IFDD_EMULATOR_COUNTED(store, shared, Bytes);
  ::emulator::copy_async(site, shared, &word, Bytes);
}

inline void copy_async_commit() { ::emulator::copy_async_commit(); }

template <int Pending>
void copy_async_wait() {
  ::emulator::copy_async_wait(Pending);
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half, IFDD_EMULATOR_CALLER) {
  ::emulator::mma({"mma_m16n8k16", file, line}, d, a, b, ::emulator::Element::half);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16,
                         IFDD_EMULATOR_CALLER) {
  ::emulator::mma({"mma_m16n8k16", file, line}, d, a, b, ::emulator::Element::bfloat16);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], IFDD_EMULATOR_CALLER) {
  ::emulator::mma({"mma_m16n8k8_tf32", file, line}, d, a, b, ::emulator::Element::tf32);
}

inline uint32_t round_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & ~0x1fffu;
}

inline void load_matrices(uint32_t (&r)[4], const void* row, IFDD_EMULATOR_CALLER) {
  ::emulator::load_matrices({"load_matrices", file, line}, r, read_word<::emulator::MatrixRow>(row, file, line), false);
}

inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, IFDD_EMULATOR_CALLER) {
  ::emulator::load_matrices({"load_matrices_transposed", file, line}, r,
                            read_word<::emulator::MatrixRow>(row, file, line), true);
}

// --- host ------------------------------------------------------------------------------------------------------------

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(Parameters...), size_t bytes) {
  try {
    ::emulator::allow_shared_bytes(reinterpret_cast<const void*>(kernel), bytes);
    return cudaSuccess;
  } catch (const ::emulator::Error& error) {
    ::emulator::last_error() = error.what();
    return cudaErrorInvalidValue;
  }
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, Arguments&&... arguments) {
  try {
    ::emulator::launch(reinterpret_cast<const void*>(kernel), {how.grid.x, how.grid.y, how.grid.z},
                       {how.block.x, how.block.y, how.block.z}, how.shared_bytes, [&]() IFDD_EMULATOR_UNCOUNTED {
                         IFDD_EMULATOR_KERNEL_BEGINS();
                         kernel(arguments...);
                       });
    return cudaSuccess;
  } catch (const ::emulator::Error& error) {
    ::emulator::last_error() = error.what();
    return cudaErrorLaunchFailure;
  }
}

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;
};

inline DeviceLimits device_limits() {
  return {::emulator::settings().multiprocessors, ::emulator::settings().shared_bytes_per_block};
}

}  // namespace ifdd::cuda
