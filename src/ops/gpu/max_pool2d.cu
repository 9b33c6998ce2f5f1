// Max pooling; the gradient finds the maxima again. A thread for each output.

struct Largest {
    float value;
    size_t at;
};

// The first of the largest values in the window of output (row, column) of a plane.
static __device__ Largest largest(const float *plane, unsigned row, unsigned column, unsigned height, unsigned width,
                                  unsigned kernel, unsigned stride, unsigned padding) {
    unsigned top = row * stride, left = column * stride;
    unsigned from_row = max(top, padding) - padding, to_row = min(top + kernel - padding, height);
    unsigned from_column = max(left, padding) - padding, to_column = min(left + kernel - padding, width);
    Largest best = {plane[(size_t)from_row * width + from_column], (size_t)from_row * width + from_column};
    for (unsigned i = from_row; i < to_row; i++)
        for (unsigned j = from_column; j < to_column; j++) {
            size_t at = (size_t)i * width + j;
            if (plane[at] > best.value) best = {plane[at], at};
        }
    return best;
}

extern "C" __global__ void max_pool2d(const float *x, float *y, unsigned height, unsigned width, unsigned rows,
                                      unsigned columns, unsigned kernel, unsigned stride, unsigned padding, unsigned planes) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)planes * rows * columns) return;
    x += index / columns / rows * height * width;
    y[index] = largest(x, index / columns % rows, index % columns, height, width, kernel, stride, padding).value;
}
KERNEL(max_pool2d)

extern "C" __global__ void max_pool2d_gradient(const float *x, const float *grad, float *dx, unsigned height, unsigned width,
                                               unsigned rows, unsigned columns, unsigned kernel, unsigned stride,
                                               unsigned padding, unsigned planes) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)planes * rows * columns) return;
    size_t plane = index / columns / rows * height * width;
    Largest found = largest(x + plane, index / columns % rows, index % columns, height, width, kernel, stride, padding);
    atomicAdd(&dx[plane + found.at], grad[index]);
}
KERNEL(max_pool2d_gradient)
