// What the kernels share.
#pragma once
#ifdef __CUDACC__
// Kernels are found by name; the emulation puts an entry here.
#define KERNEL(name)
#endif

// Threads of the blocks that work on a row.
constexpr unsigned THREADS = 128;

struct Sum {
    static __device__ float of(float a, float b) { return a + b; }
};
struct Max {
    static __device__ float of(float a, float b) { return fmaxf(a, b); }
};

// All values of the block's threads put together, in every thread.
template <class With>
static __device__ float over_block(float value) {
    __shared__ float warps[THREADS / 32];
    for (int lanes = 16; lanes > 0; lanes /= 2) value = With::of(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = warps[0];
    for (unsigned w = 1; w < THREADS / 32; w++) value = With::of(value, warps[w]);
    return value;
}

// The number of the last of `count` rising values that is at most `value`; the first one is.
static __device__ unsigned last_at_most(const unsigned *values, unsigned count, unsigned value) {
    unsigned found = 0, behind = count;
    while (behind - found > 1) {
        unsigned middle = (found + behind) / 2;
        if (values[middle] <= value) {
            found = middle;
        } else {
            behind = middle;
        }
    }
    return found;
}
