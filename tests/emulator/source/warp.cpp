#include "emulator/warp.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ifdd/scalar.h"

namespace emulator {
namespace {

constexpr unsigned kAll = ~0u;

struct Shuffle {
  uint64_t value;  // in and out
  int source;      // lane
};

void shuffle(void* const* records, unsigned lanes) {
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) {
    values[lane] = lanes >> lane & 1 ? static_cast<const Shuffle*>(records[lane])->value : ~uint64_t{0};
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) {
      auto* own = static_cast<Shuffle*>(records[lane]);
      own->value = values[own->source];
    }
  }
}

struct Ballot {
  bool value;
  unsigned votes;
};

void vote(void* const* records, unsigned lanes) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1 && static_cast<const Ballot*>(records[lane])->value) votes |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) static_cast<Ballot*>(records[lane])->votes = votes;
  }
}

struct Fragments {
  Site site;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  Element element;
};

// Element `place` of a register that holds one float or two halves.
float element_of(uint32_t bits, int place, Element element) {
  const uint16_t half = static_cast<uint16_t>(place == 0 ? bits : bits >> 16);
  const ifdd::fp16 fp16{half};
  const ifdd::bf16 bf16{half};
  switch (element) {
    case Element::half:
      return ifdd::load(&fp16);
    case Element::bfloat16:
      return ifdd::load(&bf16);
    default: {
      const uint32_t seen = bits & ~0x1fffu;
      float value;
      std::memcpy(&value, &seen, sizeof value);
      return value;
    }
  }
}

// 2^n of a double's normal range.
double power_of_two(int n) {
  const uint64_t bits = static_cast<uint64_t>(n + 1023) << 52;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The largest n with 2^n <= |value|, not zero.
int exponent_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<int>(bits >> 52 & 0x7ff) - 1023;
}

// A double as a float, rounded toward zero; larger ones become infinite.
float truncated(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) && std::isfinite(nearest)
             ? std::nextafterf(nearest, 0)
             : nearest;
}

// Binary places of an addend below those of a float that has the largest addend's exponent.
constexpr int kGuardBits = 1;

// sum + a . b as a tensor core forms it, of `Count` products at a time: every product is exact; then all addends are
// cut off, toward zero, at one binary place, that of the largest one; their sum is exact, and cut off again as a float.
// Published tests of the hardware find this on Volta, Ampere and Hopper alike, with 4, 8 and 16 products of 16-bit
// elements (half as many of TF32) and 0, 1 and 2 further binary places. Ampere's numbers are taken: more steps and
// fewer places than on Hopper, so larger errors.
float add_products(float sum, const float* a, const float* b, int count) {
  double addend[9] = {sum};
  double largest = std::fabs(sum), plain = sum;
  for (int k = 0; k < count; ++k) {
    addend[k + 1] = static_cast<double>(a[k]) * b[k];
    largest = std::max(largest, std::fabs(addend[k + 1]));
    plain += addend[k + 1];
  }
  if (largest == 0 || !std::isfinite(plain)) return static_cast<float>(plain);
  const int place = exponent_of(largest) - 23 - kGuardBits;
  const double scale = power_of_two(-place);
  int64_t total = 0;
  for (int k = 0; k <= count; ++k) total += static_cast<int64_t>(addend[k] * scale);
  return truncated(static_cast<double>(total) * power_of_two(place));
}

void multiply(void* const* records, unsigned lanes) {
  const auto lane_at = [&](int lane) { return static_cast<const Fragments*>(records[lane]); };
  const Fragments& any = *lane_at(__builtin_ctz(lanes));
  if (lanes != kAll) fail(any.site, "needs all lanes of the warp, some have ended");
  const Element element = any.element;
  const int packed = element == Element::tf32 ? 1 : 2;  // elements of a register
  const int depth = 8 * packed;
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, column = lane % 4 * packed;
    for (int place = 0; place < packed; ++place) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][column + place + i / 2 * depth / 2] = element_of(lane_at(lane)->a[i], place, element);
      }
      for (int i = 0; i < 2; ++i) {
        b[group][column + place + i * depth / 2] = element_of(lane_at(lane)->b[i], place, element);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = lane_at(lane)->d[i];
      for (int k = 0; k < depth; k += depth / 2) sum = add_products(sum, a[row] + k, b[column] + k, depth / 2);
      lane_at(lane)->d[i] = sum;
    }
  }
}

struct Rows {
  Site site;
  uint32_t* r;
  const MatrixRow* row;
  bool transposed;
};

void distribute(void* const* records, unsigned lanes) {
  const auto lane_at = [&](int lane) { return static_cast<const Rows*>(records[lane]); };
  const Rows& any = *lane_at(__builtin_ctz(lanes));
  if (lanes != kAll) fail(any.site, "needs all lanes of the warp, some have ended");
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t pair[2];
      for (int place = 0; place < 2; ++place) {
        const int across = lane % 4 * 2 + place, along = lane / 4;
        const int row = any.transposed ? across : along, column = any.transposed ? along : across;
        pair[place] = lane_at(matrix * 8 + row)->row->element[column];
      }
      lane_at(lane)->r[matrix] = pair[0] | pair[1] << 16;
    }
  }
}

}  // namespace

uint64_t exchange_bits(const Site& site, unsigned mask, uint64_t value, int source) {
  Shuffle record{value, source};
  warp_meet(site, mask, &record, &shuffle);
  return record.value;
}

unsigned ballot(const Site& site, unsigned mask, bool value) {
  Ballot record{value, 0};
  warp_meet(site, mask, &record, &vote);
  return record.votes;
}

void mma(const Site& site, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
  Fragments record{site, d, a, b, element};
  warp_meet(site, kAll, &record, &multiply);
}

void load_matrices(const Site& site, uint32_t (&r)[4], const MatrixRow& row, bool transposed) {
  Rows record{site, r, &row, transposed};
  warp_meet(site, kAll, &record, &distribute);
}

}  // namespace emulator
