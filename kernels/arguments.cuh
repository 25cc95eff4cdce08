// The kernels' arguments, and the little that all of them use.
#pragma once

#ifndef SIGCAM_HOST
#define SIGCAM_SHARED(name) extern __shared__ __align__(16) float name[]

static __device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

// kernels/arguments.py lays out the structures of the same names in the same order; a test
// compares the offsets.

// Channels of an image, at most.
#define MOST_CHANNELS 16

// How one axis of the heatmap lies over the cam: pixel i is at scale * i + offset in the cam,
// where 0 is the first cell's centre. Pixels outside [low, high) are outside the crop box.
struct Axis {
    int size, low, high, cells;
    float scale, offset;
};

// An image's heatmaps: how they lie over the cam, and the number of pixels before them.
struct Place {
    Axis rows, columns;
    long long start;
};

struct CombineArguments {
    const void* features;   // [B, N, P], P = h * w
    const void* weights;    // [B, K, N] or [B, K, N, P], of the same type
    float* partial;         // [B, K, chunks, P]
    float* cams;            // [B, K, P]
    float* bounds;          // [B, K, 2]: smallest and largest value of the enlarged cam
    unsigned char* valid;   // [B, K]
    unsigned* arrived;      // [B, class tiles]; 0 before the launch and after it
    const Place* places;    // [B]; null where all images are like `place`
    int channels, positions, classes;
    int tile_classes;       // classes of a block, at most the kernel's CLASSES
    int group;              // channels whose elements fill whole vectors
    int units;              // vectors in a group
    int tile_units;         // vectors of a group that a block reads side by side
    int lanes;              // groups that a block reads at a time
    int chunk_groups;       // groups of a block
    int chunks, tiles;      // blocks along the channels, along a group
    int clamp;              // NWC
    int keep_sign;          // leave the sum as it is; negative sums are 0 otherwise
    int bilinear;           // find the extremes here
    Place place;
};

struct HeatmapArguments {
    const float* cams;      // [B, K, P]
    float* bounds;          // [B, K, 2]
    unsigned char* valid;   // [B, K]
    float* partial;         // [B * K, blocks of `extremes`, 3]
    unsigned* arrived;      // [B * K]; 0 before the launch and after it
    void* heatmaps;         // float32 or uint8: [K, H, W] of each image, from its `start` on
    const Place* places;    // [B]; null where all images are like `place`
    int classes;
    int strip;              // pixel rows of a warp
    int aligned;            // whether `heatmaps` is a multiple of what a thread stores at once
    Place place;
};

// How one axis of a network's input lies in an image. From the image's pixel `start` on, cells of
// `factor` pixels are averaged; the input's pixels [first, first + shown) show the cells, the others
// are border.
struct InputAxis {
    int start, factor, cells;
    int first, shown, length;
};

struct PrepareArguments {
    const unsigned char* images;
    void* inputs;           // uint8 [B, H, W, n] or float32 [B, n, H, W]
    long long image;        // bytes from an image to the next
    long long row, column, channel;  // and from a pixel to the next along each axis
    InputAxis rows, columns;
    int channels;           // n
    int halves_up;          // means halfway between levels go up; to the even level otherwise
    float share;            // of a pixel in the mean of its cell
    float border[MOST_CHANNELS];     // levels where no image is
    float scale[MOST_CHANNELS], shift[MOST_CHANNELS];  // float = level * scale + shift
};

namespace {

constexpr int WARP = 32;
constexpr float LARGEST = 3.402823466e38f;

// Shared memory begins with the word of `is_last` and one word for each class of a block.
constexpr int HEADER = 8;

struct Half {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return half_to_float(value.bits); }

// Unlike fmaxf these keep a NaN, so that a broken weight makes an invalid heatmap.
__device__ __forceinline__ float not_negative(float value) { return value < 0.f ? 0.f : value; }

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= LARGEST; }

__device__ __forceinline__ int clipped(int value, int low, int high) {
    return min(max(value, low), high);
}

// Where an image's heatmaps lie.
template <typename Arguments>
__device__ __forceinline__ Place place_of(const Arguments& a, long long image) {
    if (a.places) return a.places[image];
    Place place = a.place;
    place.start = image * a.classes * place.rows.size * place.columns.size;
    return place;
}

// Whether all blocks of a group have got here; true in the last one, which sees all that
// the others wrote before. The counter is 0 again afterwards.
__device__ bool is_last(unsigned* counter, unsigned blocks, float* word) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned before = atomicAdd(counter, 1u);
        *word = before == blocks - 1 ? 1.f : 0.f;
        if (before == blocks - 1) atomicExch(counter, 0u);
    }
    __syncthreads();
    const bool last = *word != 0.f;
    if (last) __threadfence();
    return last;
}

}  // namespace
