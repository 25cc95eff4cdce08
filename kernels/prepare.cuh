// Network inputs from images of bytes: whole cells averaged, then bilinear, as on the CPU.
#pragma once

#include "arguments.cuh"

namespace {

// The two cells that an input pixel lies between along an axis, and the second one's share.
struct TwoCells {
    int cell, next;
    float share;
};

// In whole numbers, so that pixels that lie on a cell's centre do so exactly. Before the first
// centre and after the last one, that cell alone counts.
__device__ __forceinline__ TwoCells two_cells(const InputAxis& axis, int position) {
    const int steps = 2 * axis.shown;
    const int place = max((2 * position + 1) * axis.cells - axis.shown, 0);
    const int cell = min(place / steps, axis.cells - 1);
    const int next = min(cell + 1, axis.cells - 1);
    return {cell, next, static_cast<float>(place - cell * steps) / static_cast<float>(steps)};
}

// The mean level of a cell, rounded.
__device__ __forceinline__ float mean_of(const PrepareArguments& a, const unsigned char* pixels,
                                         int row, int column) {
    pixels += static_cast<long long>(a.rows.start + row * a.rows.factor) * a.row +
              static_cast<long long>(a.columns.start + column * a.columns.factor) * a.column;
    unsigned sum = 0;
    for (int y = 0; y < a.rows.factor; ++y)
        for (int x = 0; x < a.columns.factor; ++x) sum += pixels[y * a.row + x * a.column];
    if (a.halves_up) return static_cast<float>((sum + 2) / 4);  // cells of 2 x 2 pixels
    return rintf(static_cast<float>(sum) * a.share);
}

// The level of a channel between the cells of two rows and two columns, rounded.
__device__ __forceinline__ float level_of(const PrepareArguments& a, const unsigned char* pixels,
                                          const TwoCells& row, const TwoCells& column) {
    float found = 0.f;
#pragma unroll 1
    for (int corner = 0; corner < 4; ++corner) {
        const bool below = corner & 2, right = corner & 1;
        const float down = below ? row.share : 1.f - row.share;
        const float across = right ? column.share : 1.f - column.share;
        const float share = down * across;
        if (share != 0.f)
            found += share * mean_of(a, pixels, below ? row.next : row.cell,
                                     right ? column.next : column.cell);
    }
    return rintf(found);
}

// A thread makes one pixel of an input with all its channels. Bytes go out as [H, W, n], floats
// as [n, H, W].
template <typename Value>
__device__ __forceinline__ void prepare(const PrepareArguments& a) {
    const int width = a.columns.length, size = a.rows.length * width;
    const int pixel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (pixel >= size) return;
    const int y = pixel / width - a.rows.first, x = pixel % width - a.columns.first;
    const bool shown = y >= 0 && y < a.rows.shown && x >= 0 && x < a.columns.shown;
    const TwoCells row = two_cells(a.rows, y), column = two_cells(a.columns, x);
    const long long image = blockIdx.z;
    const unsigned char* pixels = a.images + image * a.image;
    Value* out = static_cast<Value*>(a.inputs) + image * size * a.channels;
    for (int c = 0; c < a.channels; ++c) {
        const float level =
            shown ? level_of(a, pixels + c * a.channel, row, column) : a.border[c];
        if (sizeof(Value) == 1)
            out[static_cast<long long>(pixel) * a.channels + c] = static_cast<Value>(level);
        else
            out[static_cast<long long>(c) * size + pixel] =
                static_cast<Value>(level * a.scale[c] + a.shift[c]);
    }
}

}  // namespace
