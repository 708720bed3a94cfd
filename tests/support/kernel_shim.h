// The C++ dialect of the kernel sources. Threads of a thread block are coroutines on one OS thread;
// the lanes of a warp run one after another from one barrier or shuffle to the next. A thread block
// whose lanes do not meet at the same place is an error, as it is undefined on a GPU.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>

#define GLOBAL
#define SHARED static
#define PRIVATE
#define FUNCTION inline
#define LOAD(type, address) (*reinterpret_cast<const type*>(address))
#define WRITABLE(type, address) const_cast<type*>(address)
#define EXP2(x) exp2f(x)
#define RSQRT(x) (1.0f / sqrtf(x))
#define COS(x) cosf(x)
#define SIN(x) sinf(x)
#define ANY_LANE(condition) any_lane(condition, __LINE__)
#define WARP_BARRIER pause_at(__LINE__)
#define BLOCK_BARRIER pause_at(-__LINE__)

using std::fmax;

struct float2 {
  float x, y;
};
struct int3 {
  int x, y, z;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline float bits_to_float(uint32_t bits) {
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline uint32_t float_to_bits(float value) {
  uint32_t out;
  memcpy(&out, &value, 4);
  return out;
}

struct float16 {
  _Float16 value;
  float16() = default;
  explicit float16(float from) : value(from) {}
  explicit operator float() const {
    return value;
  }
};

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float from) {
    const uint32_t wide = float_to_bits(from);
    bits = from != from ? 0x7fc0 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  }
  explicit operator float() const {
    return bits_to_float(uint32_t(bits) << 16);
  }
};

template <typename S>
inline float2 unpack_pair(uint32_t word) {
  S pair[2];
  memcpy(pair, &word, 4);
  return {static_cast<float>(pair[0]), static_cast<float>(pair[1])};
}

constexpr int FINISHED = 0;
constexpr int STACK_BYTES = 1 << 16;
constexpr int MAX_LANES = 1024;

struct Lane {
  ucontext_t context;
  jmp_buf paused;
  bool started;
  int place;  // where it waits: a line for a warp barrier, minus the line for a block barrier
  float passed[2];
  int turn;
};

static Lane lanes[MAX_LANES];
static char* stacks;
static ucontext_t start_context;
static jmp_buf scheduler;
static int this_thread;
static int3 grid_position;
static int3 grid_extent;
static void (*kernel)();

__attribute__((noinline)) static void pause_at(int place) {
  Lane& lane = lanes[this_thread];
  lane.place = place;
  if (_setjmp(lane.paused) == 0) {
    _longjmp(scheduler, 1);
  }
}

// The fast lane may pass its next number before the slow one has taken this: hence two places.
inline float lane_xor(float value, int mask, int line = __builtin_LINE()) {
  Lane& lane = lanes[this_thread];
  const Lane& other = lanes[this_thread ^ mask];
  lane.turn ^= 1;
  lane.passed[lane.turn] = value;
  pause_at(line);
  return other.passed[lane.turn];
}

inline bool any_lane(bool condition, int line) {
  float count = condition;
  for (int offset = 1; offset < 32; offset *= 2) {
    count += lane_xor(count, offset, line);
  }
  return count != 0;
}

static void enter() {
  kernel();
  lanes[this_thread].place = FINISHED;
  _longjmp(scheduler, 1);
}

static void resume(int index) {
  Lane& lane = lanes[index];
  this_thread = index;
  if (_setjmp(scheduler) != 0) {
    return;
  }
  if (lane.started) {
    _longjmp(lane.paused, 1);
  }
  lane.started = true;
  setcontext(&lane.context);
}

// 0, or 1 if lanes of a warp, 2 if warps of a thread block have not met.
static int run_block(int threads, bool backwards) {
  for (int i = 0; i < threads; ++i) {
    getcontext(&lanes[i].context);
    lanes[i].context.uc_stack.ss_sp = stacks + size_t(i) * STACK_BYTES;
    lanes[i].context.uc_stack.ss_size = STACK_BYTES;
    lanes[i].context.uc_link = nullptr;
    makecontext(&lanes[i].context, enter, 0);
    lanes[i].started = false;
    lanes[i].turn = 0;
  }
  while (true) {
    for (int w = 0; w < threads / 32; ++w) {
      const int first = (backwards ? threads / 32 - 1 - w : w) * 32;
      do {
        for (int i = 0; i < 32; ++i) {
          resume(first + (backwards ? 31 - i : i));
        }
        for (int i = 1; i < 32; ++i) {
          if (lanes[first + i].place != lanes[first].place) {
            return 1;
          }
        }
      } while (lanes[first].place > 0);
    }
    for (int i = 32; i < threads; i += 32) {
      if (lanes[i].place != lanes[0].place) {
        return 2;
      }
    }
    if (lanes[0].place == FINISHED) {
      return 0;
    }
  }
}

static int run_grid(void (*body)(), const int* grid, int threads, bool backwards) {
  kernel = body;
  if (stacks == nullptr) {
    stacks = static_cast<char*>(malloc(size_t(MAX_LANES) * STACK_BYTES));
  }
  grid_extent = {grid[0], grid[1], grid[2]};
  for (int z = 0; z < grid[2]; ++z) {
    for (int y = 0; y < grid[1]; ++y) {
      for (int x = 0; x < grid[0]; ++x) {
        grid_position = {x, y, z};
        const int failed = run_block(threads, backwards);
        if (failed != 0) {
          return failed;
        }
      }
    }
  }
  return 0;
}
