// Enough of CUDA to compile kernels/clamp_combine.cu for the CPU, unchanged.
//
// Two ways to run a block. As fibers (SIGCAM_FIBERS): one system thread, every CUDA thread a
// stack of its own that is left at barriers; fast, and finds barriers that not all threads reach.
// As threads otherwise: every CUDA thread a thread of the system and several blocks at a
// time, so that ThreadSanitizer sees what a GPU would race on. Atomics are relaxed and only
// barriers and fences order memory there, as on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define SIGCAM_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define SIGCAM_SHARED(name) float* name = host::shared()

namespace host {

struct Index {
    unsigned x, y, z;
};

// Where the running CUDA thread is.
struct Place {
    Index thread, block, blocks;
    unsigned threads;
};

const Place& place();
float* shared();
void barrier();
void fence();
// The value that the lane `lane ^ mask` of the same warp passes.
uint32_t exchange(uint32_t value, int mask);

template <typename T>
T shuffle(T value, int mask) {
    static_assert(sizeof(T) == 4);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = exchange(bits, mask);
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace host

#define threadIdx (host::place().thread)
#define blockIdx (host::place().block)
#define gridDim (host::place().blocks)
#define blockDim (host::Index{host::place().threads, 1, 1})

inline void __syncthreads() { host::barrier(); }
inline void __threadfence() { host::fence(); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return host::shuffle(value, mask);
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline unsigned atomicExch(unsigned* at, unsigned value) {
    return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __saturatef(float value) { return value > 0.f ? value < 1.f ? value : 1.f : 0.f; }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
// a * b + c rounded down. In double it is exact for what the kernels ask: 24 and 8 bits.
inline float __fmaf_rd(float a, float b, float c) {
    const double exact = static_cast<double>(a) * b + c;
    const float nearest = static_cast<float>(exact);
    return nearest > exact ? std::nextafterf(nearest, -INFINITY) : nearest;
}
// Four of the eight bytes of `low` and `high`, by the numbers in the selector's digits.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned found = 0;
    for (int i = 0; i < 4; ++i)
        found |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return found;
}
inline float half_to_float(unsigned short bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}
