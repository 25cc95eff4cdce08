// Clamp-and-combine: from features and CAM weights, or from cams, to normalised heatmaps.
//
// How to compile
//   At first use, by NVRTC for the GPU at hand: kernels/compile.py puts the files together. They
//   include nothing but each other, so that no CUDA toolkit is needed.
//   Ahead of time, by nvcc for many GPUs: `sigcam kernels build`, kernels/fatbin.py.
//   For the CPU, by g++ in the tests, unchanged: tests/support/host_cuda/host_cuda.h stands for
//   the little of CUDA that is used here.
//
// Contract
//   combine   cam = max(0, sum_n max(0, w_n) F_n)          ("Beyond Softmax", Eq. 4, with NWC)
//             (either max can be left out)
//             and, for bilinear heatmaps, the smallest and largest value inside the crop box
//   extremes  these two values for bicubic heatmaps, which can have them at any pixel, and for
//             cams that something else made
//   enlarge   heatmap = (upsample(cam) - smallest) / (largest - smallest), 0 outside the crop box
//   prepare   an image of bytes becomes a network's input: cells averaged, then bilinear
//   Bilinear heatmaps take two launches and bicubic ones three; two from cams. Each image can
//   have heatmaps of its own size and place. kernels/plan.py decides the launches and their
//   arguments; docs/kernels.md explains how the work is divided among threads. Sums have a fixed
//   order: the same input gives the same bits.
//
// CPU reference
//   kernels/reference.py, in NumPy: `clamp_combine` for combine, `normalised_heatmaps` for the
//   two after it, `to_bytes` for heatmaps of bytes, `prepared` for prepare. The tests compare every
//   kernel with it.

#include "arguments.cuh"
#include "sampling.cuh"
#include "extremes.cuh"
#include "combine.cuh"
#include "enlarge.cuh"
#include "prepare.cuh"

// ---- entry points, by name -----------------------------------------------------------

#define SIGCAM_COMBINE(name, type, vector, classes, weights)                       \
    extern "C" __global__ void name(const CombineArguments arguments) {            \
        combine<type, vector, classes, Weights::weights>(arguments);               \
    }
SIGCAM_COMBINE(combine_f32_v1_k1, float, 1, 1, ONE)
SIGCAM_COMBINE(combine_f32_v1_k4, float, 1, 4, ONE)
SIGCAM_COMBINE(combine_f32_v4_k1, float, 4, 1, ONE)
SIGCAM_COMBINE(combine_f32_v4_k4, float, 4, 4, ONE)
SIGCAM_COMBINE(combine_f16_v1_k1, Half, 1, 1, ONE)
SIGCAM_COMBINE(combine_f16_v1_k4, Half, 1, 4, ONE)
SIGCAM_COMBINE(combine_f16_v8_k1, Half, 8, 1, ONE)
SIGCAM_COMBINE(combine_f16_v8_k4, Half, 8, 4, ONE)
SIGCAM_COMBINE(combine_odd_f32_v4_k1, float, 4, 1, TWO)
SIGCAM_COMBINE(combine_odd_f32_v4_k4, float, 4, 4, TWO)
SIGCAM_COMBINE(combine_odd_f16_v8_k1, Half, 8, 1, TWO)
SIGCAM_COMBINE(combine_odd_f16_v8_k4, Half, 8, 4, TWO)
SIGCAM_COMBINE(combine_positions_f32_v1_k1, float, 1, 1, EACH)
SIGCAM_COMBINE(combine_positions_f32_v1_k4, float, 1, 4, EACH)
SIGCAM_COMBINE(combine_positions_f32_v4_k1, float, 4, 1, EACH)
SIGCAM_COMBINE(combine_positions_f32_v4_k4, float, 4, 4, EACH)
SIGCAM_COMBINE(combine_positions_f16_v1_k1, Half, 1, 1, EACH)
SIGCAM_COMBINE(combine_positions_f16_v1_k4, Half, 1, 4, EACH)
SIGCAM_COMBINE(combine_positions_f16_v8_k1, Half, 8, 1, EACH)
SIGCAM_COMBINE(combine_positions_f16_v8_k4, Half, 8, 4, EACH)

#define SIGCAM_EXTREMES(name, cubic)                                               \
    extern "C" __global__ void name(const HeatmapArguments arguments) {            \
        extremes<cubic>(arguments);                                                \
    }
SIGCAM_EXTREMES(extremes_bilinear, false)
SIGCAM_EXTREMES(extremes_bicubic, true)

#define SIGCAM_ENLARGE(name, pixel, cubic)                                         \
    extern "C" __global__ void name(const HeatmapArguments arguments) {            \
        enlarge<pixel, cubic>(arguments);                                          \
    }
SIGCAM_ENLARGE(enlarge_bilinear_f32, float, false)
SIGCAM_ENLARGE(enlarge_bilinear_u8, unsigned char, false)
SIGCAM_ENLARGE(enlarge_bicubic_f32, float, true)
SIGCAM_ENLARGE(enlarge_bicubic_u8, unsigned char, true)

#define SIGCAM_PREPARE(name, value)                                                \
    extern "C" __global__ void name(const PrepareArguments arguments) {            \
        prepare<value>(arguments);                                                 \
    }
SIGCAM_PREPARE(prepare_u8, unsigned char)
SIGCAM_PREPARE(prepare_f32, float)
