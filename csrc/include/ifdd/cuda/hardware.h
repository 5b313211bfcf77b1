// Everything in csrc/cuda that only a GPU has: shared memory, inline PTX, kernel launches. The rest of csrc/cuda is C++
// that any compiler takes, so the tests compile the same files for the host: tests/emulator/include holds a header of
// this name with the same functions, found first there.
//
// Rules that keep a kernel file common to both:
//   - shared memory comes from static_shared<T>() and dynamic_shared(), never from __shared__ variables;
//   - kernels are started with launch(), never with <<<>>>;
//   - what needs inline PTX or a newer architecture than sm_80 becomes a function here, with a portable path beside it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

#define IFDD_DEVICE __device__ __forceinline__

namespace ifdd::cuda {

// --- memory ----------------------------------------------------------------------------------------------------------

// One access of sizeof(Word) bytes; the address must be a multiple of that.
template <class Word>
IFDD_DEVICE Word read_word(const void* address) {
  return *static_cast<const Word*>(address);
}

template <class Word>
IFDD_DEVICE void write_word(void* address, Word word) {
  *static_cast<Word*>(address) = word;
}

// The same to global memory. 16 bytes are one store in the machine's code too: an assignment of elements that were
// computed apart can become a store of each. Pairs are assigned; written out, they cost pool_tokens registers it has
// not.
template <class Word>
IFDD_DEVICE void write_global(void* address, const Word& word) {
  if constexpr (sizeof(Word) == 16) {
    uint32_t part[4];
    memcpy(part, &word, sizeof(Word));
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(address)), "r"(part[0]),
                 "r"(part[1]), "r"(part[2]), "r"(part[3])
                 : "memory");
  } else {
    *static_cast<Word*>(address) = word;
  }
}

// The block's object of type T in shared memory, the same one wherever a kernel asks for that type. Not initialised.
template <class T>
IFDD_DEVICE T& static_shared() {
  __shared__ T storage;
  return storage;
}

// The shared memory whose size the launch gives, on a 128-byte boundary. Not initialised.
IFDD_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char ifdd_dynamic_shared[];
  return ifdd_dynamic_shared;
}

// --- asynchronous copies from global to shared memory (sm_80) --------------------------------------------------------

// Copies Bytes (4, 8 or 16, both addresses multiples of it) without passing through registers; writes zeros, and reads
// nothing, where `valid` is false. The data is there for the copying thread after copy_async_wait, for others after a
// barrier behind it.
template <int Bytes>
IFDD_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const size_t from = __cvta_generic_to_global(global);
  const int read = valid ? Bytes : 0;
  if constexpr (Bytes == 16) {  // past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(read) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(Bytes), "r"(read)
                 : "memory");
  }
}

// Closes a group of the copies this thread has started since the last one.
IFDD_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of this thread's latest groups are still under way.
template <int Pending>
IFDD_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// --- tensor cores (sm_80) --------------------------------------------------------------------------------------------
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments"):
//   m16n8k16, 16-bit pairs  A: a0 (g, 2t) a1 (g+8, 2t) a2 (g, 2t+8) a3 (g+8, 2t+8)   B: b0 (2t, g) b1 (2t+8, g)
//   m16n8k8, TF32           A: a0 (g, t)  a1 (g+8, t)  a2 (g, t+4)  a3 (g+8, t+4)    B: b0 (t, g)  b1 (t+4, g)
//   both                    D: d0 (g, 2t) d1 (g, 2t+1) d2 (g+8, 2t) d3 (g+8, 2t+1)

// D += A B. The last argument only names the element type.
IFDD_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

IFDD_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Elements are the bits of floats; the unit reads sign, exponent and the 10 highest bits of the fraction.
IFDD_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float rounded to the nearest TF32 number, ties away from zero, as the bits of a float.
IFDD_DEVICE uint32_t round_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8
// (16-byte aligned) and receives in r[i] the elements (lane / 4, 2 (lane % 4)) and the next of matrix i.
IFDD_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same with every matrix transposed: r[i] holds the elements (2 (lane % 4), lane / 4) and the one below.
IFDD_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// --- host ------------------------------------------------------------------------------------------------------------

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic_shared()
  cudaStream_t stream = nullptr;
};

// Lets a kernel be started with that much dynamic shared memory on the current device; beyond 48 KB, static memory
// included, no launch succeeds without it. The limit belongs to the kernel, which other threads start with other sizes
// meanwhile: it is raised, never lowered.
template <class... Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(Parameters...), size_t bytes) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  cudaFuncAttributes now{};
  if (const cudaError_t error = cudaFuncGetAttributes(&now, kernel); error != cudaSuccess) return error;
  if (now.maxDynamicSharedSizeBytes >= static_cast<int>(bytes)) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

// Starts a kernel; returns the error of the launch, if any.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, Arguments&&... arguments) {
  kernel<<<how.grid, how.block, how.shared_bytes, how.stream>>>(std::forward<Arguments>(arguments)...);
  return cudaGetLastError();
}

// What a launcher chooses by, of the current device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;  // dynamic and static together
};

inline DeviceLimits device_limits() {
  int device = 0;
  DeviceLimits limits{};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return limits;
}

}  // namespace ifdd::cuda
