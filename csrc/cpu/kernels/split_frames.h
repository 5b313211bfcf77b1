// Kernels of split_frames, free of torch: what csrc/cpu/split_frames.cpp hands to csrc/cpu/kernels/split_frames.cpp.
//
// "Slot" k counts the output frames of both groups: the Ks static ones first, then the Kd dynamic ones; K = Ks + Kd.
// Groups are contiguous, (B, Ks, N, C) and (B, Kd, N, C).
#pragma once

#include <cstdint>

#include "ifdd/frames.h"
#include "ifdd/padding.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

// Where an output frame comes from: (1 - fraction) x[first] + fraction x[second]; x[first] alone for integer indexes.
template <class A>
struct Sample {
  int64_t first;
  int64_t second;
  A fraction;
  A slope;  // d position / d index: 0 where the position was clamped
};

// An output frame that reads an input frame, and its weight there.
template <class A>
struct Reader {
  int64_t slot;
  A factor;
};

struct SplitSizes {
  int64_t T, N, C, Ks, Kd;
};

template <class T>
struct SplitForward {
  using A = acc_t<T>;
  SplitSizes size;
  Frames<T> x;
  bool gather;               // integer indexes
  const Sample<A>* samples;  // (B, K)
  const A* weight[2];        // (C) per group: static, dynamic; null without norms
  const A* bias[2];          // (C)
  A eps;
  T* frames[2];
  A* stats;  // (B, K, N, 2) mean and 1 / standard deviation; unused without norms
};

// Positions that one unit of backward work spans at most. Fixed: the partial sums, and so the bits of the result, are
// the same for any number of threads.
constexpr int64_t kChunk = 16;

// Channels between the gradients of the output frames and those of the input frames: what lies between them, (K,
// kStrip) numbers, stays in the first-level cache.
constexpr int64_t kStrip = 64;

template <class T>
struct SplitBackward {
  using A = acc_t<T>;
  SplitSizes size;
  Frames<T> x;
  bool gather;
  const Sample<A>* samples;
  const Reader<A>* readers;     // of all input frames of all clips, one after the other
  const int64_t* reader_begin;  // (B * T + 1): where those of an input frame begin
  const A* weight[2];
  const A* stats;
  const T* grad_frames[2];
  T* grad_x;          // (B, T, N, C) contiguous
  A* index_partial;   // (B * chunks, K); null for integer indexes
  A* weight_partial;  // (B * chunks, 4, C): weight and bias of static, weight and bias of dynamic; null without norms
};

constexpr int64_t chunks(const SplitSizes& s) { return (s.N + kChunk - 1) / kChunk; }

// In elements of the accumulation type: gradients of the output frames of a strip, sums for the slopes, and the two
// means of every slot.
constexpr int64_t split_backward_scratch(const SplitSizes& s) { return (s.Ks + s.Kd) * (kStrip + kPad + 2); }

// forward: positions [begin, end) of the B * N. backward: chunks [begin, end) of the B * chunks(size).
IFDD_DECLARE_PER_ISA(template <class T> void split_forward(const SplitForward<T>& op, int64_t begin, int64_t end);
                     template <class T>
                     void split_backward(const SplitBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch);)

}  // namespace ifdd::cpu
