// Attention among the tokens of each image without the matrix of all scores (Dao, FlashAttention-2, arXiv 2307.08691): a block for
// THREADS tokens of one head, a thread for each of them; keys, or queries on the way back, pass by in tiles of shared memory. A row
// of `qkv` [B, N, 3·heads·D] holds q, k and v. `bias` [B, N] is added to the scores of a key; LEFT_OUT makes it none.

constexpr unsigned TILE = 32;
constexpr float LEFT_OUT = -1e29f;

// Which tokens a block has.
struct Place {
    unsigned image, head, token;
    bool inside;
};

static __device__ Place place(unsigned tokens, unsigned heads) {
    unsigned tiles = (tokens + THREADS - 1) / THREADS, sequence = blockIdx.x / tiles;
    unsigned token = blockIdx.x % tiles * THREADS + threadIdx.x;
    return {sequence / heads, sequence % heads, token, token < tokens};
}

// The rows of `TILE` tokens from `from` on, zeros behind the last; `rows` points to the head's part of the image's first row.
template <unsigned D>
static __device__ void load_tile(float (*tile)[D], const float *rows, size_t stride, unsigned from, unsigned tokens) {
    for (unsigned i = threadIdx.x; i < TILE * D; i += THREADS)
        tile[i / D][i % D] = from + i / D < tokens ? rows[(from + i / D) * stride + i % D] : 0.0f;
}

template <unsigned D>
static __device__ void load_row(float *row, const float *from, bool inside) {
    for (unsigned d = 0; d < D; d++) row[d] = inside ? from[d] : 0.0f;
}

template <unsigned D>
static __device__ float dot(const float *a, const float *b) {
    float sum = 0.0f;
    for (unsigned d = 0; d < D; d++) sum += a[d] * b[d];
    return sum;
}

template <unsigned D>
static __device__ void attend(const float *qkv, const float *bias, float *y, float *lse, unsigned tokens, unsigned heads,
                              float scale) {
    __shared__ float keys[TILE][D], values[TILE][D], biases[TILE];
    Place at = place(tokens, heads);
    size_t channels = (size_t)heads * D, stride = 3 * channels;
    const float *image = qkv + at.image * tokens * stride + at.head * D;
    float q[D], sum[D], scores[TILE];
    load_row<D>(q, image + at.token * stride, at.inside);
    for (unsigned d = 0; d < D; d++) q[d] *= scale, sum[d] = 0.0f;
    float largest = -INFINITY, weights = 0.0f;
    for (unsigned from = 0; from < tokens; from += TILE) {
        __syncthreads();
        load_tile<D>(keys, image + channels, stride, from, tokens);
        load_tile<D>(values, image + 2 * channels, stride, from, tokens);
        if (threadIdx.x < TILE)
            biases[threadIdx.x] = from + threadIdx.x < tokens ? bias[at.image * tokens + from + threadIdx.x] : 2 * LEFT_OUT;
        __syncthreads();
        float before = largest;
        for (unsigned j = 0; j < TILE; j++) {
            scores[j] = biases[j] > LEFT_OUT ? dot<D>(q, keys[j]) + biases[j] : -INFINITY;
            largest = fmaxf(largest, scores[j]);
        }
        if (largest == -INFINITY) continue;
        float shrink = expf(before - largest);
        weights *= shrink;
        for (unsigned d = 0; d < D; d++) sum[d] *= shrink;
        for (unsigned j = 0; j < TILE; j++) {
            float weight = expf(scores[j] - largest);
            weights += weight;
            for (unsigned d = 0; d < D; d++) sum[d] += weight * values[j][d];
        }
    }
    if (!at.inside) return;
    y += (at.image * tokens + at.token) * channels + at.head * D;
    // Without keys there is nothing to take a mean of: zeros, and weights of zero on the way back.
    for (unsigned d = 0; d < D; d++) y[d] = weights > 0.0f ? sum[d] / weights : 0.0f;
    lse[(at.image * heads + at.head) * tokens + at.token] = weights > 0.0f ? largest + logf(weights) : INFINITY;
}

// ⟨grad, y⟩ of each token and head: a thread for each.
extern "C" __global__ void attention_delta(const float *y, const float *grad, float *delta, unsigned tokens, unsigned heads,
                                           unsigned width, size_t count) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    size_t token = index % tokens, head = index / tokens % heads, image = index / tokens / heads;
    size_t start = ((image * tokens + token) * heads + head) * width;
    float sum = 0.0f;
    for (unsigned d = 0; d < width; d++) sum += y[start + d] * grad[start + d];
    delta[index] = sum;
}
KERNEL(attention_delta)

template <unsigned D>
static __device__ void gradient(const float *qkv, const float *bias, const float *lse, const float *delta, const float *grad,
                                float *dqkv, unsigned tokens, unsigned heads, float scale) {
    __shared__ float first[TILE][D], second[TILE][D], ones[TILE], others[TILE];
    Place at = place(tokens, heads);
    size_t channels = (size_t)heads * D, stride = 3 * channels;
    const float *image = qkv + at.image * tokens * stride + at.head * D;
    const float *grads = grad + at.image * tokens * channels + at.head * D;
    size_t sequence = ((size_t)at.image * heads + at.head) * tokens;
    lse += sequence, delta += sequence, bias += at.image * tokens;
    float *row = dqkv + (at.image * tokens + at.token) * stride + at.head * D;
    float a[D], b[D], da[D], db[D];

    // As a query: keys and values pass by.
    load_row<D>(a, image + at.token * stride, at.inside);
    load_row<D>(b, grads + at.token * channels, at.inside);
    for (unsigned d = 0; d < D; d++) da[d] = 0.0f;
    float own_lse = at.inside ? lse[at.token] : INFINITY, own_delta = at.inside ? delta[at.token] : 0.0f;
    for (unsigned from = 0; from < tokens; from += TILE) {
        __syncthreads();
        load_tile<D>(first, image + channels, stride, from, tokens);
        load_tile<D>(second, image + 2 * channels, stride, from, tokens);
        if (threadIdx.x < TILE) ones[threadIdx.x] = from + threadIdx.x < tokens ? bias[from + threadIdx.x] : 2 * LEFT_OUT;
        __syncthreads();
        for (unsigned j = 0; j < TILE; j++) {
            if (ones[j] <= LEFT_OUT) continue;
            float weight = expf(scale * dot<D>(a, first[j]) + ones[j] - own_lse);
            float slope = scale * weight * (dot<D>(b, second[j]) - own_delta);
            for (unsigned d = 0; d < D; d++) da[d] += slope * first[j][d];
        }
    }
    if (at.inside)
        for (unsigned d = 0; d < D; d++) row[d] = da[d];

    // As a key: queries and their gradients pass by.
    load_row<D>(a, image + channels + at.token * stride, at.inside);
    load_row<D>(b, image + 2 * channels + at.token * stride, at.inside);
    for (unsigned d = 0; d < D; d++) da[d] = db[d] = 0.0f;
    float own_bias = at.inside ? bias[at.token] : 2 * LEFT_OUT;
    for (unsigned from = 0; from < tokens; from += TILE) {
        __syncthreads();
        load_tile<D>(first, image, stride, from, tokens);
        load_tile<D>(second, grads, channels, from, tokens);
        if (threadIdx.x < TILE) {
            ones[threadIdx.x] = from + threadIdx.x < tokens ? lse[from + threadIdx.x] : INFINITY;
            others[threadIdx.x] = from + threadIdx.x < tokens ? delta[from + threadIdx.x] : 0.0f;
        }
        __syncthreads();
        if (own_bias <= LEFT_OUT) continue;
        for (unsigned j = 0; j < TILE; j++) {
            float weight = expf(scale * dot<D>(a, first[j]) + own_bias - ones[j]);
            float slope = scale * weight * (dot<D>(b, second[j]) - others[j]);
            for (unsigned d = 0; d < D; d++) {
                da[d] += slope * first[j][d];
                db[d] += weight * second[j][d];
            }
        }
    }
    if (at.inside)
        for (unsigned d = 0; d < D; d++) row[channels + d] = da[d], row[2 * channels + d] = db[d];
}

#define ATTENTION(D)                                                                                                      \
    extern "C" __global__ void attention_##D(const float *qkv, const float *bias, float *y, float *lse, unsigned tokens,   \
                                             unsigned heads, float scale) {                                                \
        attend<D>(qkv, bias, y, lse, tokens, heads, scale);                                                                \
    }                                                                                                                      \
    KERNEL(attention_##D)                                                                                                  \
    extern "C" __global__ void attention_gradient_##D(const float *qkv, const float *bias, const float *lse,               \
                                                      const float *delta, const float *grad, float *dqkv, unsigned tokens, \
                                                      unsigned heads, float scale) {                                       \
        gradient<D>(qkv, bias, lse, delta, grad, dqkv, tokens, heads, scale);                                              \
    }                                                                                                                      \
    KERNEL(attention_gradient_##D)

ATTENTION(32)
ATTENTION(64)
