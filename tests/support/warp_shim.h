// Runs the body of a CUDA kernel on the CPU, one thread block after another. Threads are coroutines.
// Lanes of a warp take turns from one collective operation to the next, and must meet at the same
// one; a warp runs on until it waits for others. Copies that run ahead land as late as they may, or,
// if EAGER, as early.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#define FUNCTION inline
using std::min;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
struct Index {
  int x, y, z;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  _Float16 value;
};

namespace shim {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  jmp_buf place;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  std::vector<std::vector<Copy>> groups;
  int met = 0;  // the collective operation that it waits in
  int barrier = -1, expected = 0;  // the barrier that its warp waits at, with so many threads
  bool started = false, done = false;
};

struct Operands {
  uint32_t a[4], b[2];
};

inline bool eager = false;
inline std::vector<Thread> threads;
inline std::vector<Operands> posted[2];
inline std::vector<int> turns;  // whose operands of two products are apart
inline std::function<void()> body;
inline jmp_buf scheduler;
inline int current;

inline void stop(const char* why) {
  fprintf(stderr, "warp shim: %s (thread %d)\n", why, current);
  abort();
}

inline void meet(int where) {
  threads[current].met = where;
  if (_setjmp(threads[current].place) == 0) _longjmp(scheduler, 1);
}

inline void wait(int where, int barrier, int expected) {
  threads[current].barrier = barrier;
  threads[current].expected = expected;
  meet(where);
}

inline void land(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
}

inline void start() {
  body();
  threads[current].done = true;
  _longjmp(scheduler, 1);
}

inline void resume(int thread) {
  current = thread;
  if (_setjmp(scheduler) != 0) return;
  if (threads[thread].started) _longjmp(threads[thread].place, 1);
  threads[thread].started = true;
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = threads[thread].stack.data();
  context.uc_stack.ss_size = threads[thread].stack.size();
  makecontext(&context, start, 0);
  setcontext(&context);
}

inline void run_block(int num_threads) {
  threads = std::vector<Thread>(num_threads);
  for (auto& operands : posted) operands.assign(num_threads, {});
  turns.assign(num_threads, 0);
  int num_done = 0;
  while (num_done < num_threads) {
    bool moved = false;
    for (int first = 0; first < num_threads; first += 32) {
      Thread* lanes = &threads[first];
      // As far as it comes: what it should have waited for is not there yet.
      while (lanes->barrier < 0 && !lanes->done) {
        for (int lane = 0; lane < 32; ++lane) resume(first + lane);
        for (int lane = 1; lane < 32; ++lane) {
          if (lanes[lane].done != lanes->done) stop("a lane ended early");
          if (!lanes->done && lanes[lane].met != lanes->met) stop("lanes met elsewhere");
        }
        if (lanes->done) num_done += 32;
        moved = true;
      }
    }
    for (int barrier = 0; barrier < 16; ++barrier) {
      std::vector<Thread*> waiting;  // the first lanes of warps
      for (int first = 0; first < num_threads; first += 32) {
        if (threads[first].barrier == barrier) waiting.push_back(&threads[first]);
      }
      const int missing = waiting.empty() ? 1 : waiting[0]->expected - 32 * int(waiting.size());
      if (missing < 0) stop("more threads at a barrier than it is for");
      if (missing > 0) continue;
      for (auto* lane : waiting) lane->barrier = -1;
    }
    if (!moved) stop("warps wait for one that does not come");
  }
}

}  // namespace shim

inline Index blockIdx, gridDim;
struct ThreadIndex {
  struct {
    operator int() const {
      return shim::current;
    }
  } x;
};
inline ThreadIndex threadIdx;

#define __syncthreads() shim::wait(__LINE__, 0, shim::threads.size())
#define __syncwarp() shim::meet(__LINE__)
#define memory_fence()
#define sync_slot(slot, num_threads) shim::wait(__LINE__, 1 + slot, num_threads)

// Thread blocks run one after another.
inline uint32_t atomicAdd(uint32_t* counter, uint32_t more) {
  const uint32_t before = *counter;
  *counter += more;
  return before;
}

inline float2 load_pair(const float* from) {
  return {from[0], from[1]};
}

inline float __uint_as_float(uint32_t bits) {
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}

inline uint32_t and_or(uint32_t bits, uint32_t mask, uint32_t more) {
  return (bits & mask) | more;
}

using SharedAddress = char*;

inline SharedAddress shared_address(char* pointer) {
  return pointer;
}

inline void load_shared(uint32_t (&words)[4], SharedAddress from) {
  if (reinterpret_cast<uintptr_t>(from) % 16) shim::stop("load from an odd address");
  memcpy(words, from, 16);
}

inline uint16_t load_shared(SharedAddress from) {
  uint16_t bits;
  memcpy(&bits, from, 2);
  return bits;
}

template <int BYTES>
void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % BYTES) shim::stop("copy to an odd address");
  if (reinterpret_cast<uintptr_t>(from) % BYTES) shim::stop("copy from an odd address");
  const shim::Copy copy{to, from, BYTES};
  auto& groups = shim::threads[shim::current].groups;
  if (groups.empty()) groups.emplace_back();
  if (shim::eager) {
    shim::land(copy);
  } else {
    groups.back().push_back(copy);
  }
}

inline void commit_copies() {
  auto& groups = shim::threads[shim::current].groups;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

template <int PENDING>
void wait_for_copies() {
  auto& groups = shim::threads[shim::current].groups;  // the last one is not committed
  while (groups.size() > PENDING + 1) {
    for (const auto& copy : groups.front()) shim::land(copy);
    groups.erase(groups.begin());
  }
}

template <typename T>
struct Pair;

template <>
struct Pair<__nv_bfloat16> {
  static constexpr uint32_t MAGIC = 0x43004300;
  static float widen(uint16_t bits) {
    return __uint_as_float(uint32_t(bits) << 16);
  }
  static uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};

template <>
struct Pair<__half> {
  static constexpr uint32_t MAGIC = 0x64006400;
  static float widen(uint16_t bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
  }
  static uint16_t narrow(float from) {
    const _Float16 value = from;
    uint16_t bits;
    memcpy(&bits, &value, 2);
    return bits;
  }
};

template <typename T>
uint32_t pack(float low, float high) {
  return uint32_t(Pair<T>::narrow(high)) << 16 | Pair<T>::narrow(low);
}

inline void store_pair(float* to, float low, float high) {
  to[0] = low;
  to[1] = high;
}

template <typename T>
void store_pair(T* to, float low, float high) {
  *reinterpret_cast<uint32_t*>(to) = pack<T>(low, high);
}

template <typename T>
uint32_t scale_pair(uint32_t number, uint32_t scale, uint32_t bias) {
  float out[2];
  for (int i = 0; i < 2; ++i) {
    const int shift = 16 * i;
    const float value =
        Pair<T>::widen(number >> shift) - Pair<T>::widen(Pair<T>::MAGIC & 0xffff);
    out[i] = fmaf(value, Pair<T>::widen(scale >> shift), Pair<T>::widen(bias >> shift));
  }
  return pack<T>(out[0], out[1]);
}

// m16n8k16 of the PTX manual, section "Matrix Fragments for mma.m16n8k16": a lane works out its four
// sums from what all lanes have posted.
template <typename T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  auto& posted = shim::posted[shim::turns[shim::current]++ % 2];
  posted[shim::current] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  shim::meet(__LINE__);
  const int lane = shim::current % 32;
  const shim::Operands* warp = &posted[shim::current - lane];
  for (int i = 0; i < 4; ++i) {
    const int half = i / 2, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2, shift = k % 2 * 16;
      const uint32_t left = warp[lane / 4 * 4 + owner].a[k / 8 * 2 + half];
      const uint32_t right = warp[column * 4 + owner].b[k / 8];
      sum[i] += Pair<T>::widen(left >> shift) * Pair<T>::widen(right >> shift);
    }
  }
}
