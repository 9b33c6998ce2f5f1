// One step of AdamW (ops/optimizer) for many parameters at once, in place: a block for a chunk of one of them.

constexpr unsigned CHUNK = 2048;

// Where a parameter, its moments and its gradient lie.
struct Updated {
    float *parameter, *m, *v;
    const float *gradient;
    unsigned long long count;
};

// `starts` [count]: the number of the first chunk of each parameter; `rates` [count, 2]: 1 − ηλ and η / (1 − β₁ᵗ).
extern "C" __global__ void adamw(const Updated *parameters, const unsigned *starts, const float *rates, unsigned count, float beta1,
                                 float beta2, float root, float eps, float scale) {
    unsigned number = last_at_most(starts, count, blockIdx.x);
    Updated p = parameters[number];
    float shrink = rates[2 * number], rate = rates[2 * number + 1];
    size_t from = (size_t)(blockIdx.x - starts[number]) * CHUNK;
    for (size_t i = from + threadIdx.x; i < from + CHUNK && i < p.count; i += THREADS) {
        float g = p.gradient[i] * scale;
        float first = p.m[i] * beta1 + g * (1.0f - beta1);
        float second = p.v[i] * beta2 + g * g * (1.0f - beta2);
        p.m[i] = first;
        p.v[i] = second;
        p.parameter[i] = p.parameter[i] * shrink - rate * first / (sqrtf(second) * root + eps);
    }
}
KERNEL(adamw)
