// Makes C++ of the kernels, to run them where no GPU is: the blocks of a grid one after the other, the threads of a block in
// turns that end where they wait for each other. Included before the kernels.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static thread_local

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static thread_local Dim gridDim, blockDim, blockIdx, threadIdx;

namespace emulated {

struct Block {
    static constexpr size_t STACK = 64 << 10;
    std::vector<ucontext_t> threads;
    std::vector<char> done;
    std::unique_ptr<char[]> stacks;
    ucontext_t caller;
    unsigned running = 0;
    void (*body)(void *) = nullptr;
    void *arguments = nullptr;
    // Where threads of a warp show each other a value.
    std::vector<float> shown;
};
static thread_local Block block;

static void wait() { swapcontext(&block.threads[block.running], &block.caller); }

static void thread() {
    block.body(block.arguments);
    block.done[block.running] = 1;
    wait();
}

// Every thread runs up to its next barrier, in order, until all are done.
static void run_block(unsigned count) {
    block.threads.resize(count);
    block.done.assign(count, 0);
    block.shown.assign(count, 0.0f);
    if (!block.stacks) block.stacks.reset(new char[1024 * Block::STACK]);
    for (unsigned t = 0; t < count; t++) {
        getcontext(&block.threads[t]);
        block.threads[t].uc_stack.ss_sp = block.stacks.get() + t * Block::STACK;
        block.threads[t].uc_stack.ss_size = Block::STACK;
        block.threads[t].uc_link = nullptr;
        makecontext(&block.threads[t], thread, 0);
    }
    for (unsigned left = count; left > 0;) {
        for (unsigned t = 0; t < count; t++) {
            block.running = t;
            threadIdx = {t, 0, 0};
            swapcontext(&block.caller, &block.threads[t]);
            left -= block.done[t];
        }
        if (left != 0 && left != count) {
            fprintf(stderr, "a kernel's threads do not all reach the same barrier\n");
            abort();
        }
    }
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::decay_t<A> *>(arguments[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), unsigned blocks, unsigned threads, void **arguments) {
    struct Packed {
        void (*kernel)(A...);
        void **arguments;
    } packed{kernel, arguments};
    block.arguments = &packed;
    block.body = [](void *data) {
        auto *packed = static_cast<Packed *>(data);
        call(packed->kernel, packed->arguments, std::index_sequence_for<A...>{});
    };
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (unsigned b = 0; b < blocks; b++) {
        blockIdx = {b, 0, 0};
        run_block(threads);
    }
}

}  // namespace emulated

static void __syncthreads() { emulated::wait(); }

static float __shfl_xor_sync(unsigned, float value, int lanes) {
    unsigned self = emulated::block.running;
    emulated::block.shown[self] = value;
    emulated::wait();
    float other = emulated::block.shown[self ^ lanes];
    emulated::wait();
    return other;
}

// Kept apart from an addition, also where the processor could do both at once.
static float __fmul_rn(float a, float b) {
    volatile float product = a * b;
    return product;
}

static float atomicAdd(float *to, float value) {
    float old = *to;
    *to += value;
    return old;
}

static unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

// The entry that the tests call.
#define KERNEL(name)                                                                      \
    extern "C" void emulate_##name(unsigned blocks, unsigned threads, void **arguments) { \
        emulated::launch(name, blocks, threads, arguments);                               \
    }
