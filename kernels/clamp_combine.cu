// Clamp-and-combine: from features and CAM weights to normalised heatmaps.
//
// How to compile
//   At first use, by NVRTC for the GPU at hand: kernels/compile.py. The file includes nothing,
//   so that no CUDA toolkit is needed.
//   Ahead of time, by nvcc for many GPUs: `sigcam kernels build`, kernels/fatbin.py.
//   For the CPU, by g++ in the tests, unchanged: tests/support/host_cuda/host_cuda.h stands for
//   the little of CUDA that is used here.
//
// Contract
//   combine   cam = max(0, sum_n max(0, w_n) F_n)          ("Beyond Softmax", Eq. 4, with NWC)
//             (either max can be left out)
//             and, for bilinear heatmaps, the smallest and largest value inside the crop box
//   extremes  these two values for bicubic heatmaps, which can have them at any pixel
//   enlarge   heatmap = (upsample(cam) - smallest) / (largest - smallest), 0 outside the crop box
//   A bilinear heatmap takes two launches and a bicubic one three. kernels/plan.py decides them
//   and their arguments; docs/kernels.md explains how the work is divided among threads. Sums
//   have a fixed order: the same input gives the same bits.
//
// CPU reference
//   kernels/reference.py, in NumPy: `clamp_combine` for combine, `normalised_heatmaps` for the
//   other two, `to_bytes` for heatmaps of bytes. The tests compare every kernel with it.

#ifndef SIGCAM_HOST
#define SIGCAM_SHARED(name) extern __shared__ __align__(16) float name[]

static __device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

namespace {

constexpr int WARP = 32;
constexpr int TILE_COLUMNS = 128;  // pixels of a row that a warp of `enlarge` writes
constexpr float LARGEST = 3.402823466e38f;
constexpr float SMALLEST_NORMAL = 1.175494351e-38f;
constexpr float FLAT = 1e-5f;  // part of the largest value up to which a range counts as none

struct Half {
    unsigned short bits;
};

}  // namespace

// The arguments. kernels/arguments.py lays out the structures of the same names in the same
// order; a test compares the offsets.

// How one axis of the heatmap lies over the cam: pixel i is at scale * i + offset in the cam,
// where 0 is the first cell's centre. Pixels outside [low, high) are outside the crop box.
struct Axis {
    int size, low, high, cells;
    float scale, offset;
};

struct CombineArguments {
    const void* features;   // [B, N, P], P = h * w
    const void* weights;    // [B, K, N] or [B, K, N, P], of the same type
    float* partial;         // [B, K, chunks, P]
    float* cams;            // [B, K, P]
    float* bounds;          // [B, K, 2]: smallest and largest value of the enlarged cam
    unsigned char* valid;   // [B, K]
    unsigned* arrived;      // [B, class tiles]; 0 before the launch and after it
    int channels, positions, classes;
    int group;              // channels whose elements fill whole vectors
    int units;              // vectors in a group
    int tile_units;         // vectors of a group that a block reads side by side
    int lanes;              // groups that a block reads at a time
    int chunk_groups;       // groups of a block
    int chunks, tiles;      // blocks along the channels, along a group
    int clamp;              // NWC
    int keep_sign;          // leave the sum as it is; negative sums are 0 otherwise
    int bilinear;           // find the extremes here
    Axis rows, columns;
};

struct HeatmapArguments {
    const float* cams;
    float* bounds;
    unsigned char* valid;
    float* partial;         // [B * K, blocks of `extremes`, 2]
    unsigned* arrived;      // [B * K]; 0 before the launch and after it
    void* heatmaps;         // [B * K, H, W], float32 or uint8
    int count;              // B * K
    int vectors;            // whether four pixels can be stored at once
    Axis rows, columns;
};

namespace {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return half_to_float(value.bits); }

// Unlike fmaxf these keep a NaN, so that a broken weight makes an invalid heatmap.
__device__ __forceinline__ float not_negative(float value) { return value < 0.f ? 0.f : value; }

template <typename T, int VECTOR>
struct alignas(VECTOR == 1 ? alignof(T) : 16) Pack {
    T values[VECTOR];
};

// Reads the first `count` of the VECTOR elements at `from`; the others become 0.
template <typename T, int VECTOR>
__device__ __forceinline__ void load(const T* from, int count, float (&into)[VECTOR]) {
    if (count >= VECTOR) {
        const Pack<T, VECTOR> pack = *reinterpret_cast<const Pack<T, VECTOR>*>(from);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) into[i] = to_float(pack.values[i]);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) into[i] = i < count ? to_float(from[i]) : 0.f;
    }
}

// ---- values of the enlarged cam ------------------------------------------------------

__device__ __forceinline__ int clipped(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}

__device__ __forceinline__ float coordinate(const Axis& axis, int pixel) {
    return axis.scale * static_cast<float>(pixel) + axis.offset;
}

// The cells around a coordinate, edge cells repeated outwards, and their weights.
template <bool CUBIC>
struct Taps {
    static constexpr int COUNT = CUBIC ? 4 : 2;
    int cells[COUNT];
    float weights[COUNT];

    __device__ __forceinline__ Taps(const Axis& axis, int pixel) {
        const float at = coordinate(axis, pixel);
        const float base = floorf(at);
        const float t = at - base;
        const int first = static_cast<int>(base) - (CUBIC ? 1 : 0);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) cells[i] = clipped(first + i, 0, axis.cells - 1);
        if constexpr (CUBIC) {
            // Keys (1981), Eq. 4, with a = -0.75.
            const float a = -0.75f, u = 1.f - t, far = 1.f + t, last = 1.f + u;
            weights[0] = ((far - 5.f) * far + 8.f) * far * a - 4.f * a;
            weights[1] = ((a + 2.f) * t - (a + 3.f)) * t * t + 1.f;
            weights[2] = ((a + 2.f) * u - (a + 3.f)) * u * u + 1.f;
            weights[3] = ((last - 5.f) * last + 8.f) * last * a - 4.f * a;
        } else {
            weights[0] = 1.f - t;
            weights[1] = t;
        }
    }
};

template <bool CUBIC>
__device__ __forceinline__ float sample(
    const float* cam, int width, const Taps<CUBIC>& row, const Taps<CUBIC>& column) {
    float value = 0.f;
#pragma unroll
    for (int i = 0; i < Taps<CUBIC>::COUNT; ++i) {
        const float* line = cam + row.cells[i] * width;
        float across = 0.f;
#pragma unroll
        for (int j = 0; j < Taps<CUBIC>::COUNT; ++j)
            across += column.weights[j] * line[column.cells[j]];
        value += row.weights[i] * across;
    }
    return value;
}

// ---- smallest and largest value ------------------------------------------------------

struct Extremes {
    float low = LARGEST, high = -LARGEST;
    int finite = 1;

    __device__ __forceinline__ void add(float value) {
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
};

// The extremes over the block. `scratch` holds 3 floats for each warp; every thread gets them.
__device__ Extremes over_block(Extremes mine, float* scratch) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        mine.low = fminf(mine.low, __shfl_xor_sync(0xffffffffu, mine.low, offset));
        mine.high = fmaxf(mine.high, __shfl_xor_sync(0xffffffffu, mine.high, offset));
        mine.finite &= __shfl_xor_sync(0xffffffffu, mine.finite, offset);
    }
    const int warps = static_cast<int>(blockDim.x) / WARP;
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    __syncthreads();  // the scratch may still be read
    if (threadIdx.x % WARP == 0) {
        scratch[3 * warp] = mine.low;
        scratch[3 * warp + 1] = mine.high;
        scratch[3 * warp + 2] = static_cast<float>(mine.finite);
    }
    __syncthreads();
    Extremes all;
    for (int i = 0; i < warps; ++i) {
        all.low = fminf(all.low, scratch[3 * i]);
        all.high = fmaxf(all.high, scratch[3 * i + 1]);
        all.finite &= static_cast<int>(scratch[3 * i + 2]);
    }
    return all;
}

__device__ __forceinline__ unsigned char is_valid(const Extremes& found) {
    const float extent = found.high - found.low;
    const float largest = fmaxf(fabsf(found.low), fabsf(found.high));
    const float flat = fmaxf(FLAT * largest, SMALLEST_NORMAL);
    return found.finite && extent > flat && extent < LARGEST ? 1 : 0;
}

// The pixels that can hold an extreme value of a bilinear heatmap, which is linear between two
// neighbouring cell centres: the crop box's ends and the pixels on both sides of each centre.
__device__ __forceinline__ int candidates(const Axis& axis) { return 2 * axis.cells + 2; }

__device__ __forceinline__ int candidate(const Axis& axis, int index) {
    if (index < 2) return index == 0 ? axis.low : axis.high - 1;
    const float centre = static_cast<float>(index / 2 - 1);
    const float at = ceilf((centre - axis.offset) / axis.scale);
    // Rounding may put the centre on the wrong side of a pixel that lies on it, where it
    // makes no difference which of the two counts.
    const float low = static_cast<float>(axis.low), high = static_cast<float>(axis.high - 1);
    const float pixel = fminf(fmaxf(index % 2 == 0 ? at - 1.f : at, low), high);
    return static_cast<int>(pixel);
}

// Whether all blocks of a group have got here; true in the last one, which sees all that
// the others wrote before. The counter is 0 again afterwards.
__device__ bool is_last(unsigned* counter, unsigned blocks, float* scratch) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned before = atomicAdd(counter, 1u);
        scratch[0] = before == blocks - 1 ? 1.f : 0.f;
        if (before == blocks - 1) atomicExch(counter, 0u);
    }
    __syncthreads();
    const bool last = scratch[0] != 0.f;
    if (last) __threadfence();
    __syncthreads();  // the scratch is used again
    return last;
}

// ---- combine: `clamp_combine` of the reference ---------------------------------------

// The sum of every `step`-th chunk, from `first` on, at one position.
__device__ __forceinline__ float chunks_of(
    const CombineArguments& a, const float* partial, int position, int first, int step) {
    float sum = 0.f;
#pragma unroll 4
    for (int chunk = first; chunk < a.chunks; chunk += step)
        sum += partial[chunk * a.positions + position];
    return sum;
}

// Adds up the chunks, in a fixed order, and finds the extremes; one block for one heatmap.
__device__ void finish(const CombineArguments& a, long long heatmap, float* scratch) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const float* partial = a.partial + heatmap * a.chunks * a.positions;
    float* cam = a.cams + heatmap * a.positions;
    // A small cam leaves threads over: they share the chunks, which are read one after the
    // other otherwise.
    const int lanes = min(threads / a.positions, a.chunks);
    if (lanes > 1) {
        __syncthreads();  // the scratch may still be read
        const int lane = thread / a.positions, position = thread % a.positions;
        if (lane < lanes)
            scratch[thread] = chunks_of(a, partial, position, lane, lanes);
        __syncthreads();
    }
    Extremes mine;
    for (int p = thread; p < a.positions; p += threads) {
        float sum = 0.f;
        if (lanes > 1) {
            for (int lane = 0; lane < lanes; ++lane) sum += scratch[lane * a.positions + p];
        } else {
            sum = chunks_of(a, partial, p, 0, 1);
        }
        const float value = a.keep_sign ? sum : not_negative(sum);
        cam[p] = value;
        mine.finite &= fabsf(value) <= LARGEST ? 1 : 0;
    }
    __syncthreads();
    if (a.bilinear) {
        const int across = candidates(a.columns);
        const int count = candidates(a.rows) * across;
        for (int i = thread; i < count; i += threads) {
            const Taps<false> row(a.rows, candidate(a.rows, i / across));
            const Taps<false> column(a.columns, candidate(a.columns, i % across));
            mine.add(sample<false>(cam, a.columns.cells, row, column));
        }
    }
    const Extremes found = over_block(mine, scratch);
    if (threadIdx.x == 0) {
        a.bounds[2 * heatmap] = found.low;
        a.bounds[2 * heatmap + 1] = found.high;
        a.valid[heatmap] = a.bilinear ? is_valid(found) : static_cast<unsigned char>(found.finite);
    }
}

// A thread reads the same vector of many groups, because its elements then belong to the same
// positions every time and its sums stay in registers. (A group is the fewest channels whose
// elements fill whole vectors: for vectors of 4, that is 4 channels for an odd number of
// positions and 1 for a multiple of 4.)
template <typename T, int VECTOR, int CLASSES, bool PER_POSITION>
__device__ __forceinline__ void combine(const CombineArguments& a) {
    SIGCAM_SHARED(scratch);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int tile = static_cast<int>(blockIdx.x) % a.tiles;
    const int chunk = static_cast<int>(blockIdx.x) / a.tiles;
    const int first_class = static_cast<int>(blockIdx.y) * CLASSES;
    const long long image = blockIdx.z;
    const int classes = min(CLASSES, a.classes - first_class);
    const int first_channel = chunk * a.chunk_groups * a.group;
    const int channels = min(a.chunk_groups * a.group, a.channels - first_channel);
    const long long size = static_cast<long long>(a.channels) * a.positions;
    const long long first_heatmap = image * a.classes + first_class;
    const long long start = static_cast<long long>(first_channel) * a.positions;
    const T* features = static_cast<const T*>(a.features) + image * size + start;
    const T* weights = static_cast<const T*>(a.weights);
    weights += PER_POSITION ? first_heatmap * size + start
                            : first_heatmap * a.channels + first_channel;

    float* sums = scratch;
    float* staged = scratch + threads * VECTOR;  // [CLASSES, channels], clamped
    if constexpr (!PER_POSITION) {
        for (int i = thread; i < classes * channels; i += threads) {
            const long long row = i / channels;
            const float weight = to_float(weights[row * a.channels + i % channels]);
            staged[i] = a.clamp ? not_negative(weight) : weight;
        }
        __syncthreads();
    }

    const int lane = thread / a.tile_units;
    const int unit = tile * a.tile_units + thread % a.tile_units;
    const bool active = lane < a.lanes && unit < a.units;
    int channel_of[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) channel_of[i] = (unit * VECTOR + i) / a.positions;
    float acc[CLASSES][VECTOR] = {};
    if (active) {
        const int groups = (channels + a.group - 1) / a.group;
        for (int g = lane; g < groups; g += a.lanes) {
            const int offset = g * a.group * a.positions + unit * VECTOR;
            const int left = channels * a.positions - offset;  // in the last group
            float values[VECTOR];
            load<T, VECTOR>(features + offset, left, values);
#pragma unroll
            for (int k = 0; k < CLASSES; ++k) {
                if (k >= classes) break;
                if constexpr (PER_POSITION) {
                    float used[VECTOR];
                    load<T, VECTOR>(weights + k * size + offset, left, used);
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i)
                        acc[k][i] += (a.clamp ? not_negative(used[i]) : used[i]) * values[i];
                } else {
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        const int channel = min(g * a.group + channel_of[i], channels - 1);
                        acc[k][i] += staged[k * channels + channel] * values[i];
                    }
                }
            }
        }
    }

    const int width = a.tile_units * VECTOR;  // elements of a lane
    const int first = tile * width;           // one tile only where a group has more channels
    const int positions = min(width / a.group, a.positions - first);
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        if (k >= classes) break;
        __syncthreads();
        if (active) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i)
                sums[lane * width + thread % a.tile_units * VECTOR + i] = acc[k][i];
        }
        __syncthreads();
        float* out = a.partial + ((first_heatmap + k) * a.chunks + chunk) * a.positions + first;
        for (int p = thread; p < positions; p += threads) {
            float sum = 0.f;
            for (int l = 0; l < a.lanes; ++l)
                for (int c = 0; c < a.group; ++c) sum += sums[l * width + c * a.positions + p];
            out[p] = sum;
        }
    }

    unsigned* counter = a.arrived + image * gridDim.y + blockIdx.y;
    __syncthreads();
    if (!is_last(counter, gridDim.x, scratch)) return;
    for (int k = 0; k < classes; ++k) finish(a, first_heatmap + k, scratch);
}

// ---- extremes and enlarge: `normalised_heatmaps` of the reference --------------------

// A block takes every gridDim.y-th pixel row of the crop box of one heatmap, because a cubic can
// be smallest or largest between the cells' centres.
__device__ __forceinline__ void extremes(const HeatmapArguments& a) {
    SIGCAM_SHARED(scratch);
    const long long heatmap = blockIdx.x;
    const float* cam = a.cams + heatmap * a.rows.cells * a.columns.cells;
    Extremes mine;
    const int height = a.rows.high - a.rows.low, width = a.columns.high - a.columns.low;
    for (int y = static_cast<int>(blockIdx.y); y < height; y += static_cast<int>(gridDim.y)) {
        const Taps<true> row(a.rows, a.rows.low + y);
        for (int x = static_cast<int>(threadIdx.x); x < width; x += static_cast<int>(blockDim.x)) {
            const Taps<true> column(a.columns, a.columns.low + x);
            mine.add(sample<true>(cam, a.columns.cells, row, column));
        }
    }
    Extremes found = over_block(mine, scratch);
    float* partial = a.partial + heatmap * gridDim.y * 2;
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.y] = found.low;
        partial[2 * blockIdx.y + 1] = found.high;
    }
    __syncthreads();
    if (!is_last(a.arrived + heatmap, gridDim.y, scratch)) return;
    if (threadIdx.x == 0) {
        for (unsigned i = 0; i < gridDim.y; ++i) {
            found.low = fminf(found.low, partial[2 * i]);
            found.high = fmaxf(found.high, partial[2 * i + 1]);
        }
        found.finite = a.valid[heatmap];
        a.bounds[2 * heatmap] = found.low;
        a.bounds[2 * heatmap + 1] = found.high;
        a.valid[heatmap] = is_valid(found);
    }
}

__device__ __forceinline__ void to_pixel(float value, float& out) { out = value; }
__device__ __forceinline__ void to_pixel(float value, unsigned char& out) {
    out = static_cast<unsigned char>(value * 255.f + 0.5f);
}

// A warp writes TILE_COLUMNS neighbouring pixels of a row, so that its stores fall into few
// pieces of memory.
template <typename Pixel, bool CUBIC>
__device__ __forceinline__ void enlarge(const HeatmapArguments& a) {
    struct alignas(4 * sizeof(Pixel)) Four {
        Pixel values[4];
    };
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    const int y = static_cast<int>(blockIdx.y * (blockDim.x / WARP)) + warp;
    const int first = static_cast<int>(blockIdx.x) * TILE_COLUMNS;
    const int height = a.rows.size, width = a.columns.size;
    if (y >= height) return;
    const bool inside = y >= a.rows.low && y < a.rows.high;
    const Taps<CUBIC> row(a.rows, y);
    for (long long heatmap = blockIdx.z; heatmap < a.count; heatmap += gridDim.z) {
        const float* cam = a.cams + heatmap * a.rows.cells * a.columns.cells;
        Pixel* out = static_cast<Pixel*>(a.heatmaps) + (heatmap * height + y) * width;
        const bool drawn = inside && a.valid[heatmap];
        const float low = a.bounds[2 * heatmap];
        const float factor = drawn ? 1.f / (a.bounds[2 * heatmap + 1] - low) : 0.f;
        // Bicubic pixels are made one after the other: with four at a time the compiler takes so
        // many registers for their taps that one block fills a multiprocessor.
        const bool together = !CUBIC && a.vectors;
        Four four = {};
#pragma unroll(CUBIC ? 1 : 4)
        for (int i = 0; i < 4; ++i) {
            // Neighbouring threads store neighbouring pixels in both cases.
            const int x = first + (together ? lane * 4 + i : lane + WARP * i);
            float value = 0.f;
            if (drawn && x >= a.columns.low && x < a.columns.high) {
                const Taps<CUBIC> column(a.columns, x);
                value = (sample<CUBIC>(cam, a.columns.cells, row, column) - low) * factor;
                value = fminf(fmaxf(value, 0.f), 1.f);
            }
            Pixel pixel;
            to_pixel(value, pixel);
            if constexpr (!CUBIC) four.values[i] = pixel;
            if (!together && x < width) out[x] = pixel;
        }
        const int x = first + lane * 4;
        if (together && x < width) *reinterpret_cast<Four*>(out + x) = four;
    }
}

}  // namespace

// ---- entry points, by name -----------------------------------------------------------

#define SIGCAM_COMBINE(name, type, vector, classes, per_position)                  \
    extern "C" __global__ void name(const CombineArguments arguments) {            \
        combine<type, vector, classes, per_position>(arguments);                   \
    }
SIGCAM_COMBINE(combine_f32_v1_k1, float, 1, 1, false)
SIGCAM_COMBINE(combine_f32_v1_k4, float, 1, 4, false)
SIGCAM_COMBINE(combine_f32_v4_k1, float, 4, 1, false)
SIGCAM_COMBINE(combine_f32_v4_k4, float, 4, 4, false)
SIGCAM_COMBINE(combine_f16_v1_k1, Half, 1, 1, false)
SIGCAM_COMBINE(combine_f16_v1_k4, Half, 1, 4, false)
SIGCAM_COMBINE(combine_f16_v8_k1, Half, 8, 1, false)
SIGCAM_COMBINE(combine_f16_v8_k4, Half, 8, 4, false)
SIGCAM_COMBINE(combine_positions_f32_v1_k1, float, 1, 1, true)
SIGCAM_COMBINE(combine_positions_f32_v1_k4, float, 1, 4, true)
SIGCAM_COMBINE(combine_positions_f32_v4_k1, float, 4, 1, true)
SIGCAM_COMBINE(combine_positions_f32_v4_k4, float, 4, 4, true)
SIGCAM_COMBINE(combine_positions_f16_v1_k1, Half, 1, 1, true)
SIGCAM_COMBINE(combine_positions_f16_v1_k4, Half, 1, 4, true)
SIGCAM_COMBINE(combine_positions_f16_v8_k1, Half, 8, 1, true)
SIGCAM_COMBINE(combine_positions_f16_v8_k4, Half, 8, 4, true)

extern "C" __global__ void extremes_bicubic(const HeatmapArguments arguments) {
    extremes(arguments);
}

#define SIGCAM_ENLARGE(name, pixel, cubic)                                         \
    extern "C" __global__ void name(const HeatmapArguments arguments) {                \
        enlarge<pixel, cubic>(arguments);                                          \
    }
SIGCAM_ENLARGE(enlarge_bilinear_f32, float, false)
SIGCAM_ENLARGE(enlarge_bilinear_u8, unsigned char, false)
SIGCAM_ENLARGE(enlarge_bicubic_f32, float, true)
SIGCAM_ENLARGE(enlarge_bicubic_u8, unsigned char, true)
