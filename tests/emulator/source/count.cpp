// Counts what the loads and stores of warps touch, in builds for that (count.h).
//
// A GPU's warp makes one access with all its lanes; here every lane runs alone. Accesses of different lanes are taken
// for one where they are at the same place of the code, called from the same places, and that for the same time since
// the lanes last met.
#include "emulator/count.h"

#include <algorithm>
#include <array>
#include <deque>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "emulator/machine.h"

namespace emulator {
namespace {

constexpr size_t kWarp = 32;
constexpr uint64_t kSector = 32;
constexpr uint64_t kBank = 4, kBanks = 32;

// Of one launch. `requests` are accesses of warps.
struct Counts {
  int64_t kernel = 0;
  // Global memory: 32-byte sectors touched, and distinct bytes asked for.
  int64_t load_requests = 0, load_sectors = 0, load_bytes = 0;
  int64_t store_requests = 0, store_sectors = 0, store_bytes = 0;
  // Shared memory: times that its banks were read or written, and the least times these requests need.
  int64_t shared_requests = 0, shared_passes = 0, shared_least = 0;
};

struct Record {
  uint64_t place;
  uint32_t meeting, time;
  Access kind;
  Space space;
  uint64_t address;
  uint64_t bytes;

  auto key() const { return std::tie(place, meeting, time, kind, space, bytes); }
};

// A thread of the block.
struct Caller {
  bool in_kernel = false;
  uint64_t calls = 0;            // a hash of the calls it is in
  std::vector<uint64_t> before;  // those around them
  uint32_t meeting = 0;
  std::unordered_map<uint64_t, std::array<uint32_t, 2>> times;  // by place: the meeting, and accesses since
  std::vector<Record> records;
};

std::vector<Caller> callers;
std::deque<Counts> counted;

uint64_t mixed(uint64_t a, uint64_t b) {
  return (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xff51afd7ed558ccdu;
}

// The running thread, once its kernel has begun.
Caller* caller() {
  const int thread = callers.empty() ? -1 : current_thread();
  if (thread < 0 || !callers[static_cast<size_t>(thread)].in_kernel) return nullptr;
  return &callers[static_cast<size_t>(thread)];
}

// Distinct values of a sorted-on-demand list.
int64_t distinct(std::vector<uint64_t>& values) {
  std::sort(values.begin(), values.end());
  return std::unique(values.begin(), values.end()) - values.begin();
}

void count_global(const Record* first, const Record* last, int64_t& sectors, int64_t& bytes) {
  std::vector<uint64_t> touched, asked;
  for (const Record* r = first; r != last; ++r) {
    for (uint64_t byte = r->address; byte < r->address + r->bytes; ++byte) {
      asked.push_back(byte);
      touched.push_back(byte / kSector);
    }
  }
  sectors += distinct(touched);
  bytes += distinct(asked);
}

// Lanes take turns by what the banks hold together, 128 bytes: all of them, halves with 8 bytes each, quarters with 16.
// A turn takes as many passes as the bank of which the most words are wanted.
void count_shared(const Record* first, const Record* last, const Record* (&lane)[kWarp], Counts& counts) {
  std::fill(std::begin(lane), std::end(lane), nullptr);
  for (const Record* r = first; r != last; ++r) lane[r->time] = r;
  const size_t together = std::min<size_t>(kWarp, kBank * kBanks / std::max(first->bytes, kBank));
  for (size_t begin = 0; begin < kWarp; begin += together) {
    std::vector<uint64_t> words;
    for (size_t i = begin; i < begin + together; ++i) {
      if (lane[i] == nullptr) continue;
      for (uint64_t byte = 0; byte < lane[i]->bytes; byte += kBank) words.push_back((lane[i]->address + byte) / kBank);
    }
    if (words.empty()) continue;
    words.resize(static_cast<size_t>(distinct(words)));
    std::array<int64_t, kBanks> wanted{};
    for (uint64_t word : words) ++wanted[word % kBanks];
    counts.shared_passes += *std::max_element(wanted.begin(), wanted.end());
    counts.shared_least += 1;
  }
}

void count_warp(size_t begin, size_t end) {
  std::vector<std::tuple<Record, size_t>> all;
  for (size_t thread = begin; thread < end; ++thread) {
    for (const Record& record : callers[thread].records) all.emplace_back(record, thread - begin);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return std::get<0>(a).key() < std::get<0>(b).key(); });
  Counts& counts = counted.back();
  const Record* lane[kWarp];
  for (size_t first = 0; first < all.size();) {
    std::vector<Record> request;
    size_t last = first;
    for (; last < all.size() && std::get<0>(all[last]).key() == std::get<0>(all[first]).key(); ++last) {
      request.push_back(std::get<0>(all[last]));
      request.back().time = static_cast<uint32_t>(std::get<1>(all[last]));  // from here on the lane
    }
    const Record* of = request.data();
    if (of->space == Space::shared) {
      ++counts.shared_requests;
      count_shared(of, of + request.size(), lane, counts);
    } else if (of->kind == Access::load) {
      ++counts.load_requests;
      count_global(of, of + request.size(), counts.load_sectors, counts.load_bytes);
    } else {
      ++counts.store_requests;
      count_global(of, of + request.size(), counts.store_sectors, counts.store_bytes);
    }
    first = last;
  }
}

}  // namespace

void count_access(Access kind, const void* address, size_t bytes, const void* place) {
  Caller* own = caller();
  if (own == nullptr) return;
  const Space space = space_of(address);
  if (space == Space::own) return;
  const uint64_t at = mixed(own->calls, reinterpret_cast<uint64_t>(place));
  auto& [meeting, time] = own->times[at];
  if (meeting != own->meeting) {
    meeting = own->meeting;
    time = 0;
  }
  own->records.push_back({at, meeting, time++, kind, space, reinterpret_cast<uint64_t>(address), bytes});
}

void count_launch(int64_t kernel) {
  counted.emplace_back();
  counted.back().kernel = kernel;
}

void count_block(size_t threads) { callers = std::vector<Caller>(threads); }

void count_kernel() { callers[static_cast<size_t>(current_thread())].in_kernel = true; }

void count_meeting(size_t thread) { ++callers[thread].meeting; }

void count_block_end() {
  for (size_t begin = 0; begin < callers.size(); begin += kWarp) {
    count_warp(begin, std::min(begin + kWarp, callers.size()));
  }
  callers.clear();
}

}  // namespace emulator

// Takes the counts of the oldest launch; false if there is none.
extern "C" __attribute__((visibility("default"))) int ifdd_emulator_counted(emulator::Counts* counts) {
  if (emulator::counted.empty()) return 0;
  *counts = emulator::counted.front();
  emulator::counted.pop_front();
  return 1;
}

// What the compiler calls for the thread sanitizer.
#define IFDD_PLAIN_ACCESSES(bytes)                                                          \
  void __tsan_read##bytes(void* p) {                                                        \
    emulator::count_access(emulator::Access::load, p, bytes, __builtin_return_address(0));  \
  }                                                                                         \
  void __tsan_write##bytes(void* p) {                                                       \
    emulator::count_access(emulator::Access::store, p, bytes, __builtin_return_address(0)); \
  }                                                                                         \
  void __tsan_unaligned_read##bytes(void* p) {                                              \
    emulator::count_access(emulator::Access::load, p, bytes, __builtin_return_address(0));  \
  }                                                                                         \
  void __tsan_unaligned_write##bytes(void* p) {                                             \
    emulator::count_access(emulator::Access::store, p, bytes, __builtin_return_address(0)); \
  }
extern "C" {
IFDD_PLAIN_ACCESSES(1)
IFDD_PLAIN_ACCESSES(2)
IFDD_PLAIN_ACCESSES(4)
IFDD_PLAIN_ACCESSES(8)
IFDD_PLAIN_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) {
  emulator::count_access(emulator::Access::load, p, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  emulator::count_access(emulator::Access::store, p, bytes, __builtin_return_address(0));
}
void __tsan_func_entry(void* from) {
  emulator::Caller* own = emulator::caller();
  if (own == nullptr) return;
  own->before.push_back(own->calls);
  own->calls = emulator::mixed(own->calls, reinterpret_cast<uint64_t>(from));
}
void __tsan_func_exit() {
  emulator::Caller* own = emulator::caller();
  if (own == nullptr || own->before.empty()) return;
  own->calls = own->before.back();
  own->before.pop_back();
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Atomic operations, of the host's code; they are not counted.
#define IFDD_ATOMIC(name, T, operation)                                    \
  T __tsan_atomic##name##_fetch_##operation(volatile T* p, T value, int) { \
    return __atomic_fetch_##operation(p, value, __ATOMIC_SEQ_CST);         \
  }
#define IFDD_ATOMICS(name, T)                                                                                     \
  IFDD_ATOMIC(name, T, add)                                                                                       \
  IFDD_ATOMIC(name, T, sub)                                                                                       \
  IFDD_ATOMIC(name, T, or)                                                                                        \
  T __tsan_atomic##name##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }         \
  void __tsan_atomic##name##_store(volatile T* p, T value, int) { __atomic_store_n(p, value, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##name##_exchange(volatile T* p, T value, int) {                                                 \
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                                       \
  }                                                                                                               \
  int __tsan_atomic##name##_compare_exchange_strong(volatile T* p, T* expected, T value, int, int) {              \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
  }                                                                                                               \
  int __tsan_atomic##name##_compare_exchange_weak(volatile T* p, T* expected, T value, int, int) {                \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
  }
IFDD_ATOMICS(8, uint8_t)
IFDD_ATOMICS(32, uint32_t)
IFDD_ATOMICS(64, uint64_t)
}
