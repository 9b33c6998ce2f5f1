// RoIAlign as two sparse matrices per region (ops/roi_align). A bin along an axis is three numbers: its first pixel, where its
// weights begin, and how many they are. A thread for each output [region, channel, row, column].

// The bins of an output along both axes, and its first pixel of the map.
struct Bin {
    const unsigned *row, *column;
    size_t corner;
};

static __device__ Bin bin_of(size_t index, const unsigned *image, const unsigned *rows, const unsigned *columns,
                             unsigned channels, unsigned size, unsigned height, unsigned width) {
    unsigned region = index / size / size / channels, channel = index / size / size % channels;
    const unsigned *row = rows + 3 * (region * size + index / size % size);
    const unsigned *column = columns + 3 * (region * size + index % size);
    return {row, column, (((size_t)image[region] * channels + channel) * height + row[0]) * width + column[0]};
}

extern "C" __global__ void roi_align(const float *map, const unsigned *image, const unsigned *rows, const float *row_weights,
                                     const unsigned *columns, const float *column_weights, float *y, unsigned regions,
                                     unsigned channels, unsigned size, unsigned height, unsigned width) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)regions * channels * size * size) return;
    Bin bin = bin_of(index, image, rows, columns, channels, size, height, width);
    const unsigned *row = bin.row, *column = bin.column;
    map += bin.corner;
    float sum = 0.0f;
    for (unsigned i = 0; i < row[2]; i++) {
        float line = 0.0f;
        for (unsigned j = 0; j < column[2]; j++) line += column_weights[column[1] + j] * map[(size_t)i * width + j];
        sum += row_weights[row[1] + i] * line;
    }
    y[index] = sum;
}
KERNEL(roi_align)

extern "C" __global__ void roi_align_gradient(const float *grad, const unsigned *image, const unsigned *rows,
                                              const float *row_weights, const unsigned *columns, const float *column_weights,
                                              float *dmap, unsigned regions, unsigned channels, unsigned size, unsigned height,
                                              unsigned width, float scale) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)regions * channels * size * size) return;
    Bin bin = bin_of(index, image, rows, columns, channels, size, height, width);
    const unsigned *row = bin.row, *column = bin.column;
    dmap += bin.corner;
    for (unsigned i = 0; i < row[2]; i++)
        for (unsigned j = 0; j < column[2]; j++)
            atomicAdd(&dmap[(size_t)i * width + j],
                      scale * grad[index] * row_weights[row[1] + i] * column_weights[column[1] + j]);
}
KERNEL(roi_align_gradient)
