// Cams from features and weights: `clamp_combine` of the reference.
#pragma once

#include "extremes.cuh"

namespace {

// What a vector of features is multiplied by: one weight for all of its elements, two as it
// goes over the end of a channel, or as many as it has elements.
enum class Weights { ONE, TWO, EACH };

template <typename T, int VECTOR>
struct alignas(VECTOR == 1 ? alignof(T) : 16) Pack {
    T values[VECTOR];
};

// The weights of a channel for all classes of a block, read from shared memory at once.
template <int CLASSES>
struct alignas(4 * CLASSES) Staged {
    float of[CLASSES];
};

template <typename T, int VECTOR>
__device__ __forceinline__ Pack<T, VECTOR> read(const T* from) {
    return *reinterpret_cast<const Pack<T, VECTOR>*>(from);
}

// The first `count` of VECTOR elements; the others are 0.
template <typename T, int VECTOR>
__device__ __forceinline__ Pack<T, VECTOR> read(const T* from, int count) {
    Pack<T, VECTOR> pack = {};
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
        if (i < count) pack.values[i] = from[i];
    return pack;
}

// The part of the work that a block has, and where it lies.
template <typename T>
struct Part {
    const T* features;   // of the block's image and channels
    const T* weights;    // of the first class too
    long long step;      // from a class's weights to the next one's
    int classes, channels;
};

// A thread reads the same vector of many groups, because its elements then belong to the same
// positions every time and its sums stay in registers. (A group is the fewest channels whose
// elements fill whole vectors: for vectors of 4, that is 4 channels for an odd number of
// positions and 1 for a multiple of 4.)
template <typename T, int VECTOR, int CLASSES, Weights KIND>
struct Sums {
    // Vectors under way at a time. With weights for each position there are more of them.
    static constexpr int AHEAD = KIND != Weights::EACH ? 4 : CLASSES == 1 ? 2 : 1;
    static constexpr int OWN = KIND == Weights::EACH ? CLASSES : 0;

    const CombineArguments& a;
    const Part<T>& part;
    int unit;            // the vector in its group
    int first, second;   // channels of its elements, in the group: those before `split`
    int split;           // have the first, the others the second
    float of[CLASSES][VECTOR] = {};
    Pack<T, VECTOR> features[AHEAD] = {};
    Pack<T, VECTOR> weights[AHEAD][OWN + 1] = {};

    __device__ __forceinline__ Sums(const CombineArguments& a, const Part<T>& part, int unit)
        : a(a), part(part), unit(unit) {
        first = unit * VECTOR / a.positions;
        split = (first + 1) * a.positions - unit * VECTOR;
        second = split < VECTOR ? first + 1 : first;
    }

    // Begins to read the thread's vectors of the groups `g`, `g + step`, ... below `end`.
    __device__ __forceinline__ void load(int g, int step, int end) {
#pragma unroll
        for (int u = 0; u < AHEAD; ++u, g += step) {
            if (g >= end) break;
            const int at = offset(g);
            features[u] = read<T, VECTOR>(part.features + at);
#pragma unroll
            for (int k = 0; k < OWN; ++k)
                if (k < part.classes)
                    weights[u][k] = read<T, VECTOR>(part.weights + k * part.step + at);
        }
    }

    // The same for a group that begins with fewer channels than it would have.
    __device__ __forceinline__ void load_last(int g) {
        const int at = offset(g), left = part.channels * a.positions - at;
        features[0] = read<T, VECTOR>(part.features + at, left);
#pragma unroll
        for (int k = 0; k < OWN; ++k)
            if (k < part.classes)
                weights[0][k] = read<T, VECTOR>(part.weights + k * part.step + at, left);
    }

    // Adds what `load` has read, in the order of the groups.
    __device__ __forceinline__ void add(
        int g, int step, int end, const Staged<CLASSES>* staged) {
#pragma unroll
        for (int u = 0; u < AHEAD; ++u, g += step) {
            if (g >= end) break;
            if constexpr (KIND == Weights::EACH) {
                add_each(u);
            } else {
                add_staged(g, features[u], staged);
            }
        }
    }

private:
    __device__ __forceinline__ int offset(int g) const {
        return g * a.group * a.positions + unit * VECTOR;
    }

    __device__ __forceinline__ void add_each(int u) {
#pragma unroll
        for (int k = 0; k < CLASSES; ++k) {
            if (k >= part.classes) break;
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                const float weight = to_float(weights[u][k].values[i]);
                of[k][i] = fmaf(a.clamp ? not_negative(weight) : weight,
                                to_float(features[u].values[i]), of[k][i]);
            }
        }
    }

    __device__ __forceinline__ void add_staged(
        int g, const Pack<T, VECTOR>& pack, const Staged<CLASSES>* staged) {
        // The last group may end before its second channel.
        const int channel = g * a.group, last = part.channels - 1;
        const Staged<CLASSES> one = staged[min(channel + first, last)];
        const Staged<CLASSES> two =
            KIND == Weights::ONE ? one : staged[min(channel + second, last)];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const float value = to_float(pack.values[i]);
#pragma unroll
            for (int k = 0; k < CLASSES; ++k) {
                const bool before = KIND == Weights::ONE || i < split;
                of[k][i] = fmaf(before ? one.of[k] : two.of[k], value, of[k][i]);
            }
        }
    }
};

// Reads the weights of the block's channels, clamped once. Classes that the block hasn't got
// have zeros.
template <typename T, int CLASSES>
__device__ __forceinline__ void stage(
    const CombineArguments& a, const Part<T>& part, Staged<CLASSES>* staged) {
    const int threads = static_cast<int>(blockDim.x);
    for (int c = static_cast<int>(threadIdx.x); c < part.channels; c += threads) {
        Staged<CLASSES> found = {};
#pragma unroll
        for (int k = 0; k < CLASSES; ++k) {
            if (k >= part.classes) break;
            const float weight = to_float(part.weights[k * part.step + c]);
            found.of[k] = a.clamp ? not_negative(weight) : weight;
        }
        staged[c] = found;
    }
}

// Adds up the sums of the block's lanes, in their order, and writes its part of the cams.
template <typename T, int VECTOR, int CLASSES, Weights KIND>
__device__ __forceinline__ void add_lanes(
    const CombineArguments& a, const Sums<T, VECTOR, CLASSES, KIND>& sums, int chunk, int tile,
    long long first_heatmap, bool active, float* body) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int lane = thread / a.tile_units;
    const int width = a.tile_units * VECTOR;  // elements of a lane
    const int first = tile * width;           // one tile only where a group has more channels
    const int positions = min(width / a.group, a.positions - first);
    // Classes at a time, for which there is room.
    constexpr int TOGETHER = CLASSES < 16 / VECTOR ? CLASSES : 16 / VECTOR;
#pragma unroll
    for (int k = 0; k < CLASSES; k += TOGETHER) {
        __syncthreads();
        if (active) {
            float* own = body + lane * width + thread % a.tile_units * VECTOR;
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) own[j * a.lanes * width + i] = sums.of[k + j][i];
        }
        __syncthreads();
        const int items = min(TOGETHER, sums.part.classes - k) * positions;
        for (int item = thread; item < items; item += threads) {
            const int j = item / positions, p = item % positions;
            const float* from = body + j * a.lanes * width + p;
            float sum = 0.f;
            for (int l = 0; l < a.lanes; ++l)
                for (int c = 0; c < a.group; ++c) sum += from[l * width + c * a.positions];
            const long long heatmap = first_heatmap + k + j;
            a.partial[(heatmap * a.chunks + chunk) * a.positions + first + p] = sum;
        }
    }
}

// ---- the last block of a class tile ----------------------------------------------------

constexpr int ITEMS = 4;  // cells of a thread, whose sums are made side by side

// The sum of every `step`-th chunk, from `first` on.
__device__ __forceinline__ float chunks_of(
    const CombineArguments& a, const float* partial, int first, int step) {
    float sum = 0.f;
#pragma unroll 8
    for (int chunk = first; chunk < a.chunks; chunk += step) sum += partial[chunk * a.positions];
    return sum;
}

// Writes a cell of the cams of the block's classes.
__device__ __forceinline__ void keep(
    const CombineArguments& a, float* cams, int item, float sum, unsigned* broken) {
    cams[item] = a.keep_sign ? sum : not_negative(sum);
    if (!is_finite(sum)) atomicExch(&broken[item / a.positions], 1u);
}

// Adds up the chunks of the block's classes, in a fixed order. A cell of one class is an item;
// items and, where threads are left over, chunks are shared among the threads.
__device__ __forceinline__ void add_chunks(
    const CombineArguments& a, const float* partial, float* cams, int classes, unsigned* broken,
    float* scratch) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int items = classes * a.positions, lanes = min(threads / items, a.chunks);
    const auto first_of = [&](int item) {
        return item / a.positions * a.chunks * a.positions + item % a.positions;
    };
    if (lanes > 1) {
        const int lane = thread / items;
        if (lane < lanes)
            scratch[thread] = chunks_of(a, partial + first_of(thread % items), lane, lanes);
        __syncthreads();
        if (thread >= items) return;
        float sum = 0.f;
        for (int i = 0; i < lanes; ++i) sum += scratch[i * items + thread];
        keep(a, cams, thread, sum, broken);
        return;
    }
    for (int item = thread; item < items; item += ITEMS * threads) {
        float sums[ITEMS] = {};
        int offsets[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) offsets[i] = first_of(min(item + i * threads, items - 1));
#pragma unroll 8
        for (int chunk = 0; chunk < a.chunks; ++chunk) {
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) sums[i] += partial[chunk * a.positions + offsets[i]];
        }
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
            if (item + i * threads < items) keep(a, cams, item + i * threads, sums[i], broken);
    }
}

// Finishes the cams of the block's classes and, for bilinear heatmaps, finds their extremes.
template <int CLASSES>
__device__ __forceinline__ void finish(
    const CombineArguments& a, long long image, long long first_heatmap, int classes,
    float* header) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    unsigned* broken = reinterpret_cast<unsigned*>(header + 1);
    float* cams = a.cams + first_heatmap * a.positions;
    if (thread < CLASSES) broken[thread] = 0;
    __syncthreads();
    add_chunks(a, a.partial + first_heatmap * a.chunks * a.positions, cams, classes, broken,
               header + HEADER);
    if (!a.bilinear) return;
    __syncthreads();
    Extremes mine[CLASSES];
    const Place place = place_of(a, image);
    add_bilinear<CLASSES>(place, cams, classes, thread / WARP, threads / WARP, mine);
    const Extremes found = over_block<CLASSES>(mine, header + HEADER);
    if (thread < classes) {
        a.bounds[2 * (first_heatmap + thread)] = found.low;
        a.bounds[2 * (first_heatmap + thread) + 1] = found.high;
        a.valid[first_heatmap + thread] = is_valid(found, broken[thread] == 0);
    }
}

// ---- the kernel ------------------------------------------------------------------------

template <typename T, int VECTOR, int CLASSES, Weights KIND>
__device__ __forceinline__ void combine(const CombineArguments& a) {
    SIGCAM_SHARED(header);
    const int thread = static_cast<int>(threadIdx.x);
    const int tile = static_cast<int>(blockIdx.x) % a.tiles;
    const int chunk = static_cast<int>(blockIdx.x) / a.tiles;
    const int first_class = static_cast<int>(blockIdx.y) * a.tile_classes;
    const long long image = blockIdx.z;
    const long long size = static_cast<long long>(a.channels) * a.positions;
    const long long first_heatmap = image * a.classes + first_class;
    const int first_channel = chunk * a.chunk_groups * a.group;
    const long long start = static_cast<long long>(first_channel) * a.positions;
    constexpr bool EACH = KIND == Weights::EACH;
    const Part<T> part = {
        static_cast<const T*>(a.features) + image * size + start,
        static_cast<const T*>(a.weights) + (EACH ? first_heatmap * size + start
                                                 : first_heatmap * a.channels + first_channel),
        EACH ? size : a.channels,
        min(a.tile_classes, a.classes - first_class),
        min(a.chunk_groups * a.group, a.channels - first_channel)};

    const int lane = thread / a.tile_units;
    const int unit = tile * a.tile_units + thread % a.tile_units;
    const bool active = lane < a.lanes && unit < a.units;
    const int whole = part.channels / a.group, rest = part.channels % a.group;
    const int end = active ? whole : 0;
    float* body = header + HEADER;
    const auto* staged = reinterpret_cast<const Staged<CLASSES>*>(body);
    Sums<T, VECTOR, CLASSES, KIND> sums(a, part, unit);
    sums.load(lane, a.lanes, end);  // before the weights, as both take their time
    if constexpr (!EACH) {
        stage(a, part, reinterpret_cast<Staged<CLASSES>*>(body));
        __syncthreads();
    }
    constexpr int AHEAD = decltype(sums)::AHEAD;
    for (int g = lane; g < end; g += AHEAD * a.lanes) {
        sums.add(g, a.lanes, end, staged);
        sums.load(g + AHEAD * a.lanes, a.lanes, end);
    }
    if (VECTOR > 1 && rest > 0 && active && whole % a.lanes == lane) {
        sums.load_last(whole);
        sums.add(whole, 1, whole + 1, staged);
    }

    add_lanes(a, sums, chunk, tile, first_heatmap, active, body);
    unsigned* counter = a.arrived + image * gridDim.y + blockIdx.y;
    if (!is_last(counter, gridDim.x, header)) return;
    finish<CLASSES>(a, image, first_heatmap, part.classes, header);
}

}  // namespace
