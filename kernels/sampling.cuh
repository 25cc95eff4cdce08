// Values of the enlarged cam.
//
// Between two neighbouring cell centres they are a polynomial in the distance from the first:
// of degree 1 (bilinear) or 3 (bicubic). Edge cells are repeated outwards.
#pragma once

#include "arguments.cuh"

namespace {

__device__ __forceinline__ float coordinate(const Axis& axis, float pixel) {
    return fmaf(axis.scale, pixel, axis.offset);
}

// A place between two cells: the one before it, which may lie outside the cam, and the
// distance from its centre.
struct Between {
    int cell;
    float t;
};

__device__ __forceinline__ Between between(const Axis& axis, float pixel) {
    const float at = coordinate(axis, pixel);
    const float base = floorf(at);
    return {static_cast<int>(base), at - base};
}

template <bool CUBIC>
struct Curve;

template <>
struct Curve<false> {
    static constexpr int CELLS = 2, BEFORE = 0;  // cells that count, and those before `Between`'s
    float value, slope;

    __device__ __forceinline__ Curve() {}
    __device__ __forceinline__ explicit Curve(const float (&cells)[CELLS])
        : value(cells[0]), slope(cells[1] - cells[0]) {}
    __device__ __forceinline__ float at(float t) const { return fmaf(t, slope, value); }
};

// Keys (1981), Eq. 4, with a = -0.75, sorted by powers of t. It is made of differences between
// cells, so that equal cells give their value exactly.
template <>
struct Curve<true> {
    static constexpr int CELLS = 4, BEFORE = 1;
    float value, first, second, third;

    __device__ __forceinline__ Curve() {}
    __device__ __forceinline__ explicit Curve(const float (&cells)[CELLS]) {
        const float back = cells[0] - cells[1], on = cells[2] - cells[1];
        const float last = cells[2] - cells[3];
        value = cells[1];
        first = 0.75f * (on - back);
        second = fmaf(1.5f, back, 0.75f * (on + last));
        third = fmaf(-0.75f, back + last, -0.5f * on);
    }
    __device__ __forceinline__ float at(float t) const {
        return fmaf(fmaf(fmaf(third, t, second), t, first), t, value);
    }
};

template <bool CUBIC>
__device__ __forceinline__ float across(const float* line, int width, Between column) {
    float cells[Curve<CUBIC>::CELLS];
#pragma unroll
    for (int i = 0; i < Curve<CUBIC>::CELLS; ++i)
        cells[i] = line[clipped(column.cell - Curve<CUBIC>::BEFORE + i, 0, width - 1)];
    return Curve<CUBIC>(cells).at(column.t);
}

// COLUMNS columns of the enlarged cam, of which one pixel row after the other is asked for,
// downwards. While rows lie between the same lines of cells, a pixel is its curve at the row's
// distance: one multiply-add, or three.
template <bool CUBIC, int COLUMNS>
struct Strip {
    static constexpr int LINES = Curve<CUBIC>::CELLS;
    const float* cam;
    Axis rows;
    int width;  // cells of a line
    Between columns[COLUMNS];
    float low, factors[COLUMNS];  // cells count as (cell - low) * factor
    float base;                   // the line before the last row that was asked for
    float lines[LINES][COLUMNS];
    Curve<CUBIC> curves[COLUMNS];

    // The distance of a pixel row, for `curves`.
    __device__ __forceinline__ float go_to(float row) {
        const float at = coordinate(rows, row);
        float t = at - base;
        if (t >= 1.f) {
            const float before = floorf(at);
            read(static_cast<int>(before), before == base + 1.f);
            base = before;
            t = at - before;
        }
        return t;
    }

    // Nothing has been asked for yet.
    __device__ __forceinline__ void begin() { base = -LARGEST; }

private:
    // Going on by one line, only the last one is new.
    __device__ __forceinline__ void read(int line, bool next) {
        if (next) {
#pragma unroll
            for (int j = 0; j + 1 < LINES; ++j)
#pragma unroll
                for (int i = 0; i < COLUMNS; ++i) lines[j][i] = lines[j + 1][i];
            read_line(line, LINES - 1);
        } else {
#pragma unroll
            for (int j = 0; j < LINES; ++j) read_line(line, j);
        }
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
            float cells[LINES];
#pragma unroll
            for (int j = 0; j < LINES; ++j) cells[j] = lines[j][i];
            curves[i] = Curve<CUBIC>(cells);
        }
    }

    __device__ __forceinline__ void read_line(int line, int j) {
        const int number = clipped(line - Curve<CUBIC>::BEFORE + j, 0, rows.cells - 1);
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i)
            lines[j][i] =
                (across<CUBIC>(cam + number * width, width, columns[i]) - low) * factors[i];
    }
};

}  // namespace
