// Several neighbouring elements in one memory access. A kernel takes the number N as a template argument; the launcher
// picks 16 bytes where addresses and strides allow (vector_fits) and single elements elsewhere.
#pragma once

#include <cstdint>

#include "ifdd/cuda/scalar.h"

namespace ifdd::cuda {

// Elements of T in the widest access.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  static_assert(sizeof(T) * N <= 16, "wider than one access");
  T element[N];
};

// N elements at p, a multiple of their size in bytes.
template <int N, class T>
IFDD_DEVICE Vector<T, N> load_vector(const T* p) {
  return read_word<Vector<T, N>>(p);
}

// The same to global memory; 16 bytes in one instruction.
template <int N, class T>
IFDD_DEVICE void store_vector(T* p, const Vector<T, N>& vector) {
  if constexpr (N == 1) {
    *p = vector.element[0];
  } else {
    write_global(p, vector);
  }
}

// Both in the accumulation type.
template <int N, class T>
IFDD_DEVICE void load(const T* p, acc_t<T> (&out)[N]) {
  const Vector<T, N> vector = load_vector<N>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = widen(vector.element[i]);
}

template <int N, class T>
IFDD_DEVICE void store(T* p, const acc_t<T> (&in)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.element[i] = narrow<T>(in[i]);
  store_vector<N>(p, vector);
}

// To shared memory.
template <int N>
IFDD_DEVICE void store_shared(float* p, const float (&in)[N]) {
  Vector<float, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.element[i] = in[i];
  write_word(p, vector);
}

// Whether rows that start at p + i * stride, i any integer and stride any of those given, can be read in vectors of N.
template <int N, class T, class... Strides>
bool vector_fits(const T* p, Strides... strides) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * N) == 0 && ((strides % N == 0) && ...);
}

}  // namespace ifdd::cuda
