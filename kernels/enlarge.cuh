// Normalised heatmaps: the second half of `normalised_heatmaps` of the reference.
#pragma once

#include "sampling.cuh"

namespace {

constexpr int FOUR = 4;                    // columns of a thread
constexpr int TILE_COLUMNS = FOUR * WARP;  // pixels of a row that a warp writes

// Four pixels of a thread, made of values from 0 to 1.
template <typename Pixel>
struct Four;

template <>
struct Four<float> {
    struct alignas(16) Stored {
        float values[FOUR];
    } stored;

    __device__ __forceinline__ void set(int i, float value) { stored.values[i] = value; }
    __device__ __forceinline__ float one(int i) const { return stored.values[i]; }
    __device__ __forceinline__ Stored all() const { return stored; }
};

// One level is 256 steps of a float at 2^15, so the level stands in the second byte; rounded
// down after adding one half, which is to the nearest level, and upwards in the middle.
template <>
struct Four<unsigned char> {
    unsigned bits[FOUR];

    __device__ __forceinline__ void set(int i, float value) {
        bits[i] = __float_as_uint(__fmaf_rd(value, 255.f, 32768.5f));
    }
    __device__ __forceinline__ unsigned char one(int i) const {
        return static_cast<unsigned char>(bits[i] >> 8);
    }
    __device__ __forceinline__ unsigned all() const {
        const unsigned left = __byte_perm(bits[0], bits[1], 0x0051);
        return __byte_perm(left, __byte_perm(bits[2], bits[3], 0x0051), 0x5410);
    }
};

// Where a thread's four pixels of a row go: side by side and stored at once where rows allow
// it, a warp apart otherwise. Neighbouring threads store neighbouring pixels in both cases.
template <typename Pixel, bool TOGETHER>
struct Target {
    Pixel* out;
    int x, width;

    __device__ __forceinline__ int column(int i) const { return x + (TOGETHER ? i : WARP * i); }
    __device__ __forceinline__ void store(const Four<Pixel>& four) {
        if constexpr (TOGETHER) {
            *reinterpret_cast<decltype(four.all())*>(out) = four.all();
        } else {
#pragma unroll
            for (int i = 0; i < FOUR; ++i)
                if (column(i) < width) out[WARP * i] = four.one(i);
        }
        out += width;
    }
};

// Rows [first, end) of a heatmap, from `target` on.
template <typename Pixel, bool CUBIC, bool TOGETHER>
__device__ __forceinline__ void draw(
    const HeatmapArguments& a, const Place& place, long long heatmap, int first, int end,
    Target<Pixel, TOGETHER> target) {
    const Axis& columns = place.columns;
    const bool drawn = a.valid[heatmap];
    const int top = drawn ? clipped(place.rows.low, first, end) : end;
    const int bottom = drawn ? clipped(place.rows.high, top, end) : end;
    const float low = a.bounds[2 * heatmap];
    const float factor = 1.f / (a.bounds[2 * heatmap + 1] - low);
    Strip<CUBIC, FOUR> strip;
    strip.cam = a.cams + heatmap * place.rows.cells * columns.cells;
    strip.rows = place.rows;
    strip.width = columns.cells;
    strip.low = low;
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
        const int x = target.column(i);
        strip.columns[i] = between(columns, static_cast<float>(x));
        strip.factors[i] = x >= columns.low && x < columns.high ? factor : 0.f;
    }
    strip.begin();
    Four<Pixel> nothing;
#pragma unroll
    for (int i = 0; i < FOUR; ++i) nothing.set(i, 0.f);
#pragma unroll 1
    for (int y = first; y < top; ++y) target.store(nothing);
    float row = static_cast<float>(top);
    for (int y = top; y < bottom; ++y, row += 1.f) {
        const float t = strip.go_to(row);
        Four<Pixel> four;
#pragma unroll
        for (int i = 0; i < FOUR; ++i) four.set(i, __saturatef(strip.curves[i].at(t)));
        target.store(four);
    }
#pragma unroll 1
    for (int y = bottom; y < end; ++y) target.store(nothing);
}

// A warp writes a strip of TILE_COLUMNS pixels by `strip` rows of one heatmap.
template <typename Pixel, bool CUBIC>
__device__ __forceinline__ void enlarge(const HeatmapArguments& a) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const int warps = static_cast<int>(blockDim.x) / WARP;
    const long long heatmap = blockIdx.x;
    const Place place = place_of(a, heatmap / a.classes);
    const int height = place.rows.size, width = place.columns.size;
    const int first = (static_cast<int>(blockIdx.y) * warps + warp) * a.strip;
    const int tile = static_cast<int>(blockIdx.z) * TILE_COLUMNS;
    if (first >= height || tile >= width) return;
    const int end = min(first + a.strip, height);
    Pixel* out = static_cast<Pixel*>(a.heatmaps) + place.start +
                 (heatmap % a.classes * height + first) * width;
    if (a.aligned && width % FOUR == 0 && place.start % FOUR == 0) {
        const int x = tile + FOUR * lane;
        if (x < width) draw<Pixel, CUBIC, true>(a, place, heatmap, first, end, {out + x, x, width});
    } else {
        const int x = tile + lane;
        draw<Pixel, CUBIC, false>(a, place, heatmap, first, end, {out + x, x, width});
    }
}

}  // namespace
