// Softmax over the last axis: a block for each row of `width` values.

extern "C" __global__ void softmax(const float *x, float *y, unsigned width) {
    x += (size_t)blockIdx.x * width;
    y += (size_t)blockIdx.x * width;
    float largest = -INFINITY;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) largest = fmaxf(largest, x[i]);
    largest = over_block<Max>(largest);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) {
        y[i] = expf(x[i] - largest);
        sum += y[i];
    }
    float scale = 1.0f / over_block<Sum>(sum);
    for (unsigned i = threadIdx.x; i < width; i += THREADS) y[i] *= scale;
}
KERNEL(softmax)

extern "C" __global__ void softmax_gradient(const float *y, const float *grad, float *dx, unsigned width) {
    size_t start = (size_t)blockIdx.x * width;
    y += start, grad += start, dx += start;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) sum += grad[i] * y[i];
    sum = over_block<Sum>(sum);
    for (unsigned i = threadIdx.x; i < width; i += THREADS) dx[i] = y[i] * (grad[i] - sum);
}
KERNEL(softmax_gradient)
