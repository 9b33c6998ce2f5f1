// Stands in for the CUDA libraries while linking, so that the binary starts on machines that lack them: every function below
// jumps to the real one where the driver is installed and fails with `unavailable` where it is not.
//
// tools/cuda/build.sh compiles this file with `symbols.h`, one line `LAZY(cuInit)` for each function that the program calls.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// CUDA_ERROR_STUB_LIBRARY, ncclSystemError and CUDNN_STATUS_NOT_INITIALIZED. Nothing asks the other libraries before the driver.
static int unavailable(void) { return 34; }
static int unavailable_nccl(void) { return 2; }
static int unavailable_cudnn(void) { return 1001; }

#define STARTS(name, a, b, c) (#name[0] == a && #name[1] == b && #name[2] == c)
#define UNAVAILABLE(name) \
    (STARTS(name, 'n', 'c', 'c') ? unavailable_nccl : STARTS(name, 'c', 'u', 'd') ? unavailable_cudnn : unavailable)
#define LAZY(name) __attribute__((visibility("hidden"))) void *lazy_##name = UNAVAILABLE(name);
#include "symbols.h"
#undef LAZY

#if defined(__x86_64__)
#define JUMP(name) "jmp *lazy_" #name "(%rip)\n"
#elif defined(__aarch64__)
#define JUMP(name) "adrp x16, lazy_" #name "\nldr x16, [x16, :lo12:lazy_" #name "]\nbr x16\n"
#else
#error "the CUDA build knows x86-64 and arm64"
#endif
#define LAZY(name) __asm__(".text\n.globl " #name "\n.type " #name ", %function\n" #name ":\n" JUMP(name));
#include "symbols.h"
#undef LAZY

// By the start of their names; the longer start comes first.
static struct {
    const char *prefix, *file;
    int optional;
    void *handle;
} libraries[] = {
    {"nccl", "libnccl.so.2", 1, NULL},
    {"cudnn", "libcudnn.so.9", 1, NULL},
    {"cublasLt", "libcublasLt.so." CUDA_MAJOR, 0, NULL},
    {"cublas", "libcublas.so." CUDA_MAJOR, 0, NULL},
    {"curand", "libcurand.so.10", 0, NULL},
    {"nvrtc", "libnvrtc.so." CUDA_MAJOR, 0, NULL},
    {"cu", "libcuda.so.1", 0, NULL},
};
enum { LIBRARIES = sizeof libraries / sizeof libraries[0] };

static void *open_library(const char *file) {
    static const char *folders[] = {"", "/usr/local/cuda/lib64/", TOOLKIT "/"};
    char path[4096];
    void *handle = NULL;
    for (size_t i = 0; handle == NULL && i < sizeof folders / sizeof folders[0]; i++) {
        snprintf(path, sizeof path, "%s%s", folders[i], file);
        handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    }
    return handle;
}

// Before every other constructor: the kernels in the program register themselves in theirs.
__attribute__((constructor(101))) static void resolve(void) {
    // The driver first: without it nobody wants to hear of the rest.
    for (int i = LIBRARIES - 1; i >= 0; i--) {
        libraries[i].handle = open_library(libraries[i].file);
        if (libraries[i].handle == NULL && i == LIBRARIES - 1) return;
        if (libraries[i].handle == NULL && !libraries[i].optional) {
            fprintf(stderr, "warning: %s is not found, so GPUs are not used; install CUDA " CUDA_MAJOR
                            " or name its folder in LD_LIBRARY_PATH\n", libraries[i].file);
            return;
        }
    }
    // Functions that a later version added stay unavailable; nothing calls them on this one.
#define LAZY(name) \
    for (int i = 0; i < LIBRARIES; i++) \
        if (strncmp(#name, libraries[i].prefix, strlen(libraries[i].prefix)) == 0) { \
            void *found = libraries[i].handle ? dlsym(libraries[i].handle, #name) : NULL; \
            if (found != NULL) lazy_##name = found; \
            break; \
        }
#include "symbols.h"
#undef LAZY
}
