// One step of AdamW (ops/optimizer). A thread for each value.

extern "C" __global__ void adamw(const float *parameter, const float *m, const float *v, const float *gradient,
                                 float *new_parameter, float *new_m, float *new_v, size_t count, float beta1, float beta2,
                                 float shrink, float rate, float root, float eps, float scale) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    float g = gradient[index] * scale;
    float first = m[index] * beta1 + g * (1.0f - beta1);
    float second = v[index] * beta2 + g * g * (1.0f - beta2);
    new_m[index] = first;
    new_v[index] = second;
    new_parameter[index] = parameter[index] * shrink - rate * first / (sqrtf(second) * root + eps);
}
KERNEL(adamw)
