// Kernels of augment_clips, free of torch.
#pragma once

#include <cstdint>

#include "ifdd/isa.h"
#include "ifdd/padding.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

enum ColourStep : int { kBrightness, kContrast, kSaturation, kHue, kColourSteps };

// Weights of one axis: pixel i of the result is the sum of weight[i * taps + k] times pixel first[i] + k of the crop,
// all of them inside it. Behind the last pixel of the result zeros follow, up to a multiple of kPad.
template <class A>
struct AxisWeights {
  const int64_t* first;
  const A* weight;
  int64_t taps;
};

template <class T>
struct AugmentedFrame {
  using A = acc_t<T>;
  const uint8_t* crop;  // its first pixel; red, green and blue of a pixel lie together
  int64_t row_bytes;    // from row to row of the frame
  int64_t width;        // of the crop
  AxisWeights<A> rows, columns;
  int64_t size;
  int steps[kColourSteps];
  int step_count;
  A strengths[kColourSteps];  // the shift of hue in sixths of the circle, in [0, 6)
  A* row;                     // 3 * width + 4, the last four finite
  A* planes;  // (rows, 3, size padded to kPad), of all rows where contrast is among the steps, else of one
  T* out;
  int64_t channel;  // from channel to channel of the result
};

IFDD_DECLARE_PER_ISA(template <class T> void augment_frame(const AugmentedFrame<T>& op);)

}  // namespace ifdd::cpu
