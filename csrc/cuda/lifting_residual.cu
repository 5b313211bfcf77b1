// ifdd::lifting_residual and its backward on CUDA. The definition, in plain torch, is in
// ifdd_kernels/reference/lifting_residual.py.
#include <tuple>

#include "cuda/rows.h"

namespace ifdd::cuda {
namespace {

constexpr int kThreads = 128;

// Frames of which the mean over time and channels enters the residual with a sign.
template <class T>
struct Term {
  Frames<T> x;
  int64_t frames;
  float sign;
};

// residual (B, N), or what it has already, plus the signed means of one or two tensors. A block takes a clip and a
// token, a team of its threads a frame: few channels fill no block, 96 in bfloat16 are 12 accesses.
template <class T, int V, int Terms, bool Add>
__global__ void __launch_bounds__(kThreads)
    lifting_residual_kernel(Term<T> first, Term<T> second, int64_t cells, int64_t N, int64_t C, float* residual) {
  const Term<T> terms[2] = {first, second};
  BlockScratch<float>& scratch = static_shared<BlockScratch<float>>();
  const int across = C >= kThreads * V ? kThreads : C == 0 ? 1 : static_cast<int>(C / V);
  const int thread = static_cast<int>(threadIdx.x), teams = kThreads / across, team = thread / across;
  const int64_t first_channel = team < teams ? thread % across * V : C;  // the threads left over only add up
  for (int64_t cell = blockIdx.x; cell < cells; cell += gridDim.x) {
    const int64_t b = cell / N, n = cell % N;
    float total = 0;
#pragma unroll
    for (int i = 0; i < Terms; ++i) {
      const Term<T>& term = terms[i];
      float sum = 0;
      for (int64_t t = team; t < term.frames; t += teams) {
        const T* row = term.x.row(b, t, n);
        for (int64_t c = first_channel; c < C; c += across * V) {
          float value[V];
          load(row + c, value);
#pragma unroll
          for (int j = 0; j < V; ++j) sum += value[j];
        }
      }
      // No frames: the mean is not defined, 0 / 0, as in PyTorch.
      total += term.sign * (sum / (static_cast<float>(term.frames) * static_cast<float>(C)));
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) residual[cell] = Add ? residual[cell] + total : total;
  }
}

// grad_x (B, K, N, C): grad (B, N) times share. A warp takes a row.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    lifting_residual_backward_kernel(const float* grad, float share, int64_t rows, int64_t K, int64_t N, int64_t C,
                                     T* grad_x) {
  constexpr int kWarps = kThreads / kWarp;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); r < rows;
       r += gridDim.x * int64_t{kWarps}) {
    const float value = grad[r / (K * N) * N + r % N] * share;
    float values[V];
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = value;
    for (int64_t c = lane_index() * V; c < C; c += kWarp * V) store(grad_x + r * C + c, values);
  }
}

void check_inputs(const char* op, const Tensor& x, const Tensor& approximation) {
  check_activation(op, "x", x, x, {-1, -1, -1, -1});
  check_activation(op, "approximation", approximation, x, {x.size(0), -1, x.size(2), x.size(3)});
}

constexpr int64_t kMostBlocks = 1 << 30;

template <class T>
Term<T> term_of(const Tensor& rows, float sign) {
  return {frames_of<T>(rows), rows.size(1), sign};
}

Tensor lifting_residual(const Tensor& x, const Tensor& approximation) {
  const char* op = "lifting_residual";
  check_inputs(op, x, approximation);
  const CurrentDevice device(x);
  const int64_t N = x.size(2), C = x.size(3), cells = x.size(0) * N;
  const Tensor rows[2] = {dense_rows(x), dense_rows(approximation)};
  const Tensor residual = stable::new_empty(x, {x.size(0), N}, ScalarType::Float);
  float* out = mutable_data<float>(residual);
  const dim3 grid(grid_size(op, std::min(cells, kMostBlocks)));
  if (x.scalar_type() == approximation.scalar_type()) {
    dispatch_dtype(op, x.scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      const Term<T> terms[2] = {term_of<T>(rows[0], 1), term_of<T>(rows[1], -1)};
      constexpr int kWide = kVector<T>;
      dispatch_vector<T>(rows_fit<kWide>(terms[0].x, C) && rows_fit<kWide>(terms[1].x, C), [&](auto vector) {
        run(op, device, lifting_residual_kernel<T, decltype(vector)::value, 2, false>, grid, kThreads, 0, terms[0],
            terms[1], cells, N, C, out);
      });
    });
    return residual;
  }
  for (int i = 0; i < 2; ++i) {  // two element types: a pass each
    dispatch_dtype(op, rows[i].scalar_type(), [&](auto type) {
      using T = typename decltype(type)::type;
      const Term<T> term = term_of<T>(rows[i], i == 0 ? 1.0f : -1.0f);
      dispatch_vector<T>(rows_fit<kVector<T>>(term.x, C), [&](auto vector) {
        constexpr int V = decltype(vector)::value;
        const auto kernel = i == 0 ? lifting_residual_kernel<T, V, 1, false> : lifting_residual_kernel<T, V, 1, true>;
        run(op, device, kernel, grid, kThreads, 0, term, term, cells, N, C, out);
      });
    });
  }
  return residual;
}

// Gradient of the frames `like`: grad (B, N) shared among the frames and channels of its cell.
Tensor spread(const char* op, const CurrentDevice& device, const Tensor& grad, const Tensor& like, double sign) {
  const int64_t B = like.size(0), K = like.size(1), N = like.size(2), C = like.size(3), rows = B * K * N;
  const Tensor out = stable::new_empty(like, {B, K, N, C});
  constexpr int kWarps = kThreads / kWarp;
  dispatch_dtype(op, like.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    T* to = mutable_data<T>(out);
    dispatch_vector<T>(vector_fits<kVector<T>>(to, C), [&](auto vector) {
      const int64_t blocks = std::min((rows + kWarps - 1) / kWarps, kMostBlocks);
      run(op, device, lifting_residual_backward_kernel<T, decltype(vector)::value>, dim3(grid_size(op, blocks)),
          kThreads, 0, data<float>(grad), static_cast<float>(sign / (static_cast<double>(K) * static_cast<double>(C))),
          rows, K, N, C, to);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> lifting_residual_backward(const Tensor& grad, const Tensor& x, const Tensor& approximation) {
  const char* op = "lifting_residual_backward";
  check_inputs(op, x, approximation);
  check_tensor(op, "grad_residual", grad, x, {x.size(0), x.size(2)}, {ScalarType::Float});
  const CurrentDevice device(x);
  const Tensor g = stable::contiguous(grad);
  return {spread(op, device, g, x, 1), spread(op, device, g, approximation, -1)};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("lifting_residual", TORCH_BOX(&lifting_residual));
  m.impl("lifting_residual_backward", TORCH_BOX(&lifting_residual_backward));
}

}  // namespace ifdd::cuda
