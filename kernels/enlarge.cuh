// Normalised heatmaps: the second half of `normalised_heatmaps` of the reference.
#pragma once

#include "sampling.cuh"

namespace {

// Columns of a thread. With 4 bytes at a time, instructions and not memory are what a heatmap of
// bytes waits for; the four lines of cells of a bicubic one take the registers of eight columns.
template <typename Pixel, bool CUBIC>
constexpr int COLUMNS = sizeof(Pixel) == 1 && !CUBIC ? 8 : 4;

// COUNT neighbouring pixels of a row, made of values from 0 to 1 and stored at once.
template <typename Pixel, int COUNT>
struct Pixels;

template <int COUNT>
struct Pixels<float, COUNT> {
    struct alignas(4 * COUNT) Stored {
        float values[COUNT];
    } stored;

    __device__ __forceinline__ void set(int i, float value) { stored.values[i] = value; }
    __device__ __forceinline__ float one(int i) const { return stored.values[i]; }
    __device__ __forceinline__ Stored all() const { return stored; }
};

// One level is 256 steps of a float at 2^15, so the level stands in the second byte; rounded
// down after adding one half, which is to the nearest level, and upwards in the middle.
template <int COUNT>
struct Pixels<unsigned char, COUNT> {
    struct alignas(COUNT) Stored {
        unsigned words[COUNT / 4];
    };
    unsigned bits[COUNT];

    __device__ __forceinline__ void set(int i, float value) {
        bits[i] = __float_as_uint(__fmaf_rd(value, 255.f, 32768.5f));
    }
    __device__ __forceinline__ unsigned char one(int i) const {
        return static_cast<unsigned char>(bits[i] >> 8);
    }
    __device__ __forceinline__ Stored all() const {
        Stored stored;
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const unsigned left = __byte_perm(bits[i], bits[i + 1], 0x0051);
            const unsigned right = __byte_perm(bits[i + 2], bits[i + 3], 0x0051);
            stored.words[i / 4] = __byte_perm(left, right, 0x5410);
        }
        return stored;
    }
};

// Where a thread's pixels of a row go: side by side and stored at once where rows allow it, a
// warp apart otherwise. Neighbouring threads store neighbouring pixels in both cases.
template <typename Pixel, int COUNT, bool TOGETHER>
struct Target {
    Pixel* out;
    int x, width;

    __device__ __forceinline__ int column(int i) const { return x + (TOGETHER ? i : WARP * i); }
    __device__ __forceinline__ void store(const Pixels<Pixel, COUNT>& pixels) {
        if constexpr (TOGETHER) {
            *reinterpret_cast<typename Pixels<Pixel, COUNT>::Stored*>(out) = pixels.all();
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                if (column(i) < width) out[WARP * i] = pixels.one(i);
        }
        out += width;
    }
};

// Rows [first, end) of a heatmap, from `target` on.
template <typename Pixel, int COUNT, bool CUBIC, bool TOGETHER>
__device__ __forceinline__ void draw(
    const HeatmapArguments& a, const Place& place, long long heatmap, int first, int end,
    Target<Pixel, COUNT, TOGETHER> target) {
    const Axis& columns = place.columns;
    const bool drawn = a.valid[heatmap];
    const int top = drawn ? clipped(place.rows.low, first, end) : end;
    const int bottom = drawn ? clipped(place.rows.high, top, end) : end;
    const float low = a.bounds[2 * heatmap];
    const float factor = 1.f / (a.bounds[2 * heatmap + 1] - low);
    Strip<CUBIC, COUNT> strip;
    strip.cam = a.cams + heatmap * place.rows.cells * columns.cells;
    strip.rows = place.rows;
    strip.width = columns.cells;
    strip.low = low;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const int x = target.column(i);
        strip.columns[i] = between(columns, static_cast<float>(x));
        strip.factors[i] = x >= columns.low && x < columns.high ? factor : 0.f;
    }
    strip.begin();
    Pixels<Pixel, COUNT> nothing;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) nothing.set(i, 0.f);
#pragma unroll 1
    for (int y = first; y < top; ++y) target.store(nothing);
    float row = static_cast<float>(top);
    for (int y = top; y < bottom; ++y, row += 1.f) {
        const float t = strip.go_to(row);
        Pixels<Pixel, COUNT> pixels;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) pixels.set(i, __saturatef(strip.curves[i].at(t)));
        target.store(pixels);
    }
#pragma unroll 1
    for (int y = bottom; y < end; ++y) target.store(nothing);
}

// A warp writes a strip of as many columns as its threads have, and `strip` rows, of one heatmap,
// which begins at `out`. `together`: whether each row allows what a thread stores at once.
template <typename Pixel, bool CUBIC>
__device__ __forceinline__ void draw_strip(
    const HeatmapArguments& a, const Place& place, long long heatmap, Pixel* out, int strip,
    bool together) {
    constexpr int COUNT = COLUMNS<Pixel, CUBIC>;
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const int warps = static_cast<int>(blockDim.x) / WARP;
    const int height = place.rows.size, width = place.columns.size;
    const int first = (static_cast<int>(blockIdx.y) * warps + warp) * strip;
    const int tile = static_cast<int>(blockIdx.z) * WARP * COUNT;
    if (first >= height || tile >= width) return;
    const int end = min(first + strip, height);
    out += static_cast<long long>(first) * width;
    if (together) {
        const int x = tile + COUNT * lane;
        if (x < width)
            draw<Pixel, COUNT, CUBIC, true>(a, place, heatmap, first, end, {out + x, x, width});
    } else {
        const int x = tile + lane;
        draw<Pixel, COUNT, CUBIC, false>(a, place, heatmap, first, end, {out + x, x, width});
    }
}

template <typename Pixel, bool CUBIC>
__device__ __forceinline__ void enlarge(const HeatmapArguments& a) {
    constexpr int COUNT = COLUMNS<Pixel, CUBIC>;
    const unsigned heatmap = blockIdx.x, classes = static_cast<unsigned>(a.classes);
    const Place place = place_of(a, heatmap / classes);
    const int height = place.rows.size, width = place.columns.size;
    Pixel* out = static_cast<Pixel*>(a.heatmaps) + place.start +
                 static_cast<long long>(heatmap % classes) * height * width;
    draw_strip<Pixel, CUBIC>(a, place, heatmap, out, a.strip,
                             a.aligned && width % COUNT == 0 && place.start % COUNT == 0);
}

}  // namespace
