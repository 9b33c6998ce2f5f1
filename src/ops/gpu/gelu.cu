// GELU, x·Φ(x) with the error function. A thread for each value.

extern "C" __global__ void gelu(const float *x, float *y, size_t count) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    y[index] = 0.5f * x[index] * (1.0f + erff(x[index] * 0.70710678f));
}
KERNEL(gelu)

extern "C" __global__ void gelu_gradient(const float *x, const float *grad, float *dx, size_t count) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    float v = x[index];
    float below = 0.5f * (1.0f + erff(v * 0.70710678f)), density = 0.39894228f * expf(-0.5f * v * v);
    dx[index] = grad[index] * (below + v * density);
}
KERNEL(gelu_gradient)
