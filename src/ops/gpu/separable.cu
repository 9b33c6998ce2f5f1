// Maps under one sparse matrix per axis: resizing, average pooling, and the way back under the transposed matrices. Output j of an
// axis is made of `taps` inputs from `start[j]` on, `weights` [outputs, taps]. A thread for each output.

extern "C" __global__ void separable(const float *x, const unsigned *row_start, const float *row_weights,
                                     const unsigned *column_start, const float *column_weights, float *y, unsigned height,
                                     unsigned width, unsigned rows, unsigned columns, unsigned row_taps, unsigned column_taps,
                                     unsigned planes) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)planes * rows * columns) return;
    unsigned column = index % columns, row = index / columns % rows;
    size_t plane = index / columns / rows;
    x += (plane * height + row_start[row]) * width + column_start[column];
    row_weights += row * row_taps;
    column_weights += column * column_taps;
    float sum = 0.0f;
    for (unsigned i = 0; i < row_taps; i++) {
        float line = 0.0f;
        for (unsigned j = 0; j < column_taps; j++) line += column_weights[j] * x[(size_t)i * width + j];
        sum += row_weights[i] * line;
    }
    y[index] = sum;
}
KERNEL(separable)
