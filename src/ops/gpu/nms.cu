// Greedy suppression (ops/nms) in lists of boxes [N, 4], best first; `starts` [lists + 1] says where each lies. Bit b of word w is
// about box 64·w + b of a list; a row has `words` words, enough for the longest list.

typedef unsigned long long Word;
constexpr unsigned BITS = 64;

// Every product is rounded, as on the host: a fused multiply-add would decide ties another way.
static __device__ float area(const float *b) { return __fmul_rn(b[2] - b[0], b[3] - b[1]); }

static __device__ bool overlaps(const float *a, const float *b, float threshold) {
    float width = fmaxf(fminf(a[2], b[2]) - fmaxf(a[0], b[0]), 0.0f);
    float height = fmaxf(fminf(a[3], b[3]) - fmaxf(a[1], b[1]), 0.0f);
    float common = __fmul_rn(width, height);
    return common / (area(a) + area(b) - common) > threshold;
}

// `found` [N, words]: which later boxes of its list a box overlaps. A thread for each word; neighbours look at the same boxes.
extern "C" __global__ void nms_overlaps(const float *boxes, const unsigned *starts, Word *found, unsigned lists, unsigned count,
                                        unsigned words, float threshold) {
    size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (size_t)count * words) return;
    unsigned box = index % count, word = index / count;
    unsigned list = last_at_most(starts, lists, box);
    unsigned from = starts[list] + word * BITS, end = starts[list + 1];
    Word bits = 0;
    for (unsigned b = 0; b < BITS && from + b < end; b++)
        if (from + b > box && overlaps(boxes + 4 * (size_t)box, boxes + 4 * (size_t)(from + b), threshold)) bits |= (Word)1 << b;
    found[(size_t)box * words + word] = bits;
}
KERNEL(nms_overlaps)

// `removed` [lists, words]: which boxes a better one that stays overlaps. A block for each list; it decides about the boxes of a
// word, then takes away what those that stay overlap in later words.
extern "C" __global__ void nms_sweep(const Word *found, const unsigned *starts, Word *removed, unsigned words) {
    __shared__ Word own[BITS];
    unsigned begin = starts[blockIdx.x], count = starts[blockIdx.x + 1] - begin;
    removed += (size_t)blockIdx.x * words;
    for (unsigned w = threadIdx.x; w < words; w += THREADS) removed[w] = 0;
    __syncthreads();
    for (unsigned word = 0; word * BITS < count; word++) {
        const Word *rows = found + (size_t)(begin + word * BITS) * words;
        unsigned size = min(BITS, count - word * BITS);
        if (threadIdx.x < size) own[threadIdx.x] = rows[(size_t)threadIdx.x * words + word];
        Word gone = removed[word];
        __syncthreads();
        for (unsigned b = 0; b < size; b++)
            if (!(gone >> b & 1)) gone |= own[b];
        for (unsigned w = word + threadIdx.x; w < words; w += THREADS) {
            Word bits = removed[w];
            for (unsigned b = 0; b < size; b++)
                if (!(gone >> b & 1)) bits |= rows[(size_t)b * words + w];
            removed[w] = bits;
        }
        __syncthreads();
    }
}
KERNEL(nms_sweep)
