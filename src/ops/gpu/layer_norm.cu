// Layer normalisation over the last axis: a block for each row of `width` values.

struct Statistics {
    float mean, scale;
};

static __device__ Statistics statistics(const float *x, unsigned width, float eps) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) sum += x[i];
    float mean = over_block<Sum>(sum) / width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    return {mean, 1.0f / sqrtf(over_block<Sum>(squares) / width + eps)};
}

extern "C" __global__ void layer_norm(const float *x, const float *weight, const float *bias, float *y, unsigned width,
                                      float eps) {
    x += (size_t)blockIdx.x * width;
    y += (size_t)blockIdx.x * width;
    Statistics found = statistics(x, width, eps);
    for (unsigned i = threadIdx.x; i < width; i += THREADS)
        y[i] = (x[i] - found.mean) * found.scale * weight[i] + bias[i];
}
KERNEL(layer_norm)

extern "C" __global__ void layer_norm_input_gradient(const float *x, const float *weight, const float *grad, float *dx,
                                                     unsigned width, float eps) {
    size_t start = (size_t)blockIdx.x * width;
    x += start, grad += start, dx += start;
    Statistics found = statistics(x, width, eps);
    float offset = 0.0f, slope = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) {
        float scaled = grad[i] * weight[i];
        offset += scaled;
        slope += scaled * (x[i] - found.mean) * found.scale;
    }
    offset = over_block<Sum>(offset) / width;
    slope = over_block<Sum>(slope) / width;
    for (unsigned i = threadIdx.x; i < width; i += THREADS)
        dx[i] = found.scale * (grad[i] * weight[i] - offset - (x[i] - found.mean) * found.scale * slope);
}
KERNEL(layer_norm_input_gradient)

// Σ grad · x̂ and Σ grad over the rows of a block, added to `dweight` and `dbias`.
extern "C" __global__ void layer_norm_affine_gradient(const float *x, const float *grad, float *dweight, float *dbias,
                                                      unsigned rows, unsigned rows_of_block, unsigned width, float eps) {
    unsigned from = blockIdx.x * rows_of_block, to = min(from + rows_of_block, rows);
    for (unsigned row = from; row < to; row++) {
        size_t start = (size_t)row * width;
        Statistics found = statistics(x + start, width, eps);
        for (unsigned i = threadIdx.x; i < width; i += THREADS) {
            float g = grad[start + i];
            atomicAdd(&dweight[i], g * (x[start + i] - found.mean) * found.scale);
            atomicAdd(&dbias[i], g);
        }
    }
}
KERNEL(layer_norm_affine_gradient)
