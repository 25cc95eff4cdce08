// Smallest and largest value of enlarged cams inside the crop box.
#pragma once

#include "sampling.cuh"

namespace {

constexpr float SMALLEST_NORMAL = 1.175494351e-38f;
constexpr float FLAT = 1e-5f;  // part of the largest value up to which a range counts as none
constexpr int STRIP_COLUMNS = 4;  // pixels of a row that a thread of `extremes` looks at

struct Extremes {
    float low = LARGEST, high = -LARGEST;

    __device__ __forceinline__ void add(float value) {
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
    __device__ __forceinline__ void add(const Extremes& other) {
        low = fminf(low, other.low);
        high = fmaxf(high, other.high);
    }
};

__device__ __forceinline__ unsigned char is_valid(const Extremes& found, bool finite) {
    const float extent = found.high - found.low;
    const float largest = fmaxf(fabsf(found.low), fabsf(found.high));
    const float flat = fmaxf(FLAT * largest, SMALLEST_NORMAL);
    return finite && extent > flat && extent < LARGEST ? 1 : 0;
}

// The extremes of COUNT heatmaps over the block: those of heatmap i in thread i.
// `scratch` holds 2 * COUNT floats for each warp.
template <int COUNT>
__device__ __forceinline__ Extremes over_block(Extremes (&mine)[COUNT], float* scratch) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            const float low = __shfl_xor_sync(0xffffffffu, mine[k].low, offset);
            const float high = __shfl_xor_sync(0xffffffffu, mine[k].high, offset);
            mine[k].add({low, high});
        }
        if (thread % WARP == 0) {
            scratch[2 * (thread / WARP * COUNT + k)] = mine[k].low;
            scratch[2 * (thread / WARP * COUNT + k) + 1] = mine[k].high;
        }
    }
    __syncthreads();
    Extremes all;
    if (thread < COUNT) {
        for (int warp = 0; warp < static_cast<int>(blockDim.x) / WARP; ++warp) {
            const float* of_warp = scratch + 2 * (warp * COUNT + thread);
            all.add({of_warp[0], of_warp[1]});
        }
    }
    return all;
}

// The pixels that can hold an extreme value of a bilinear heatmap, which is linear between two
// neighbouring cell centres: the crop box's ends and the pixels on both sides of each centre.
__device__ __forceinline__ int candidates(const Axis& axis) { return 2 * axis.cells + 2; }

__device__ __forceinline__ float candidate(const Axis& axis, int index) {
    const float low = static_cast<float>(axis.low), high = static_cast<float>(axis.high - 1);
    if (index < 2) return index == 0 ? low : high;
    const float centre = static_cast<float>(index / 2 - 1);
    const float at = ceilf((centre - axis.offset) / axis.scale);
    // Rounding may put the centre on the wrong side of a pixel that lies on it, where it
    // makes no difference which of the two counts.
    return fminf(fmaxf(index % 2 == 0 ? at - 1.f : at, low), high);
}

// Adds the extremes of `count` of COUNT bilinear heatmaps of one image. A warp takes every
// `warps`-th row from the `warp`-th on, and its lanes the columns, for all of them at once:
// what a pixel's place among the cells costs is paid once.
template <int COUNT>
__device__ __forceinline__ void add_bilinear(
    const Place& place, const float* cams, int count, int warp, int warps,
    Extremes (&mine)[COUNT]) {
    const int width = place.columns.cells, positions = place.rows.cells * width;
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    for (int j = lane; j < candidates(place.columns); j += WARP) {
        const Between column = between(place.columns, candidate(place.columns, j));
        for (int i = warp; i < candidates(place.rows); i += warps) {
            const Between row = between(place.rows, candidate(place.rows, i));
            const int last = place.rows.cells - 1;
            const float* above = cams + clipped(row.cell, 0, last) * width;
            const float* below = cams + clipped(row.cell + 1, 0, last) * width;
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                if (k >= count) break;
                const float cells[2] = {
                    across<false>(above + k * positions, width, column),
                    across<false>(below + k * positions, width, column)};
                mine[k].add(Curve<false>(cells).at(row.t));
            }
        }
    }
}

// Adds the extremes of a bicubic heatmap, which can lie at any pixel. A warp takes every
// `warps`-th strip from the `warp`-th on.
__device__ __forceinline__ void add_bicubic(
    const HeatmapArguments& a, const Place& place, const float* cam, int warp, int warps,
    Extremes& mine) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const Axis& columns = place.columns;
    const int across = (columns.high - columns.low + WARP * STRIP_COLUMNS - 1) /
                       (WARP * STRIP_COLUMNS);
    const int down = (place.rows.high - place.rows.low + a.strip - 1) / a.strip;
    for (int item = warp; item < across * down; item += warps) {
        Strip<true, STRIP_COLUMNS> strip;
        strip.cam = cam;
        strip.rows = place.rows;
        strip.width = columns.cells;
        strip.low = 0.f;
#pragma unroll
        for (int i = 0; i < STRIP_COLUMNS; ++i) {
            const int x = columns.low + (item % across * STRIP_COLUMNS + i) * WARP + lane;
            // Past the crop box's end the last pixel counts again.
            strip.columns[i] = between(columns, static_cast<float>(min(x, columns.high - 1)));
            strip.factors[i] = 1.f;
        }
        strip.begin();
        const int first = place.rows.low + item / across * a.strip;
        const int end = min(first + a.strip, place.rows.high);
        for (int y = first; y < end; ++y) {
            const float t = strip.go_to(static_cast<float>(y));
#pragma unroll
            for (int i = 0; i < STRIP_COLUMNS; ++i) mine.add(strip.curves[i].at(t));
        }
    }
}

// The blocks of a heatmap (along y) share its rows; the last one puts together what they found.
template <bool CUBIC>
__device__ __forceinline__ void extremes(const HeatmapArguments& a) {
    SIGCAM_SHARED(header);
    float* scratch = header + HEADER;
    unsigned* broken = reinterpret_cast<unsigned*>(header + 1);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int blocks = static_cast<int>(gridDim.y), block = static_cast<int>(blockIdx.y);
    const int warp = block * (threads / WARP) + thread / WARP, warps = blocks * (threads / WARP);
    const long long heatmap = blockIdx.x;
    const Place place = place_of(a, blockIdx.x / static_cast<unsigned>(a.classes));
    const int positions = place.rows.cells * place.columns.cells;
    const float* cam = a.cams + heatmap * positions;
    if (thread == 0) *broken = 0;
    __syncthreads();
    for (int p = block * threads + thread; p < positions; p += blocks * threads)
        if (!is_finite(cam[p])) atomicExch(broken, 1u);
    Extremes mine[1];
    if constexpr (CUBIC) {
        add_bicubic(a, place, cam, warp, warps, mine[0]);
    } else {
        add_bilinear<1>(place, cam, 1, warp, warps, mine);
    }
    Extremes found = over_block<1>(mine, scratch);
    float* partial = a.partial + heatmap * blocks * 3;
    if (thread == 0) {
        partial[3 * block] = found.low;
        partial[3 * block + 1] = found.high;
        partial[3 * block + 2] = *broken ? 0.f : 1.f;
    }
    if (!is_last(a.arrived + heatmap, gridDim.y, header)) return;
    if (thread == 0) {
        bool finite = true;
        for (int i = 0; i < blocks; ++i) {
            found.add({partial[3 * i], partial[3 * i + 1]});
            finite = finite && partial[3 * i + 2] != 0.f;
        }
        a.bounds[2 * heatmap] = found.low;
        a.bounds[2 * heatmap + 1] = found.high;
        a.valid[heatmap] = is_valid(found, finite);
    }
}

}  // namespace
