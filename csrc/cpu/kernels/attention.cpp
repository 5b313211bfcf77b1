// Inner loops of pooled_attention and lifting_attention; compiled once per instruction set (see ifdd/isa.h), so no
// standard library code here.
#include "attention.h"

#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"
#include "matrix_tiles.h"
#include "small_products.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// The tokens of one (batch, head).
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};
template <class T>
IFDD_INLINE Rows<T> rows_of(const Tokens<T>& tokens, int64_t b, int64_t head) {
  return {tokens.data + b * tokens.batch + head * tokens.head, tokens.token};
}

// Rows [first, first + count) in the accumulation type, ends of rows and the rows up to `total` filled with zeros.
template <class T, class A>
IFDD_INLINE void copy_rows(const Rows<T>& rows, int64_t first, int64_t count, int64_t total, int64_t d, A* out) {
  const int64_t width = padded(d);
  for (int64_t i = 0; i < count; ++i) {
    const T* in = rows.data + (first + i) * rows.stride;
    A* row = out + i * width;
    // Rows lie apart, so the hardware does not foresee the next ones.
    if (i + 4 < count) {
      for (int64_t c = 0; c < d; c += 64 / sizeof(T)) __builtin_prefetch(in + 4 * rows.stride + c);
    }
    widen(in, d, row);
    for (int64_t c = d; c < width; ++c) row[c] = 0;
  }
  for (int64_t c = count * width; c < total * width; ++c) out[c] = 0;
}

// Memory of the bias of one query: its products with the rows of each axis, and the sums over height and width.
template <class A>
struct Bias {
  A *axis[3], *plane;
};

// Carves arrays from the scratch memory of a thread.
template <class A>
struct Arena {
  A* next;
  A* take(int64_t count) {
    A* begin = next;
    next += padded(count);
    return begin;
  }
  Bias<A> take_bias(const int64_t (&k)[3]) {
    Bias<A> bias;
    for (int axis = 0; axis < 3; ++axis) bias.axis[axis] = take(k[axis] + kPad);
    bias.plane = take(k[1] * k[2] + kPad);
    return bias;
  }
  bf16* take_16(int64_t count) { return reinterpret_cast<bf16*>(take(count / 2)); }
};

// For a query that is not the class token, the part of each axis' row offsets that all keys share.
template <class A>
IFDD_INLINE void offsets_of(const Position<A>& position, int64_t query, int64_t (&offset)[3]) {
  const int64_t H = position.q_grid[1], W = position.q_grid[2], body = query - 1;
  const int64_t coordinate[3] = {body / (H * W), body / W % H, body % W};
  for (int axis = 0; axis < 3; ++axis) offset[axis] = position.query_part[axis][coordinate[axis]];
}

// Products of one query with four rows.
template <class A>
IFDD_INLINE void four_products(const A* q, const A* const (&row)[4], int64_t d, A* out) {
  Vec<A> sum[4] = {};
  for (int64_t c = 0; c < d; c += kWidth<A>) {
    const Vec<A> v = read(q + c);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sum[r] += v * read(row[r] + c);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) out[r] = total(sum[r]);
}

// The bias of one query for all keys, into a row of scores. Vectors run over the ends of lines and planes: what they
// write there is overwritten by the next one, and the end of the row is padding.
template <class A>
IFDD_INLINE void fill_bias(const Position<A>& position, int64_t query, const A* q, int64_t d, int64_t keys,
                           const Bias<A>& bias, A* out) {
  constexpr int L = kWidth<A>;
  if (query == 0) {
    for (int64_t j = 0; j < keys; j += L) write(out + j, Vec<A>{});
    return;
  }
  int64_t offset[3];
  offsets_of(position, query, offset);
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t count = position.k_grid[axis], *const key = position.key_part[axis];
    const A* const first = position.rows + offset[axis];
    for (int64_t k = 0; k < count; k += 4) {
      const A* row[4];
      for (int r = 0; r < 4; ++r) row[r] = first + key[k + r < count ? k + r : count - 1];
      four_products(q, row, d, bias.axis[axis] + k);
    }
  }
  const int64_t T = position.k_grid[0], H = position.k_grid[1], W = position.k_grid[2];
  for (int64_t y = 0; y < H; ++y) {
    for (int64_t x = 0; x < W; x += L) write(bias.plane + y * W + x, read(bias.axis[2] + x) + bias.axis[1][y]);
  }
  out[0] = 0;
  for (int64_t t = 0; t < T; ++t) {
    A* slab = out + 1 + t * H * W;
    for (int64_t p = 0; p < H * W; p += L) write(slab + p, read(bias.plane + p) + bias.axis[0][t]);
  }
}

// From the gradient of one query's scores: adds the bias' part of the query's gradient, and the tables' gradients.
template <class A>
IFDD_INLINE void bias_backward(const Position<A>& position, int64_t query, const A* q, const A* grad, int64_t d,
                               const Bias<A>& bias, A* grad_q, A* grad_rows) {
  const int64_t T = position.k_grid[0], H = position.k_grid[1], W = position.k_grid[2];
  constexpr int L = kWidth<A>;
  A* plane = bias.plane;
  // Vectors run over the end of the plane, into its padding.
  for (int64_t p = 0; p < H * W; p += L) write(plane + p, Vec<A>{});
  for (int64_t t = 0; t < T; ++t) {
    const A* slab = grad + 1 + t * H * W;
    Vec<A> sum{};
    for (int64_t p = 0; p < H * W; p += L) {
      const Vec<A> v = first_lanes(read(slab + p), H * W - p);
      write(plane + p, read(plane + p) + v);
      sum += v;
    }
    bias.axis[0][t] = total(sum);
  }
  for (int64_t x = 0; x < W; x += L) write(bias.axis[2] + x, Vec<A>{});
  for (int64_t y = 0; y < H; ++y) {
    Vec<A> sum{};
    for (int64_t x = 0; x < W; x += L) {
      const Vec<A> v = first_lanes(read(plane + y * W + x), W - x);
      write(bias.axis[2] + x, read(bias.axis[2] + x) + v);
      sum += v;
    }
    bias.axis[1][y] = total(sum);
  }
  int64_t offset[3];
  offsets_of(position, query, offset);
  for (int64_t c = 0; c < d; c += L) {
    const Vec<A> body = read(q + c);
    Vec<A> sum = read(grad_q + c);
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t k = 0; k < position.k_grid[axis]; ++k) {
        const A factor = bias.axis[axis][k];
        const int64_t row = offset[axis] + position.key_part[axis][k] + c;
        sum += factor * read(position.rows + row);
        write(grad_rows + row, read(grad_rows + row) + factor * body);
      }
    }
    write(grad_q + c, sum);
  }
}

// Turns a row of scores into exponentials of their distance to the largest; returns the log-sum-exp and 1 / sum.
template <class A>
IFDD_INLINE void softmax_row(int64_t keys, A* score, A& log_sum, A& inverse) {
  constexpr int L = kWidth<A>;
  const int64_t width = round_up(keys, L);
  for (int64_t j = keys; j < width; ++j) score[j] = -static_cast<A>(__builtin_inf());
  Vec<A> high[4];
  for (int r = 0; r < 4; ++r) high[r] = Vec<A>{} + -static_cast<A>(__builtin_inf());
  int64_t j = 0;
  for (; j + 4 * L <= width; j += 4 * L) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Vec<A> s = read(score + j + r * L);
      high[r] = s > high[r] ? s : high[r];
    }
  }
  for (; j < width; j += L) {
    const Vec<A> s = read(score + j);
    high[0] = s > high[0] ? s : high[0];
  }
  for (int r = 1; r < 4; ++r) high[0] = high[r] > high[0] ? high[r] : high[0];
  const A top = largest(high[0]);

  Vec<A> sum{};
  for (j = 0; j < width; j += L) {
    const Vec<A> e = exp(read(score + j) - top);
    write(score + j, e);
    sum += e;
  }
  const A all = total(sum);
  log_sum = top + log(all);
  inverse = 1 / all;
}

// Probabilities in place of a row of scores, and the gradient of the scores in place of that of the probabilities. The
// rounding of log_sum, which grows with the scores, would be the whole row's: the row is normalised once more.
template <class A>
IFDD_INLINE void softmax_row_backward(int64_t keys, A log_sum, A* score, A* grad) {
  constexpr int L = kWidth<A>;
  const int64_t width = round_up(keys, L);
  for (int64_t j = keys; j < width; ++j) score[j] = -static_cast<A>(__builtin_inf());
  Vec<A> sum{}, all{};
  for (int64_t j = 0; j < width; j += L) {
    const Vec<A> p = exp(read(score + j) - log_sum);
    write(score + j, p);
    sum += p * read(grad + j);
    all += p;
  }
  const A inverse = 1 / total(all), delta = inverse * total(sum);
  for (int64_t j = 0; j < width; j += L) {
    const Vec<A> p = read(score + j) * inverse;
    write(score + j, p);
    write(grad + j, p * (read(grad + j) - delta));
  }
}

// Gradients of one key and one value from their sums.
template <class T>
IFDD_INLINE void store_key_value(const AttentionBackward<T>& op, int64_t b, int64_t head, int64_t j,
                                 const acc_t<T>* grad_k, const acc_t<T>* grad_v) {
  const AttentionSizes& s = op.size;
  const int64_t place = ((b * s.Nk + j) * s.h + head) * s.d;
  for_each(s.d, [&](int64_t c) { store(op.grad_k + place + c, grad_k[c]); });
  if (op.residual == Residual::value) {
    const Rows<T> grad = rows_of(op.grad, b, head);
    const T* row = grad.data + j * grad.stride;
    for_each(s.d, [&](int64_t c) { store(op.grad_v + place + c, grad_v[c] + load(row + c)); });
  } else {
    for_each(s.d, [&](int64_t c) { store(op.grad_v + place + c, grad_v[c]); });
  }
}

// `count` queries of a (batch, head), of which the vectors' tiles compute `rows`.
struct Block {
  int64_t count, rows;
};

// The two products of a block, in the accumulation type.
template <class T>
struct VectorProducts {
  using A = acc_t<T>;
  AttentionSizes s;
  int64_t width, stride;  // of rows of d, and of scores
  A *keys, *values;

  VectorProducts(const AttentionSizes& sizes, Arena<A>& arena) : s(sizes), width(padded(s.d)), stride(score_stride(s)) {
    keys = arena.take(round_up(s.Nk, kPanel) * s.d);
    values = arena.take(padded(s.Nk) * width);
  }
  static void begin() {}
  static void end() {}
  void pack(const Rows<T>& k, const Rows<T>& v) {
    pack_panels(k.data, k.stride, s.Nk, s.d, keys);
    copy_rows(v, 0, s.Nk, s.Nk, s.d, values);
  }
  // score = scale q k^T (+ score)
  void scores(const Block& block, bool add, A scale, const A* query, A* score) {
    const auto product = add ? &multiply<A, true> : &multiply<A, false>;
    product(block.rows, s.Nk, s.d, scale, query, width, keys, kTileColumns<A>, kTileColumns<A> * s.d, score, stride);
  }
  // sum = weight v
  void weighted(const Block& block, const A* weight, A* sum) {
    for (int64_t j = 0; j < s.Nk; j += kTileDepth) {
      const int64_t depth = s.Nk - j < kTileDepth ? s.Nk - j : kTileDepth;
      const auto product = j == 0 ? &multiply<A, false> : &multiply<A, true>;
      product(block.rows, s.d, depth, A(1), weight + j, stride, values + j * width, width, kTileColumns<A>, sum, width);
    }
  }
};

// The same by matrix tiles; weights are rounded to bfloat16.
template <class Tiles>
struct TileProducts {
  AttentionSizes s;
  int64_t width, stride, terms, columns;  // terms, columns: d and Nk in blocks
  bf16 *keys, *values, *queries, *weights;
  float* square;

  TileProducts(const AttentionSizes& sizes, Arena<float>& arena)
      : s(sizes),
        width(padded(s.d)),
        stride(score_stride(s)),
        terms(round_up(s.d, kTileBlock)),
        columns(round_up(s.Nk, kTileBlock)) {
    const int64_t m = round_up(forward_rows(s), kTileBlock);
    keys = arena.take_16(columns * terms);
    values = arena.take_16(columns * terms);
    queries = arena.take_16(m * terms);
    weights = arena.take_16(m * columns);
    square = arena.take(kTileBlock * kTileBlock);
  }
  static void begin() { Tiles::begin(); }
  static void end() { Tiles::end(); }
  void pack(const Rows<bf16>& k, const Rows<bf16>& v) {
    tile_columns(k.data, k.stride, s.Nk, s.d, keys);
    tile_terms(v.data, v.stride, s.Nk, s.d, values);
  }
  void scores(const Block& block, bool add, float scale, const float* query, float* score) {
    tile_rows(query, width, block.count, round_up(block.rows, kTileBlock), s.d, queries);
    const auto product = add ? &multiply_tiles<Tiles, true> : &multiply_tiles<Tiles, false>;
    product(block.rows, s.Nk, s.d, scale, queries, terms, keys, square, score, stride);
  }
  void weighted(const Block& block, const float* weight, float* sum) {
    tile_rows(weight, stride, block.count, round_up(block.rows, kTileBlock), s.Nk, weights);
    multiply_tiles<Tiles, false>(block.rows, s.d, s.Nk, 1, weights, columns, values, square, sum, width);
  }
};

template <class Products, class T>
void forward_by(const AttentionForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const AttentionSizes& s = op.size;
  const int64_t width = padded(s.d), stride = score_stride(s), m = forward_rows(s), blocks = forward_blocks(s);
  const bool with_bias = op.position.rows != nullptr;
  Arena<A> arena{scratch};
  A* query = arena.take(m * width);
  A* score = arena.take(m * stride);
  A* sum = arena.take(m * width);
  const Bias<A> bias = arena.take_bias(op.position.k_grid);
  Products products(s, arena);
  products.begin();

  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / blocks, b = pair / s.h, head = pair % s.h;
    const Rows<T> q = rows_of(op.q, b, head), v = rows_of(op.v, b, head);
    if (packed != pair) {
      products.pack(rows_of(op.k, b, head), v);
      packed = pair;
    }
    const int64_t first = unit % blocks * m, count = s.Nq - first < m ? s.Nq - first : m;
    const Block block{count, round_up(count, kTileRows)};
    copy_rows(q, first, count, block.rows, s.d, query);
    if (with_bias) {
      for (int64_t i = 0; i < count; ++i) {
        fill_bias(op.position, first + i, query + i * width, s.d, s.Nk, bias, score + i * stride);
      }
    }
    products.scores(block, with_bias, op.scale, query, score);
    A inverse[kForwardRows];
    for (int64_t i = 0; i < count; ++i) {
      softmax_row(s.Nk, score + i * stride, op.log_sum[pair * s.Nq + first + i], inverse[i]);
    }
    products.weighted(block, score, sum);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = first + i;
      T* out = op.out + ((b * s.Nq + token) * s.h + head) * s.d;
      const A* row = sum + i * width;
      const A factor = inverse[i];
      A* more = query + i * width;
      if (op.residual == Residual::value) widen(v.data + token * v.stride, s.d, more);
      if (op.residual == Residual::value || token > 0) {
        for_each(s.d, [&](int64_t c) { store(out + c, row[c] * factor + more[c]); });
      } else {
        for_each(s.d, [&](int64_t c) { store(out + c, row[c] * factor); });
      }
    }
  }
  products.end();
}

// The five products of a block in backward, in the accumulation type.
template <class T>
struct VectorGradients {
  using A = acc_t<T>;
  AttentionSizes s;
  int64_t width, stride;  // of rows of d, and of scores
  A *keys, *values, *key_rows;

  VectorGradients(const AttentionSizes& sizes, Arena<A>& arena)
      : s(sizes), width(padded(s.d)), stride(score_stride(s)) {
    keys = arena.take(round_up(s.Nk, kPanel) * s.d);
    values = arena.take(round_up(s.Nk, kPanel) * s.d);
    key_rows = arena.take(padded(s.Nk) * width);
  }
  static void begin() {}
  static void end() {}
  void pack(const Rows<T>& k, const Rows<T>& v) {
    pack_panels(k.data, k.stride, s.Nk, s.d, keys);
    pack_panels(v.data, v.stride, s.Nk, s.d, values);
    copy_rows(k, 0, s.Nk, s.Nk, s.d, key_rows);
  }
  // score = scale q k^T (+ score), grad_weight = grad v^T
  void scores(const Block& block, bool add, A scale, const A* query, const A* grad, A* score, A* grad_weight) {
    const auto product = add ? &multiply<A, true> : &multiply<A, false>;
    const int64_t panel = kTileColumns<A> * s.d;
    product(block.rows, s.Nk, s.d, scale, query, width, keys, kTileColumns<A>, panel, score, stride);
    multiply<A, false>(block.rows, s.Nk, s.d, A(1), grad, width, values, kTileColumns<A>, panel, grad_weight, stride);
  }
  // grad_v += weight^T grad, grad_k += scale grad_score^T query, grad_query += scale grad_score k
  void gradients(const Block& block, A scale, const A* query, const A* grad, const A* weight, const A* grad_score,
                 A* grad_query, A* grad_k, A* grad_v) {
    add_transposed(s.Nk, s.d, block.count, A(1), weight, stride, grad, width, grad_v, width);
    add_transposed(s.Nk, s.d, block.count, scale, grad_score, stride, query, width, grad_k, width);
    for (int64_t j = 0; j < s.Nk; j += kTileDepth) {
      const int64_t depth = s.Nk - j < kTileDepth ? s.Nk - j : kTileDepth;
      multiply<A, true>(block.rows, s.d, depth, scale, grad_score + j, stride, key_rows + j * width, width,
                        kTileColumns<A>, grad_query, width);
    }
  }
};

// The same by matrix tiles; weights and the gradient of the scores are rounded to bfloat16 as factors.
template <class Tiles>
struct TileGradients {
  AttentionSizes s;
  int64_t width, stride, terms, columns;  // terms, columns: d and Nk in blocks
  bf16 *keys, *values, *key_terms;
  bf16 *rows, *block_terms, *scores_16;  // of the factor in use
  float* square;

  TileGradients(const AttentionSizes& sizes, Arena<float>& arena)
      : s(sizes),
        width(padded(s.d)),
        stride(score_stride(s)),
        terms(round_up(s.d, kTileBlock)),
        columns(round_up(s.Nk, kTileBlock)) {
    const int64_t m = round_up(backward_rows(s), kTileBlock);
    keys = arena.take_16(columns * terms);
    values = arena.take_16(columns * terms);
    key_terms = arena.take_16(columns * terms);
    rows = arena.take_16(m * terms);
    block_terms = arena.take_16(m * terms);
    scores_16 = arena.take_16(m * columns);
    square = arena.take(kTileBlock * kTileBlock);
  }
  static void begin() { Tiles::begin(); }
  static void end() { Tiles::end(); }
  void pack(const Rows<bf16>& k, const Rows<bf16>& v) {
    tile_columns(k.data, k.stride, s.Nk, s.d, keys);
    tile_columns(v.data, v.stride, s.Nk, s.d, values);
    tile_terms(k.data, k.stride, s.Nk, s.d, key_terms);
  }
  void scores(const Block& block, bool add, float scale, const float* query, const float* grad, float* score,
              float* grad_weight) {
    const auto product = add ? &multiply_tiles<Tiles, true> : &multiply_tiles<Tiles, false>;
    const int64_t total = round_up(block.rows, kTileBlock);
    tile_rows(query, width, block.count, total, s.d, rows);
    product(block.rows, s.Nk, s.d, scale, rows, terms, keys, square, score, stride);
    tile_rows(grad, width, block.count, total, s.d, rows);
    multiply_tiles<Tiles, false>(block.rows, s.Nk, s.d, 1, rows, terms, values, square, grad_weight, stride);
  }
  void gradients(const Block& block, float scale, const float* query, const float* grad, const float* weight,
                 const float* grad_score, float* grad_query, float* grad_k, float* grad_v) {
    add_transposed_product(block.count, 1, weight, grad, grad_v);
    add_transposed_product(block.count, scale, grad_score, query, grad_k);
    tile_rows(grad_score, stride, block.count, round_up(block.rows, kTileBlock), s.Nk, scores_16);
    multiply_tiles<Tiles, true>(block.rows, s.d, s.Nk, scale, scores_16, columns, key_terms, square, grad_query, width);
  }
  // out (Nk, d) += alpha a^T b of `count` rows each
  void add_transposed_product(int64_t count, float alpha, const float* a, const float* b, float* out) {
    tile_transposed(a, stride, count, s.Nk, scores_16);
    tile_terms(b, width, count, s.d, block_terms);
    multiply_tiles<Tiles, true>(s.Nk, s.d, count, alpha, scores_16, round_up(count, kTileBlock), block_terms, square,
                                out, width);
  }
};

template <class Products, class T>
void backward_by(const AttentionBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const AttentionSizes& s = op.size;
  const int64_t width = padded(s.d), stride = score_stride(s), m = backward_rows(s), parts = chunks(s);
  const bool with_bias = op.position.rows != nullptr;
  Arena<A> arena{scratch};
  A* own_k = arena.take(padded(s.Nk) * width);
  A* own_v = arena.take(padded(s.Nk) * width);
  A* query = arena.take(m * width);
  A* grad = arena.take(m * width);
  A* grad_query = arena.take(m * width);
  A* score = arena.take(m * stride);
  A* grad_score = arena.take(m * stride);
  const Bias<A> bias = arena.take_bias(op.position.k_grid);
  Products products(s, arena);
  products.begin();

  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / parts, b = pair / s.h, head = pair % s.h;
    const Rows<T> q = rows_of(op.q, b, head), g = rows_of(op.grad, b, head);
    if (packed != pair) {
      products.pack(rows_of(op.k, b, head), rows_of(op.v, b, head));
      packed = pair;
    }
    const int64_t sums = padded(s.Nk) * width;
    A* grad_k = op.partial == nullptr ? own_k : op.partial + unit * 2 * sums;
    A* grad_v = op.partial == nullptr ? own_v : grad_k + sums;
    for (int64_t c = 0; c < sums; ++c) grad_k[c] = grad_v[c] = 0;
    A* grad_rows = nullptr;
    if (with_bias) {
      const int64_t elements = op.position.row_count * width;
      grad_rows = op.table_partial + unit * elements;
      for (int64_t c = 0; c < elements; ++c) grad_rows[c] = 0;
    }
    const int64_t last = (unit % parts + 1) * chunk_rows(s) < s.Nq ? (unit % parts + 1) * chunk_rows(s) : s.Nq;
    for (int64_t first = unit % parts * chunk_rows(s); first < last; first += m) {
      const int64_t count = last - first < m ? last - first : m;
      const Block block{count, round_up(count, kTileRows)};
      copy_rows(q, first, count, block.rows, s.d, query);
      copy_rows(g, first, count, block.rows, s.d, grad);
      if (with_bias) {
        for (int64_t i = 0; i < count; ++i) {
          fill_bias(op.position, first + i, query + i * width, s.d, s.Nk, bias, score + i * stride);
        }
      }
      products.scores(block, with_bias, op.scale, query, grad, score, grad_score);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t token = first + i;
        A* grad_row = grad_score + i * stride;
        softmax_row_backward(s.Nk, op.log_sum[pair * s.Nq + token], score + i * stride, grad_row);
        const bool pass_on = op.residual == Residual::query && token > 0;
        A* out = grad_query + i * width;
        for_each(width, [&](int64_t c) { out[c] = pass_on ? grad[i * width + c] : A(0); });
        if (with_bias && token > 0) {
          bias_backward(op.position, token, query + i * width, grad_row, s.d, bias, out, grad_rows);
        }
      }
      products.gradients(block, op.scale, query, grad, score, grad_score, grad_query, grad_k, grad_v);
      for (int64_t i = 0; i < count; ++i) {
        T* out = op.grad_q + ((b * s.Nq + first + i) * s.h + head) * s.d;
        for_each(s.d, [&](int64_t c) { store(out + c, grad_query[i * width + c]); });
      }
    }
    if (op.partial == nullptr) {
      for (int64_t j = 0; j < s.Nk; ++j) store_key_value(op, b, head, j, grad_k + j * width, grad_v + j * width);
    }
  }
  products.end();
}

}  // namespace

template <class T>
void attention_forward(const AttentionForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  if constexpr (std::is_same_v<T, bf16>) {
#if defined(IFDD_MATRIX_TILES)
    if (op.tiles == MatrixTiles::used) return forward_by<TileProducts<CpuTiles>>(op, begin, end, scratch);
#endif
    if (op.tiles == MatrixTiles::emulated) return forward_by<TileProducts<EmulatedTiles>>(op, begin, end, scratch);
  }
  forward_by<VectorProducts<T>>(op, begin, end, scratch);
}

template <class T>
void attention_backward(const AttentionBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  if constexpr (std::is_same_v<T, bf16>) {
#if defined(IFDD_MATRIX_TILES)
    if (op.tiles == MatrixTiles::used) return backward_by<TileGradients<CpuTiles>>(op, begin, end, scratch);
#endif
    if (op.tiles == MatrixTiles::emulated) return backward_by<TileGradients<EmulatedTiles>>(op, begin, end, scratch);
  }
  backward_by<VectorGradients<T>>(op, begin, end, scratch);
}

template <class T>
void sum_chunks(const AttentionBackward<T>& op, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const AttentionSizes& s = op.size;
  const int64_t width = padded(s.d), sums = padded(s.Nk) * width, parts = chunks(s);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t pair = row / s.Nk, j = row % s.Nk;
    // The first chunk's row takes up the others.
    A* grad_k = op.partial + pair * parts * 2 * sums + j * width;
    A* grad_v = grad_k + sums;
    for (int64_t part = 1; part < parts; ++part) {
      const A* more_k = grad_k + part * 2 * sums;
      const A* more_v = grad_v + part * 2 * sums;
      for_each(s.d, [&](int64_t c) {
        grad_k[c] += more_k[c];
        grad_v[c] += more_v[c];
      });
    }
    store_key_value(op, pair / s.h, pair % s.h, j, grad_k, grad_v);
  }
}

#define INSTANTIATE(T)                                                                           \
  template void attention_forward<T>(const AttentionForward<T>&, int64_t, int64_t, acc_t<T>*);   \
  template void attention_backward<T>(const AttentionBackward<T>&, int64_t, int64_t, acc_t<T>*); \
  template void sum_chunks<T>(const AttentionBackward<T>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
