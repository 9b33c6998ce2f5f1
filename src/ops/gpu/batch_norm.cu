// Batch normalisation of maps [images, channels, area], with its ReLU (`floor` 0; −∞ without). The sums take a block for each
// channel, the rest a thread for each value.

// Value `i` of the channel's images one after the other.
static __device__ size_t of_channel(unsigned i, unsigned channels, unsigned area) {
    return ((size_t)(i / area) * channels + blockIdx.x) * area + i % area;
}

extern "C" __global__ void channel_mean(const float *x, float *mean, unsigned images, unsigned channels, unsigned area) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < images * area; i += THREADS) sum += x[of_channel(i, channels, area)];
    sum = over_block<Sum>(sum);
    if (threadIdx.x == 0) mean[blockIdx.x] = sum / ((float)images * area);
}
KERNEL(channel_mean)

extern "C" __global__ void channel_variance(const float *x, const float *mean, float *variance, unsigned images,
                                            unsigned channels, unsigned area) {
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < images * area; i += THREADS) {
        float centred = x[of_channel(i, channels, area)] - mean[blockIdx.x];
        squares += centred * centred;
    }
    squares = over_block<Sum>(squares);
    if (threadIdx.x == 0) variance[blockIdx.x] = squares / ((float)images * area);
}
KERNEL(channel_variance)

extern "C" __global__ void batch_norm(const float *x, const float *mean, const float *variance, const float *weight,
                                      const float *bias, float *y, unsigned channels, unsigned area, unsigned images,
                                      float eps, float floor) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)images * channels * area) return;
    unsigned c = index / area % channels;
    float value = (x[index] - mean[c]) * (weight[c] / sqrtf(variance[c] + eps)) + bias[c];
    // A value that is no number stays, so that it is seen.
    y[index] = value < floor ? floor : value;
}
KERNEL(batch_norm)

// The gradient that reaches the norm through the ReLU.
static __device__ float upstream(float grad, float y, float floor) { return y > floor ? grad : 0.0f; }

// Σ g and Σ g·(x − mean) of each channel.
extern "C" __global__ void batch_norm_sums(const float *x, const float *mean, const float *y, const float *grad, float *plain,
                                           float *product, unsigned images, unsigned channels, unsigned area, float floor) {
    float sum = 0.0f, with_x = 0.0f;
    for (unsigned i = threadIdx.x; i < images * area; i += THREADS) {
        size_t at = of_channel(i, channels, area);
        float g = upstream(grad[at], y[at], floor);
        sum += g;
        with_x += g * (x[at] - mean[blockIdx.x]);
    }
    sum = over_block<Sum>(sum);
    with_x = over_block<Sum>(with_x);
    if (threadIdx.x == 0) plain[blockIdx.x] = sum, product[blockIdx.x] = with_x;
}
KERNEL(batch_norm_sums)

// `share` is 1 / (images · area) where the statistics are the batch's own, 0 where they are given.
extern "C" __global__ void batch_norm_gradient(const float *x, const float *mean, const float *variance, const float *weight,
                                               const float *plain, const float *product, const float *y, const float *grad,
                                               float *dx, unsigned channels, unsigned area, unsigned images, float eps,
                                               float floor, float share) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)images * channels * area) return;
    unsigned c = index / area % channels;
    float scale = 1.0f / sqrtf(variance[c] + eps);
    float slope = product[c] * share * scale * scale;
    float g = upstream(grad[index], y[index], floor);
    dx[index] = scale * weight[c] * (g - (x[index] - mean[c]) * slope - plain[c] * share);
}
KERNEL(batch_norm_gradient)
