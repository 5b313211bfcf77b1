// Kernels behind the tokens, free of torch: correlation of frames, the two softmaxes and the offsets of split_index.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// The offsets of B clips of T frames, K = T / 2 positions in each group. Group 0 is static, from softmax(+M); group 1
// is dynamic, from softmax(-M).
template <class A>
struct Offsets {
  int64_t T;
  double reach;
  const A* correlation;  // (B, T, T)
  const A* weight[2];    // (K, T * T)
};

template <class A>
struct OffsetsForward {
  Offsets<A> in;
  A* index[2];  // (B, K)
};

template <class A>
struct OffsetsBackward {
  Offsets<A> in;
  const A* grad_index[2];     // (B, K)
  const A* grad_correlation;  // (B, T, T): the gradient that reaches the correlation directly
  A* attention[2];            // (B, T * T) softmaxes, recomputed
  A* inner[2];                // (B, K) gradients of the argument of tanh
  A* total;                   // (B, T, T) the whole gradient of the correlation
};

// correlate: out (B, T, T) = scale z z^T, z (B, T, D). Row r of the B * T in [begin, end) writes the products of its
// frame with the frames from itself on, and their mirror images, added in double; scratch holds T * D elements.
// correlate_backward: rows r of scale (G + G^T) z; scratch holds D elements.
// offsets: clips [begin, end); scratch holds T * T elements.
// offsets_weight_gradient: elements [begin, end) of the (K, T * T) gradient of a group's weight.
IFDD_DECLARE_PER_ISA(template <class T> void correlate(const T* z, int64_t frames, int64_t D, double scale,
                                                       int64_t begin, int64_t end, double* scratch, acc_t<T>* out);
                     template <class T>
                     void correlate_backward(const acc_t<T>* grad, const T* z, int64_t frames, int64_t D,
                                             acc_t<T> scale, int64_t begin, int64_t end, acc_t<T>* scratch, T* grad_z);
                     template <class A>
                     void offsets(const OffsetsForward<A>& op, int64_t begin, int64_t end, A* scratch);
                     template <class A> void offsets_backward(const OffsetsBackward<A>& op, int64_t begin, int64_t end);
                     template <class A>
                     void offsets_weight_gradient(const A* inner, const A* attention, int64_t clips, int64_t K,
                                                  int64_t pairs, int64_t begin, int64_t end, A* out);)

}  // namespace ifdd::cpu
