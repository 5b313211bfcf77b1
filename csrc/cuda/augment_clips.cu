// ifdd::augment_clips on CUDA. The definition, in plain torch, is in ifdd_kernels/reference/augment_clips.py; bytes and
// what was rejected are in docs/kernels/augment_clips.md.
#include <algorithm>
#include <utility>

#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"
#include "ifdd/cuda/scalar.h"

namespace ifdd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = 32;  // rows and columns of the result that a block forms; a lane takes a column
constexpr int kLongestSide = 16384;
constexpr int kReduction = 30;  // 93 KB of shared memory, of the 99 on sm_86 and sm_89

constexpr int kBrightness = 0, kContrast = 1, kSaturation = 2, kHue = 3, kSteps = 4;

struct AugmentSizes {
  int B, T, height, width, size, row_pixels;

  __host__ __device__ int tiles_per_side() const { return (size + kTile - 1) / kTile; }
  __host__ __device__ int tiles() const { return tiles_per_side() * tiles_per_side(); }
};

struct AugmentInputs {
  const uint8_t* frames;
  const int64_t* crop;
  const bool* flip;
  const int64_t* steps;
};

// What is done to a clip. The crop is that of the frame as it lies in memory: the flip is part of the resize.
struct ClipPlan {
  int top, left, height, width;
  bool flip, valid;
  int steps[kSteps];
  float strengths[kSteps];  // the shift of hue in sixths of the circle, in [0, 6)
};

// The pixels of an axis that pixel i of the result is a mean of, and their weights: triangles as wide as the distance
// of two pixels of the result, or of the crop if that is more. Twice `size` times every distance is an integer.
struct Taps {
  int first, count, size, centre, half;
  float inverse;

  IFDD_DEVICE int share(int pixel) const {
    const int distance = (2 * pixel + 1) * size - centre;
    return half - (distance < 0 ? -distance : distance);
  }
  IFDD_DEVICE float weight(int k) const { return static_cast<float>(share(first + k)) * inverse; }
};

IFDD_DEVICE Taps taps_of(int i, int length, int size) {
  Taps taps{0, 0, size, (2 * i + 1) * length, 2 * (length > size ? length : size), 0};
  const int begin = (taps.centre - taps.half - size) / (2 * size);
  taps.first = begin > 0 ? begin : 0;
  while (taps.share(taps.first) <= 0) ++taps.first;
  int total = 0;
#pragma unroll 1
  for (int pixel = taps.first; pixel < length && taps.share(pixel) > 0; ++pixel) {
    total += taps.share(pixel);
    ++taps.count;
  }
  taps.inverse = 1 / static_cast<float>(total);
  return taps;
}

template <class T>
IFDD_DEVICE ClipPlan plan_of(const AugmentInputs& in, const T* strengths, const AugmentSizes& size, int b) {
  ClipPlan plan{};
  const int64_t *box = in.crop + 4 * static_cast<int64_t>(b), *steps = in.steps + kSteps * static_cast<int64_t>(b);
  plan.valid = box[0] >= 0 && box[1] >= 0 && box[2] >= 1 && box[3] >= 1 && box[2] <= size.height &&
               box[3] <= size.width && box[0] <= size.height - box[2] && box[1] <= size.width - box[3];
  int taken = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t step = steps[i];
    const bool known = step >= -1 && step < kSteps;
    const int bit = known && step >= 0 ? 1 << step : 0;
    plan.valid = plan.valid && known && (taken & bit) == 0;
    taken |= bit;
    plan.steps[i] = known ? static_cast<int>(step) : -1;
    plan.strengths[i] = widen(strengths[kSteps * static_cast<int64_t>(b) + i]);
    plan.valid = plan.valid && plan.strengths[i] - plan.strengths[i] == 0;
  }
  plan.strengths[kHue] = 6 * (plan.strengths[kHue] - floorf(plan.strengths[kHue]));
  plan.flip = in.flip[b];
  if (plan.valid) {
    plan.top = static_cast<int>(box[0]);
    plan.height = static_cast<int>(box[2]);
    plan.width = static_cast<int>(box[3]);
    plan.left = plan.flip ? size.width - static_cast<int>(box[1]) - plan.width : static_cast<int>(box[1]);
  }
  return plan;
}

struct Pixel {
  float red, green, blue;
};

// NaN stays NaN.
IFDD_DEVICE float clamped(float value) { return value > 1 ? 1.0f : value < 0 ? 0.0f : value; }

IFDD_DEVICE float luma(const Pixel& p) { return 0.299f * p.red + 0.587f * p.green + 0.114f * p.blue; }

IFDD_DEVICE void blend(Pixel& p, float factor, float other) {
  const float rest = (1 - factor) * other;
  p = {clamped(factor * p.red + rest), clamped(factor * p.green + rest), clamped(factor * p.blue + rest)};
}

// As in csrc/cpu/kernels/augment_clips.cpp.
IFDD_DEVICE void turn_hue(Pixel& p, float sixths) {
  const float value = fmaxf(fmaxf(p.red, p.green), p.blue);
  const float chroma = value - fminf(fminf(p.red, p.green), p.blue);
  const float opposite = value == p.red ? p.green - p.blue : value == p.green ? p.blue - p.red : p.red - p.green;
  const float base = value == p.red ? 0.0f : value == p.green ? 2.0f : 4.0f;
  float h = base + opposite / (chroma == 0 ? 1.0f : chroma) + sixths;
  h = h < 0 ? h + 6 : h;
  h = h >= 6 ? h - 6 : h;
  p = {value - chroma * (1 - clamped(fabsf(h - 3) - 1)), value - chroma * (1 - clamped(2 - fabsf(h - 2))),
       value - chroma * (1 - clamped(2 - fabsf(h - 4)))};
}

IFDD_DEVICE void take_step(Pixel& p, int step, const ClipPlan& plan, float mean) {
  if (step == kBrightness) {
    blend(p, plan.strengths[kBrightness], 0);
  } else if (step == kContrast) {
    blend(p, plan.strengths[kContrast], mean);
  } else if (step == kSaturation) {
    blend(p, plan.strengths[kSaturation], luma(p));
  } else if (step == kHue) {
    turn_hue(p, plan.strengths[kHue]);
  }
}

// use(y, x, pixel) for the resized pixels of a tile of a frame. A warp forms a row: first down the columns of the crop,
// whose bytes lie as they are added, into its part of shared memory, then along the row.
template <class Use>
IFDD_DEVICE void resize_tile(const uint8_t* frame, const ClipPlan& plan, const AugmentSizes& size, int tile,
                             const Use& use) {
  const int side = size.tiles_per_side();
  const int y0 = tile / side * kTile, x0 = tile % side * kTile;
  const int x = x0 + lane_index(), x_last = min(x0 + kTile, size.size) - 1;
  const auto column = [&](int i) { return taps_of(plan.flip ? size.size - 1 - i : i, plan.width, size.size); };
  const Taps along = column(min(x, x_last)), first = column(plan.flip ? x_last : x0),
             last = column(plan.flip ? x0 : x_last);
  const int begin = first.first, values = 3 * (last.first + last.count - begin);
  float* row = reinterpret_cast<float*>(dynamic_shared()) + warp_index() * 3 * size.row_pixels;
  const int64_t row_bytes = 3 * static_cast<int64_t>(size.width);
  for (int y = y0 + warp_index(); y < min(y0 + kTile, size.size); y += kWarps) {
    const Taps down = taps_of(y, plan.height, size.size);
    const uint8_t* source = frame + (plan.top + down.first) * row_bytes + 3 * (plan.left + begin);
    for (int j = lane_index(); j < values; j += kWarp) {
      float sum = 0;
      for (int k = 0; k < down.count; ++k) sum += down.weight(k) * static_cast<float>(source[k * row_bytes + j]);
      row[j] = sum * (1.0f / 255);
    }
    __syncwarp();
    Pixel p{};
    for (int k = 0; k < along.count; ++k) {
      const float* read = row + 3 * (along.first - begin + k);
      const float weight = along.weight(k);
      p = {p.red + weight * read[0], p.green + weight * read[1], p.blue + weight * read[2]};
    }
    __syncwarp();
    if (x <= x_last) use(y, x, p);
  }
}

// partial (B * T, tiles): the sum of the luma that contrast takes the mean of, tile by tile; nothing is written for
// clips without that step.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    augment_mean_kernel(AugmentInputs in, const T* strengths, AugmentSizes size, float* partial) {
  const int frame = static_cast<int>(blockIdx.x) / size.tiles(), tile = static_cast<int>(blockIdx.x) % size.tiles();
  ClipPlan plan = plan_of(in, strengths, size, frame / size.T);
  bool wanted = false;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    wanted = wanted || plan.steps[i] == kContrast;
    if (wanted) plan.steps[i] = -1;
  }
  if (!plan.valid || !wanted) return;
  float sum = 0;
  const uint8_t* source = in.frames + static_cast<int64_t>(frame) * size.height * size.width * 3;
  resize_tile(source, plan, size, tile, [&](int, int, Pixel p) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) take_step(p, plan.steps[i], plan, 0);
    sum += luma(p);
  });
  sum = block_sum(sum, static_shared<BlockScratch<float>>());
  if (threadIdx.x == 0) partial[static_cast<int64_t>(frame) * size.tiles() + tile] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    augment_clips_kernel(AugmentInputs in, const T* strengths, AugmentSizes size, const float* partial, T* clips) {
  const int frame = static_cast<int>(blockIdx.x) / size.tiles(), tile = static_cast<int>(blockIdx.x) % size.tiles();
  const int b = frame / size.T, t = frame % size.T;
  const ClipPlan plan = plan_of(in, strengths, size, b);
  const int64_t plane = static_cast<int64_t>(size.size) * size.size, channel = plane * size.T;
  T* out = clips + 3 * b * channel + t * plane;
  const auto write = [&](int y, int x, const Pixel& p) {
    T* place = out + static_cast<int64_t>(y) * size.size + x;
    place[0] = narrow<T>(clamped(p.red));
    place[channel] = narrow<T>(clamped(p.green));
    place[2 * channel] = narrow<T>(clamped(p.blue));
  };
  if (!plan.valid) {
    const float nan = bits_float(0x7fc00000u);
    const int side = size.tiles_per_side();
    const int x = tile % side * kTile + lane_index();
    for (int row = warp_index(); row < kTile; row += kWarps) {
      const int y = tile / side * kTile + row;
      if (y < size.size && x < size.size) write(y, x, {nan, nan, nan});
    }
    return;
  }
  float mean = 0;
  bool wanted = false;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) wanted = wanted || plan.steps[i] == kContrast;
  if (wanted) {
    const float* sums = partial + static_cast<int64_t>(frame) * size.tiles();
    for (int i = lane_index(); i < size.tiles(); i += kWarp) mean += sums[i];
    mean = warp_sum(mean) / static_cast<float>(plane);
  }
  const uint8_t* source = in.frames + static_cast<int64_t>(frame) * size.height * size.width * 3;
  resize_tile(source, plan, size, tile, [&](int y, int x, Pixel p) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) take_step(p, plan.steps[i], plan, mean);
    write(y, x, p);
  });
}

Tensor augment_clips(const Tensor& strengths, const Tensor& frames, const Tensor& crop, const Tensor& flip,
                     const Tensor& steps, int64_t size) {
  const char* op = "augment_clips";
  check_tensor(op, "frames", frames, strengths, {-1, -1, -1, -1, 3}, {ScalarType::Byte});
  const int64_t B = frames.size(0), T = frames.size(1), height = frames.size(2), width = frames.size(3);
  check_tensor(op, "crop", crop, strengths, {B, 4}, {ScalarType::Long});
  check_tensor(op, "flip", flip, strengths, {B}, {ScalarType::Bool});
  check_activation(op, "strengths", strengths, strengths, {B, 4});
  check_tensor(op, "steps", steps, strengths, {B, 4}, {ScalarType::Long});
  for (const auto& [argument, side] : {std::pair{"frames", height}, {"frames", width}, {"size", size}}) {
    if (side < 1 || side > kLongestSide) fail(op, argument, "expected sides of 1 to ", kLongestSide, ", got ", side);
  }
  if (width > kReduction * size) {
    fail(op, "size", "expected at least 1/", kReduction, " of the frames' width, ", width, ", got ", size);
  }
  const CurrentDevice device(strengths);
  // What the columns of a tile are made of, at most, for a crop of the whole width.
  const int64_t reached = ((kTile - 1) * width + 2 * std::max(width, size)) / size + 2;
  const AugmentSizes sizes{static_cast<int>(B),     static_cast<int>(T),    static_cast<int>(height),
                           static_cast<int>(width), static_cast<int>(size), static_cast<int>(std::min(width, reached))};
  const Tensor pixels = stable::contiguous(frames), boxes = stable::contiguous(crop), flips = stable::contiguous(flip);
  const Tensor orders = stable::contiguous(steps), factors = stable::contiguous(strengths);
  const AugmentInputs in{data<uint8_t>(pixels), data<int64_t>(boxes), data<bool>(flips), data<int64_t>(orders)};
  const Tensor clips = stable::new_empty(strengths, {B, 3, T, size, size});
  const Tensor partial = stable::new_empty(strengths, {B * T, sizes.tiles()}, ScalarType::Float);
  const dim3 grid(grid_size(op, B * T * sizes.tiles()));
  const size_t shared_bytes = kWarps * 3 * sizes.row_pixels * sizeof(float);
  dispatch_dtype(op, strengths.scalar_type(), [&](auto type) {
    using E = typename decltype(type)::type;
    run(op, device, augment_mean_kernel<E>, grid, kThreads, shared_bytes, in, data<E>(factors), sizes,
        mutable_data<float>(partial));
    run(op, device, augment_clips_kernel<E>, grid, kThreads, shared_bytes, in, data<E>(factors), sizes,
        data<float>(partial), mutable_data<E>(clips));
  });
  return clips;
}

}  // namespace

IFDD_CUDA_LIBRARY(m) { m.impl("augment_clips", TORCH_BOX(&augment_clips)); }

}  // namespace ifdd::cuda
