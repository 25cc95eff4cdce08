// Heatmaps from cams in one launch, for programs that can pass a kernel addresses and whole
// numbers only: TensorRT's plugins that are compiled ahead of time, and others in any language.
//
// Contract
//   heatmap = (upsample(cam) - smallest) / (largest - smallest), bilinear, over the cam's whole
//   extent; 0 everywhere where the cam is constant or not finite.
//   It needs no workspace and no memory that was cleared: each block finds the extremes by
//   itself. kernels/flat.py says how it is launched, and makes the PTX.
//
// CPU reference
//   kernels/reference.py: `normalised_heatmaps` and `to_bytes`, with axes of `whole`.

#include "arguments.cuh"
#include "sampling.cuh"
#include "extremes.cuh"
#include "enlarge.cuh"

namespace {

// `whole` of kernels/arguments.py. Each value is rounded once.
__device__ __forceinline__ Axis whole(int size, int cells) {
    const float pixels = static_cast<float>(size);
    return {size, 0, size, cells, static_cast<float>(cells) / pixels,
            static_cast<float>(cells - size) / (2.f * pixels)};
}

// Writes the cam's bounds and whether it can be drawn to shared memory.
__device__ __forceinline__ void find_extremes(
    const Place& place, const float* cam, float* bounds, unsigned char* valid, unsigned* broken,
    float* scratch) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if (thread == 0) *broken = 0;
    __syncthreads();
    for (int p = thread; p < place.rows.cells * place.columns.cells; p += threads)
        if (!is_finite(cam[p])) atomicExch(broken, 1u);
    Extremes mine[1];
    add_bilinear<1>(place, cam, 1, thread / WARP, threads / WARP, mine);
    const Extremes found = over_block<1>(mine, scratch);  // after a barrier, for `broken` too
    if (thread == 0) {
        bounds[0] = found.low;
        bounds[1] = found.high;
        *valid = is_valid(found, *broken == 0);
    }
    __syncthreads();
}

template <typename Pixel>
__device__ __forceinline__ void heatmaps_of(
    const float* cams, const Place& place, int strip, Pixel* heatmaps) {
    SIGCAM_SHARED(header);
    constexpr int COUNT = COLUMNS<Pixel, false>;
    const int height = place.rows.size, width = place.columns.size;
    const long long heatmap = blockIdx.x;
    HeatmapArguments a = {};  // of this heatmap alone
    a.cams = cams + heatmap * place.rows.cells * place.columns.cells;
    a.bounds = header;
    a.valid = reinterpret_cast<unsigned char*>(header + 2);
    find_extremes(place, a.cams, a.bounds, a.valid, reinterpret_cast<unsigned*>(header + 3),
                  header + HEADER);
    constexpr size_t STORED = COUNT * sizeof(Pixel);
    draw_strip<Pixel, false>(a, place, 0, heatmaps + heatmap * height * width, strip,
                             width % COUNT == 0 && reinterpret_cast<size_t>(heatmaps) % STORED == 0);
}

}  // namespace

// cams [count, rows, columns], heatmaps [count, height, width]; `strip`: pixel rows of a warp.
#define SIGCAM_FLAT(name, pixel)                                                   \
    extern "C" __global__ void name(                                               \
        const float* cams, int rows, int columns, int height, int width, int strip, \
        pixel* heatmaps) {                                                         \
        heatmaps_of(cams, {whole(height, rows), whole(width, columns), 0}, strip,  \
                    heatmaps);                                                     \
    }
SIGCAM_FLAT(flat_bilinear_f32, float)
SIGCAM_FLAT(flat_bilinear_u8, unsigned char)
