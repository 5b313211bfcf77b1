#include "emulator/machine.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <sstream>
#include <vector>

#include "emulator/count.h"
#include "emulator/fiber.h"

// Where the library begins, by the linker.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxStaticShared = 48 * 1024;
constexpr size_t kSharedWithoutAsking = 48 * 1024;  // static and dynamic together
#ifdef IFDD_EMULATOR_COUNT
constexpr bool kCount = true;
#else
constexpr bool kCount = false;
#endif
constexpr unsigned char kPoison = 0xff;

struct Copy {
  void* to;
  int bytes;
  std::array<unsigned char, 16> data;
};

struct Thread {
  Fiber fiber;
  Position position;
  int warp = 0;
  size_t rank = 0;  // in the order of preference
  bool ended = false;
  // Where it waits, and with which lanes of its warp (0: with its block); `what` is null while it does not wait.
  Site site{};
  unsigned mask = 0;
  std::deque<std::vector<Copy>> copies;  // closed groups, and the open one at the back
};

// Lanes that wait for each other.
struct Meeting {
  unsigned mask = 0, came = 0;
  Site site{};
  Action action = nullptr;
  std::array<void*, kWarp> records{};
};

struct Warp {
  unsigned alive = 0;
  std::vector<Meeting> open;  // their masks differ
  // What the race detector orders a warp barrier by: one object for even and one for odd barriers of each mask's lowest
  // lane, since a lane may reach the next barrier before another has left this one.
  std::array<std::array<char, 2>, kWarp> order{};
  std::array<int, kWarp> barriers{};
};

struct SharedObject {
  const void* tag;
  size_t bytes;
  void* memory;
};

// Objects by which the race detector orders a kernel with its launch: `begin` before its threads, `end` behind them.
struct Bounds {
  char begin, end;
};

std::string text(const Site& site) {
  std::ostringstream out;
  out << site.what << " (" << site.file << ":" << site.line << ")";
  return out.str();
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0 && std::strcmp(a.what, b.what) == 0;
}

// Runs the blocks of one launch, one after the other.
class Machine {
 public:
  Machine(Dim grid, Dim size, size_t shared_bytes, bool raised, const std::function<void()>& body, Bounds& bounds);

  void run_block(Dim index);

  Thread& current() { return *current_; }
  Space space_of(const void* address) const;
  size_t number(const Thread& thread) const { return static_cast<size_t>(&thread - threads_.data()); }
  unsigned char* dynamic() { return dynamic_; }
  int barrier(const Site& site, bool value);
  void meet(const Site& site, unsigned mask, void* record, Action action);
  void order_warp(const Site& site, unsigned mask);
  void* object(const void* tag, size_t bytes, size_t alignment);
  [[noreturn]] void give_up(const Site& site, const std::string& message);

 private:
  static void thread_entry(void* thread);
  void reset(Dim index);
  void free_shared();
  void rank_threads();
  Thread* choose();
  void wait(Thread& thread, const Site& site, unsigned mask);
  void wake(Thread& thread);
  void open_barrier();
  void close_if_complete(Warp& warp, size_t number);
  void end(Thread& thread);
  std::string stuck() const;

  Dim grid_, size_;
  size_t shared_bytes_;
  bool raised_;  // the kernel's limit of shared memory
  const std::function<void()>& body_;
  Bounds& bounds_;
  uint64_t seed_ = settings().seed;
  std::mt19937_64 random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Thread*> order_;   // by rank
  std::vector<uint64_t> ready_;  // bits by rank
  Thread* current_ = nullptr;
  int alive_ = 0;
  std::string error_;
  // Shared memory.
  std::vector<SharedObject> objects_;
  unsigned char* dynamic_ = nullptr;
  // The block barrier: of the threads that came, and of the last time it opened.
  int arrived_ = 0, count_ = 0, last_count_ = 0;
  unsigned barriers_ = 0;
  Site barrier_site_{};
  // What barriers order lies in memory of the block's own: a race between blocks must not look ordered because both
  // passed a barrier at one address.
  std::unique_ptr<std::array<char, 2>> barrier_order_;
};

Machine* machine = nullptr;

// Exactly the size asked for, so that the address sanitizer sees an access to the first byte behind it.
void* poisoned(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max<size_t>(bytes, 1)) != 0) {
    throw std::bad_alloc();
  }
  std::memset(memory, kPoison, bytes);
  return memory;
}

Machine::Machine(Dim grid, Dim size, size_t shared_bytes, bool raised, const std::function<void()>& body,
                 Bounds& bounds)
    : grid_(grid),
      size_(size),
      shared_bytes_(shared_bytes),
      raised_(raised),
      body_(body),
      bounds_(bounds),
      threads_(size.x * size.y * size.z),
      warps_((threads_.size() + kWarp - 1) / kWarp),
      order_(threads_.size()),
      ready_((threads_.size() + 63) / 64) {}

void Machine::reset(Dim index) {
  random_.seed(seed_ * 0x9e3779b97f4a7c15u + index.x + (uint64_t{index.y} << 20) + (uint64_t{index.z} << 40));
  alive_ = static_cast<int>(threads_.size());
  arrived_ = count_ = 0;
  barrier_order_ = std::make_unique<std::array<char, 2>>();
  warps_ = std::vector<Warp>(warps_.size());
  for (size_t w = 0; w < warps_.size(); ++w) {
    const size_t lanes = std::min<size_t>(kWarp, threads_.size() - w * kWarp);
    warps_[w].alive = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  }
  for (size_t i = 0; i < threads_.size(); ++i) {
    const unsigned n = static_cast<unsigned>(i);
    Thread& thread = threads_[i];
    thread.warp = static_cast<int>(i / kWarp);
    thread.ended = false;
    thread.copies.assign(1, {});
    thread.position = {{n % size_.x, n / size_.x % size_.y, n / (size_.x * size_.y)},
                       index,
                       size_,
                       grid_,
                       static_cast<int>(i % kWarp)};
  }
}

Space Machine::space_of(const void* address) const {
  const auto inside = [&](const void* first, size_t bytes) {
    return address >= first && address < static_cast<const char*>(first) + bytes;
  };
  if (inside(dynamic_, shared_bytes_)) return Space::shared;
  for (const SharedObject& object : objects_) {
    if (inside(object.memory, object.bytes)) return Space::shared;
  }
  if (inside(threads_.data(), threads_.size() * sizeof(Thread)) || current_->fiber.owns(address)) return Space::own;
  return Space::global;
}

void Machine::free_shared() {
  for (const SharedObject& object : objects_) std::free(object.memory);
  objects_.clear();
  std::free(dynamic_);
  dynamic_ = nullptr;
}

// A favoured warp, and within it a favoured lane, runs as far ahead of the others as barriers let it: that is what
// shows a missing one.
void Machine::rank_threads() {
  const auto arranged = [&](size_t first, size_t count) {
    std::vector<size_t> numbers(count);
    for (size_t i = 0; i < count; ++i) numbers[i] = first + i;
    if (seed_ == 1) std::reverse(numbers.begin(), numbers.end());
    if (seed_ > 1) std::shuffle(numbers.begin(), numbers.end(), random_);
    return numbers;
  };
  size_t rank = 0;
  for (size_t warp : arranged(0, warps_.size())) {
    const size_t first = warp * kWarp;
    for (size_t number : arranged(first, std::min<size_t>(kWarp, threads_.size() - first))) {
      order_[rank] = &threads_[number];
      threads_[number].rank = rank++;
    }
  }
}

Thread* Machine::choose() {
  const size_t words = ready_.size();
  const bool random = seed_ > 1 && seed_ % 2 == 1;
  const size_t start = random ? random_() % (words * 64) : 0;
  for (size_t i = 0; i <= words; ++i) {  // the first word twice: from the start, and up to it
    const size_t word = (start / 64 + i) % words;
    const uint64_t bits = ready_[word] & (i == 0 ? ~uint64_t{0} << (start % 64) : ~uint64_t{0});
    if (bits != 0) return order_[word * 64 + static_cast<size_t>(__builtin_ctzll(bits))];
  }
  return nullptr;
}

void Machine::thread_entry(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  race::acquire(&machine->bounds_.begin);
  machine->body_();
  race::release(&machine->bounds_.end);
  machine->end(thread);
  thread.fiber.finish();
}

void Machine::run_block(Dim index) {
  void* outside = race::enter();
  race::acquire(&bounds_.begin);
  reset(index);
  dynamic_ = static_cast<unsigned char*>(poisoned(shared_bytes_, 128));
  rank_threads();
  if (kCount) count_block(threads_.size());
  race::release(&bounds_.begin);
  for (Thread& thread : threads_) {
    thread.fiber.prepare(&Machine::thread_entry, &thread);
    wake(thread);
  }
  while (alive_ > 0 && error_.empty()) {
    current_ = choose();
    if (current_ == nullptr) {
      error_ = stuck();
    } else {
      current_->fiber.resume();
    }
  }
  race::acquire(&bounds_.end);
  if (kCount) count_block_end();
  free_shared();
  race::leave(outside);
  if (!error_.empty()) {
    std::ostringstream message;
    message << "emulator: block (" << index.x << ", " << index.y << ", " << index.z << "): " << error_;
    throw Error(message.str());
  }
}

void Machine::wait(Thread& thread, const Site& site, unsigned mask) {
  thread.site = site;
  thread.mask = mask;
  ready_[thread.rank / 64] &= ~(uint64_t{1} << (thread.rank % 64));
}

void Machine::wake(Thread& thread) {
  thread.site = Site{};
  ready_[thread.rank / 64] |= uint64_t{1} << (thread.rank % 64);
}

void Machine::give_up(const Site& site, const std::string& message) {
  const Dim& at = current_->position.thread;
  std::ostringstream out;
  out << "thread (" << at.x << ", " << at.y << ", " << at.z << "): " << text(site) << ": " << message;
  error_ = out.str();
  current_->fiber.suspend();
  std::abort();  // after an error nobody is resumed
}

void Machine::open_barrier() {
  last_count_ = count_;
  arrived_ = count_ = 0;
  ++barriers_;
  for (Thread& thread : threads_) {
    if (thread.ended || thread.site.what == nullptr || thread.mask != 0) continue;
    wake(thread);
    if (kCount) count_meeting(number(thread));
  }
}

int Machine::barrier(const Site& site, bool value) {
  Thread& thread = *current_;
  if (arrived_ > 0 && !same(barrier_site_, site)) {
    give_up(site, "the threads of the block wait at different barriers, others at " + text(barrier_site_));
  }
  barrier_site_ = site;
  void* order = &(*barrier_order_)[barriers_ % 2];
  race::release(order);
  count_ += value;
  ++arrived_;
  wait(thread, site, 0);
  if (arrived_ == alive_) open_barrier();
  thread.fiber.suspend();
  race::acquire(order);
  return last_count_;
}

void Machine::close_if_complete(Warp& warp, size_t number) {
  const Meeting meeting = warp.open[number];
  if (meeting.came != (meeting.mask & warp.alive)) return;
  warp.open.erase(warp.open.begin() + static_cast<std::ptrdiff_t>(number));
  if (meeting.action != nullptr && meeting.came != 0) meeting.action(meeting.records.data(), meeting.came);
  const size_t first = static_cast<size_t>(&warp - warps_.data()) * kWarp;
  for (size_t lane = 0; lane < kWarp; ++lane) {
    if ((meeting.came >> lane & 1) == 0) continue;
    wake(threads_[first + lane]);
    if (kCount && meeting.came == warp.alive) count_meeting(first + lane);
  }
}

void Machine::meet(const Site& site, unsigned mask, void* record, Action action) {
  Thread& thread = *current_;
  Warp& warp = warps_[static_cast<size_t>(thread.warp)];
  const size_t lane = static_cast<size_t>(thread.position.lane);
  if ((mask >> lane & 1) == 0) give_up(site, "the calling lane is not in its own mask");
  size_t number = 0;
  while (number < warp.open.size() && warp.open[number].mask != mask) ++number;
  if (number == warp.open.size()) {
    warp.open.push_back({});
    warp.open.back().mask = mask;
    warp.open.back().site = site;
    warp.open.back().action = action;
  }
  Meeting& meeting = warp.open[number];
  if (!same(meeting.site, site)) {
    give_up(site, "the lanes of one mask meet at different places, others at " + text(meeting.site));
  }
  meeting.came |= 1u << lane;
  meeting.records[lane] = record;
  wait(thread, site, mask);
  close_if_complete(warp, number);
  thread.fiber.suspend();
}

void Machine::order_warp(const Site& site, unsigned mask) {
  Warp& warp = warps_[static_cast<size_t>(current_->warp)];
  const size_t group = mask == 0 ? 0 : static_cast<size_t>(__builtin_ctz(mask));
  int& barriers = warp.barriers[group];
  void* order = &warp.order[group][static_cast<size_t>(barriers % 2)];
  race::release(order);
  meet(site, mask, &barriers,
       [](void* const* records, unsigned lanes) { ++*static_cast<int*>(records[__builtin_ctz(lanes)]); });
  race::acquire(order);
}

void Machine::end(Thread& thread) {
  thread.ended = true;
  wait(thread, Site{}, 0);
  Warp& warp = warps_[static_cast<size_t>(thread.warp)];
  warp.alive &= ~(1u << thread.position.lane);
  --alive_;
  // Those who waited for this one only.
  for (size_t number = warp.open.size(); number-- > 0;) close_if_complete(warp, number);
  if (arrived_ > 0 && arrived_ == alive_) open_barrier();
}

std::string Machine::stuck() const {
  std::ostringstream out;
  out << "no thread can go on:";
  for (size_t begin = 0; begin < threads_.size();) {  // runs of threads that wait at one place
    const Thread& thread = threads_[begin];
    size_t end = begin + 1;
    const auto alike = [&](const Thread& other) {
      if (thread.ended || other.ended) return thread.ended == other.ended;
      return thread.mask == other.mask && same(thread.site, other.site);
    };
    while (end < threads_.size() && alike(threads_[end])) ++end;
    out << " threads " << begin << "-" << end - 1;
    if (thread.ended) {
      out << " have ended;";
    } else {
      out << " wait at " << text(thread.site);
      if (thread.mask != 0) out << " with lanes 0x" << std::hex << thread.mask << std::dec;
      out << ";";
    }
    begin = end;
  }
  return out.str();
}

void* Machine::object(const void* tag, size_t bytes, size_t alignment) {
  size_t total = 0;
  for (const SharedObject& object : objects_) {
    if (object.tag == tag) return object.memory;
    total += object.bytes;
  }
  total += bytes;
  const Site site{"static_shared", "shared memory", 0};
  if (total > kMaxStaticShared) give_up(site, "more than 48 KB of static shared memory");
  if (!raised_ && total + shared_bytes_ > kSharedWithoutAsking) {
    give_up(site, "more than 48 KB of static and dynamic shared memory, and the kernel's limit was not raised");
  }
  if (total + shared_bytes_ > static_cast<size_t>(settings().shared_bytes_per_block)) {
    give_up(site, "static and dynamic shared memory are more than the device has for a block");
  }
  objects_.push_back({tag, bytes, poisoned(bytes, alignment)});
  return objects_.back().memory;
}

bool fits(Dim grid, Dim block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= INT32_MAX && grid.y <= 65535 && grid.z <= 65535 &&
         threads >= 1 && threads <= kMaxThreads && block.z <= 64;
}

// A launch that was written down: the kernel's place in the library, threads and dynamic shared memory of a block.
struct Listed {
  int64_t kernel, threads, shared_bytes;
};

std::vector<Listed>& listed() {
  static std::vector<Listed> launches;
  return launches;
}

// By kernel: the dynamic shared memory it was allowed, for as long as the process lives.
std::map<const void*, size_t>& allowed_shared_bytes() {
  static std::map<const void*, size_t> bytes;
  return bytes;
}

void check_device_has(size_t shared_bytes) {
  if (shared_bytes <= static_cast<size_t>(settings().shared_bytes_per_block)) return;
  std::ostringstream message;
  message << "emulator: " << shared_bytes << " bytes of dynamic shared memory, the device has "
          << settings().shared_bytes_per_block << " for a block";
  throw Error(message.str());
}

int64_t place_in_library(const void* kernel) { return static_cast<const char*>(kernel) - &__ehdr_start; }

}  // namespace

Settings& settings() {
  static Settings value;
  return value;
}

void allow_shared_bytes(const void* kernel, size_t bytes) {
  check_device_has(bytes);
  size_t& allowed = allowed_shared_bytes()[kernel];
  allowed = std::max(allowed, bytes);
}

void launch(const void* kernel, Dim grid, Dim block, size_t shared_bytes, const std::function<void()>& body) {
  if (machine != nullptr) throw Error("emulator: a kernel was launched by a kernel");
  if (!fits(grid, block)) throw Error("emulator: the grid or the block has a size that no device takes");
  check_device_has(shared_bytes);
  const auto& allowed = allowed_shared_bytes();
  const auto found = allowed.find(kernel);
  const bool raised = found != allowed.end();
  if (shared_bytes > (raised ? found->second : kSharedWithoutAsking)) {
    std::ostringstream message;
    message << "emulator: " << shared_bytes << " bytes of dynamic shared memory, the kernel's limit is "
            << (raised ? found->second : kSharedWithoutAsking) << ": it must be raised before the launch";
    throw Error(message.str());
  }
  if (settings().list_only) {
    listed().push_back(
        {place_in_library(kernel), int64_t{block.x} * block.y * block.z, static_cast<int64_t>(shared_bytes)});
    return;
  }
  if (kCount) count_launch(place_in_library(kernel));
  std::vector<Dim> blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
    }
  }
  const uint64_t seed = settings().seed;
  if (seed == 1) std::reverse(blocks.begin(), blocks.end());
  if (seed > 1) std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(seed));
  Bounds bounds;
  race::release(&bounds.begin);
  Machine launched(grid, block, shared_bytes, raised, body, bounds);
  machine = &launched;
  try {
    for (const Dim& index : blocks) launched.run_block(index);
  } catch (...) {
    machine = nullptr;
    throw;
  }
  machine = nullptr;
  race::acquire(&bounds.end);
}

const Position& position() { return machine->current().position; }

void fail(const Site& site, const std::string& message) { machine->give_up(site, message); }

void check_alignment(const Site& site, const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail(site, "the address is not a multiple of " + std::to_string(bytes));
  }
}

void check_global(const Site& site, const void* address) {
  if (space_of(address) == Space::shared) fail(site, "a store to global memory at an address in shared memory");
}

Space space_of(const void* address) { return machine->space_of(address); }

int current_thread() { return machine == nullptr ? -1 : static_cast<int>(machine->number(machine->current())); }

int block_barrier(const Site& site, bool value) { return machine->barrier(site, value); }

void fence() {
  static char order;
  race::acquire(&order);
  race::release(&order);
}

void warp_meet(const Site& site, unsigned mask, void* record, Action action) {
  machine->meet(site, mask, record, action);
}

void warp_barrier(const Site& site, unsigned mask) { machine->order_warp(site, mask); }

void* static_shared(const void* tag, size_t bytes, size_t alignment) { return machine->object(tag, bytes, alignment); }

unsigned char* dynamic_shared() { return machine->dynamic(); }

void copy_async(const Site& site, void* shared, const void* data, int bytes) {
  check_alignment(site, shared, static_cast<size_t>(bytes));
  Copy copy{shared, bytes, {}};
  std::memcpy(copy.data.data(), data, static_cast<size_t>(bytes));
  std::memset(shared, kPoison, static_cast<size_t>(bytes));
  machine->current().copies.back().push_back(copy);
}

void copy_async_commit() { machine->current().copies.emplace_back(); }

void copy_async_wait(int pending) {
  auto& copies = machine->current().copies;
  while (copies.size() > static_cast<size_t>(pending) + 1) {
    for (const Copy& copy : copies.front()) {
      std::memcpy(copy.to, copy.data.data(), static_cast<size_t>(copy.bytes));
    }
    copies.pop_front();
  }
}

}  // namespace emulator

// Called by the tests through ctypes.
extern "C" __attribute__((visibility("default"))) void ifdd_emulator_configure(uint64_t seed, int multiprocessors,
                                                                               int shared_bytes_per_block,
                                                                               int list_only) {
  emulator::settings() = {seed, multiprocessors, shared_bytes_per_block, list_only != 0};
}

// Takes the oldest of the launches that were written down; false if there is none.
extern "C" __attribute__((visibility("default"))) int ifdd_emulator_listed(emulator::Listed* launch) {
  auto& launches = emulator::listed();
  if (launches.empty()) return 0;
  *launch = launches.front();
  launches.erase(launches.begin());
  return 1;
}
