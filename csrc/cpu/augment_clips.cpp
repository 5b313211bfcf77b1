// ifdd::augment_clips on the CPU: checks, weights of the resize, memory and threads. The arithmetic is in
// kernels/augment_clips.cpp; the definition, in plain torch, in ifdd_kernels/reference/augment_clips.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "boundary.h"
#include "buffer.h"
#include "floating.h"
#include "kernels/augment_clips.h"

namespace ifdd::cpu {
namespace {

constexpr int64_t kLongestSide = int64_t{1} << 20;

// What is done to a clip, checked.
struct ClipPlan {
  int64_t top, left, height, width;
  bool flip;
  int steps[kColourSteps];
  int step_count = 0;
};

// The weights of one axis as (first, weight) of AxisWeights: triangles as wide as the distance of two pixels of the
// result, or of the crop if that is more. Twice `size` times every distance is an integer.
template <class A>
class Axis {
 public:
  Axis(int64_t length, int64_t size, bool reversed, double scale)
      : first_(padded(size)), taps_(0), half_(2 * std::max(length, size)) {
    std::vector<int64_t> count(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t centre = (2 * i + 1) * length;
      // Of pixel j the distance is (2 j + 1) size - centre; those within half_ of it have a weight.
      const int64_t begin = std::max<int64_t>(0, (centre - half_ - size) / (2 * size));
      int64_t first = begin;
      while (weight(first, size, centre) <= 0) ++first;
      int64_t end = first;
      while (end < length && weight(end, size, centre) > 0) ++end;
      first_[i] = first;
      count[i] = end - first;
      taps_ = std::max(taps_, count[i]);
    }
    weights_.resize(first_.size() * taps_);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t centre = (2 * i + 1) * length, begin = first_[i];
      int64_t total = 0;
      for (int64_t k = 0; k < count[i]; ++k) total += weight(begin + k, size, centre);
      first_[i] = std::min(begin, length - taps_);
      for (int64_t k = 0; k < count[i]; ++k) {
        weights_[i * taps_ + begin - first_[i] + k] =
            static_cast<A>(scale * static_cast<double>(weight(begin + k, size, centre)) / static_cast<double>(total));
      }
    }
    if (reversed) {
      std::reverse(first_.begin(), first_.begin() + size);
      std::reverse(weights_.begin(), weights_.begin() + size * taps_);
      // That reversed the taps of each pixel, too.
      for (int64_t i = 0; i < size; ++i) {
        std::reverse(weights_.begin() + i * taps_, weights_.begin() + (i + 1) * taps_);
      }
    }
  }

  AxisWeights<A> weights() const { return {first_.data(), weights_.data(), taps_}; }

 private:
  int64_t weight(int64_t pixel, int64_t size, int64_t centre) const {
    return half_ - std::abs((2 * pixel + 1) * size - centre);
  }

  std::vector<int64_t> first_;
  Buffer<A> weights_;
  int64_t taps_, half_;
};

void check_side(const char* op, const char* argument, const char* what, int64_t side) {
  if (side < 1 || side > kLongestSide) fail(op, argument, "expected ", what, " of 1 to 2**20, got ", side);
}

std::vector<ClipPlan> make_plans(const char* op, int64_t B, int64_t height, int64_t width, const Tensor& crop,
                                 const Tensor& flip, const Tensor& steps) {
  const Tensor boxes = as_contiguous(crop), flips = as_contiguous(flip), orders = as_contiguous(steps);
  std::vector<ClipPlan> plans(B);
  for (int64_t b = 0; b < B; ++b) {
    ClipPlan& plan = plans[b];
    const int64_t* box = data<int64_t>(boxes) + 4 * b;
    plan.top = box[0], plan.left = box[1], plan.height = box[2], plan.width = box[3];
    if (plan.top < 0 || plan.left < 0 || plan.height < 1 || plan.width < 1 || plan.height > height ||
        plan.width > width || plan.top > height - plan.height || plan.left > width - plan.width) {
      fail(op, "crop", "expected (top, left, height, width) inside the frames of ", height, " x ", width, ", got (",
           plan.top, ", ", plan.left, ", ", plan.height, ", ", plan.width, ") for clip ", b);
    }
    plan.flip = data<bool>(flips)[b];
    // The flip is done along with the resize: this is the crop in the frame as it lies in memory.
    if (plan.flip) plan.left = width - plan.left - plan.width;
    bool taken[kColourSteps] = {};
    for (int i = 0; i < kColourSteps; ++i) {
      const int64_t step = data<int64_t>(orders)[kColourSteps * b + i];
      if (step == -1) continue;
      if (step < 0 || step >= kColourSteps || taken[step]) {
        fail(op, "steps", "expected numbers from -1 to 3, each step at most once, got ", step, " as step ", i,
             " of clip ", b);
      }
      taken[step] = true;
      plan.steps[plan.step_count++] = static_cast<int>(step);
    }
  }
  return plans;
}

Tensor augment_clips(const Tensor& strengths, const Tensor& frames, const Tensor& crop, const Tensor& flip,
                     const Tensor& steps, int64_t size) {
  const char* op = "augment_clips";
  check_tensor(op, "frames", frames, {-1, -1, -1, -1, 3}, {ScalarType::Byte});
  const int64_t B = frames.size(0), T = frames.size(1), height = frames.size(2), width = frames.size(3);
  check_tensor(op, "crop", crop, {B, 4}, {ScalarType::Long});
  check_tensor(op, "flip", flip, {B}, {ScalarType::Bool});
  check_floating(op, "strengths", strengths, {B, 4});
  check_tensor(op, "steps", steps, {B, 4}, {ScalarType::Long});
  check_side(op, "frames", "a height", height);
  check_side(op, "frames", "a width", width);
  check_side(op, "size", "a side", size);
  check_extent(op, "size", {B, T, 3, size, size});
  const std::vector<ClipPlan> plans = make_plans(op, B, height, width, crop, flip, steps);
  const Tensor clips = empty(strengths, {B, 3, T, size, size}, strengths.scalar_type());
  const Tensor pixels = as_contiguous(frames);
  const Tensor factors = accumulable(strengths);
  dispatch(strengths.scalar_type(), [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    const A* given = data<A>(factors);
    for (int64_t i = 0; i < B * kColourSteps; ++i) {
      if (!std::isfinite(given[i])) {
        fail(op, "strengths", "expected finite numbers, got ", given[i], " for clip ", i / kColourSteps);
      }
    }
    const auto kernel = IFDD_SELECT(augment_frame<E>);
    const int64_t stride = padded(size);
    stable::parallel_for(0, B * T, 1, [&](int64_t begin, int64_t end) {
      Buffer<A> planes, row;
      for (int64_t b = begin / T; b * T < end; ++b) {
        const ClipPlan& plan = plans[b];
        const Axis<A> rows(plan.height, size, false, 1.0 / 255), columns(plan.width, size, plan.flip, 1.0);
        const bool whole = std::count(plan.steps, plan.steps + plan.step_count, kContrast) > 0;
        planes.resize(std::max<size_t>(planes.size(), (whole ? size : 1) * 3 * stride));
        row.assign(3 * plan.width + 4, A(0));
        AugmentedFrame<E> call{};
        call.row_bytes = 3 * width;
        call.width = plan.width;
        call.rows = rows.weights();
        call.columns = columns.weights();
        call.size = size;
        std::copy_n(plan.steps, plan.step_count, call.steps);
        call.step_count = plan.step_count;
        std::copy_n(given + b * kColourSteps, kColourSteps, call.strengths);
        A& hue = call.strengths[kHue];
        hue = 6 * (hue - std::floor(hue));
        call.row = row.data();
        call.planes = planes.data();
        call.channel = T * size * size;
        for (int64_t t = std::max(begin - b * T, int64_t{0}); t < std::min(end - b * T, T); ++t) {
          call.crop = data<uint8_t>(pixels) + (((b * T + t) * height + plan.top) * width + plan.left) * 3;
          call.out = mutable_data<E>(clips) + b * 3 * call.channel + t * size * size;
          kernel(call);
        }
      }
    });
  });
  return clips;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) { m.impl("augment_clips", IFDD_BOX(&augment_clips)); }

}  // namespace ifdd::cpu
