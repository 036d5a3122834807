// A libcuda.so.1 for tests without a GPU: device memory is host memory, and launches go to a function of the test's.
//
// Data of a call are in `stub`, which the test reads and writes. Functions are called by their plain names;
// cuGetProcAddress gives them for every version that asks for no other arguments.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void *Handle;
typedef uint64_t Pointer;

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
};
enum { MAX_DEVICES = 8, MAX_BLOCKS = 1 << 16 };
enum { ON_HOST = 1, ON_DEVICE = 2 };

typedef int (*Launcher)(Handle kernel, const unsigned *grid, const unsigned *block, unsigned shared, Handle stream,
                        void **params);

struct {
    int devices, major, minor;
    int execute, capturing;
    int64_t allocatable;  // bytes; negative: any number
    int64_t synchronizations, launches;
    int64_t changes;  // of the table of blocks
    Launcher launcher;
} stub = {.devices = 1, .major = 9, .execute = 1, .allocatable = -1};

struct library {
    char *ptx;  // NULL of an image that is no text
};
struct kernel {
    struct library *library;
    char name[1024];
};
struct context {
    int device;
};
struct stream {
    struct context *context;
};
struct block {
    Pointer address;
    uint64_t size;
    int32_t device, kind, owned;
};

static struct context contexts[MAX_DEVICES];
static __thread struct context *stack[16];
static __thread int depth;
struct block stub_blocks[MAX_BLOCKS];
int stub_block_count;

static struct context *current(void) { return depth ? stack[depth - 1] : NULL; }

static Result waits(void) {
    if (stub.capturing) return CAPTURE_UNSUPPORTED;
    stub.synchronizations++;
    return SUCCESS;
}

// ---- devices and contexts ----

Result cuInit(unsigned flags) { return stub.devices ? SUCCESS : NO_DEVICE; }
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = stub.devices, SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= stub.devices) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
Result cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "stub %d.%d", stub.major, stub.minor);
    return SUCCESS;
}
Result cuDeviceGetUuid(unsigned char *uuid, int device) { return memset(uuid, device + 1, 16), SUCCESS; }
Result cuDeviceTotalMem(size_t *bytes, int device) { return *bytes = (size_t)1 << 34, SUCCESS; }
Result cuDeviceComputeCapability(int *major, int *minor, int device) {
    *major = stub.major, *minor = stub.minor;
    return SUCCESS;
}
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 1: case 2: case 3: *value = 1024; break;  // threads of a block, in each direction
        case 4: *value = 64; break;
        case 5: *value = 2147483647; break;  // blocks of a grid
        case 6: case 7: *value = 65535; break;
        case 8: *value = 49152; break;  // bytes of shared memory
        case 10: *value = 32; break;  // threads of a warp
        case 12: *value = 65536; break;  // registers
        case 16: *value = 4; break;  // multiprocessors: few, so that grids sized by them are quickly run
        case 39: *value = 2048; break;  // threads of a multiprocessor
        case 19: case 41: case 115: *value = 1; break;  // host memory is mapped, one address space, memory pools
        case 75: *value = stub.major; break;
        case 76: *value = stub.minor; break;
        case 97: *value = 232448; break;
        default: *value = 0;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(struct context **context, int device) {
    if (device < 0 || device >= stub.devices) return INVALID_DEVICE;
    contexts[device].device = device;
    return *context = &contexts[device], SUCCESS;
}
Result cuDevicePrimaryCtxRelease(int device) { return SUCCESS; }
Result cuDevicePrimaryCtxReset(int device) { return SUCCESS; }
Result cuDevicePrimaryCtxSetFlags(int device, unsigned flags) { return SUCCESS; }
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, SUCCESS; }
Result cuCtxGetCurrent(struct context **context) { return *context = current(), SUCCESS; }
Result cuCtxSetCurrent(struct context *context) {
    if (!context) {
        if (depth) depth--;
    } else {
        if (!depth) depth = 1;
        stack[depth - 1] = context;
    }
    return SUCCESS;
}
Result cuCtxPushCurrent(struct context *context) {
    if (!context || depth == 16) return INVALID_CONTEXT;
    return stack[depth++] = context, SUCCESS;
}
Result cuCtxPopCurrent(struct context **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return SUCCESS;
}
Result cuCtxGetDevice(int *device) { return current() ? (*device = current()->device, SUCCESS) : INVALID_CONTEXT; }
Result cuCtxGetDevice_v2(int *device, struct context *context) { return *device = context->device, SUCCESS; }
Result cuCtxGetFlags(unsigned *flags) { return *flags = 0, SUCCESS; }
Result cuCtxGetId(struct context *context, uint64_t *id) {
    if (!context) context = current();
    return context ? (*id = context->device + 1, SUCCESS) : INVALID_CONTEXT;
}
Result cuCtxGetApiVersion(Handle context, unsigned *version) { return *version = 3020, SUCCESS; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = *greatest = 0, SUCCESS; }
Result cuCtxGetLimit(size_t *value, int limit) { return *value = 0, SUCCESS; }
Result cuCtxSynchronize(void) { return waits(); }
Result cuDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0, SUCCESS; }

// ---- memory ----

static struct block *find(Pointer address) {
    for (int i = 0; i < stub_block_count; i++)
        if (address - stub_blocks[i].address < stub_blocks[i].size) return &stub_blocks[i];
    return NULL;
}
int stub_add(Pointer address, uint64_t size, int device, int kind, int owned) {
    if (stub_block_count == MAX_BLOCKS) return OUT_OF_MEMORY;
    stub_blocks[stub_block_count++] = (struct block){address, size, device, kind, owned};
    stub.changes++;
    return SUCCESS;
}
int stub_remove(Pointer address) {
    for (int i = 0; i < stub_block_count; i++)
        if (stub_blocks[i].address == address) {
            stub_blocks[i] = stub_blocks[--stub_block_count];
            stub.changes++;
            return SUCCESS;
        }
    return INVALID_VALUE;
}
static Result allocate(Pointer *pointer, size_t size, int kind) {
    if (!size) return INVALID_VALUE;
    if (stub.allocatable >= 0) {
        if ((int64_t)size > stub.allocatable) return OUT_OF_MEMORY;
        stub.allocatable -= size;
    }
    void *memory = aligned_alloc(256, (size + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xA5, size);
    *pointer = (Pointer)memory;
    return stub_add(*pointer, size, current() ? current()->device : 0, kind, 1);
}
static Result release(Pointer pointer) {
    if (!pointer) return SUCCESS;
    if (stub_remove(pointer)) return INVALID_VALUE;
    free((void *)pointer);
    return SUCCESS;
}
Result cuMemAlloc(Pointer *pointer, size_t size) {
    return stub.capturing ? CAPTURE_UNSUPPORTED : allocate(pointer, size, ON_DEVICE);
}
Result cuMemAllocManaged(Pointer *pointer, size_t size, unsigned flags) { return cuMemAlloc(pointer, size); }
Result cuMemFree(Pointer pointer) {
    Result result = waits();
    return result ? result : release(pointer);
}
Result cuMemAllocAsync(Pointer *pointer, size_t size, Handle stream) { return cuMemAlloc(pointer, size); }
Result cuMemAllocFromPoolAsync(Pointer *pointer, size_t size, Handle pool, Handle stream) {
    return cuMemAlloc(pointer, size);
}
Result cuMemFreeAsync(Pointer pointer, Handle stream) {
    return stub.capturing ? CAPTURE_UNSUPPORTED : release(pointer);
}
Result cuMemHostAlloc(Pointer *pointer, size_t size, unsigned flags) {
    return stub.capturing ? CAPTURE_UNSUPPORTED : allocate(pointer, size, ON_HOST);
}
Result cuMemAllocHost(Pointer *pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }
Result cuMemFreeHost(Pointer pointer) {
    Result result = waits();
    return result ? result : release(pointer);
}
Result cuMemHostGetDevicePointer(Pointer *device, Pointer host, unsigned flags) {
    return find(host) ? (*device = host, SUCCESS) : INVALID_VALUE;
}
Result cuMemHostGetFlags(unsigned *flags, Pointer host) {
    return find(host) ? (*flags = 2, SUCCESS) : INVALID_VALUE;  // mapped
}
Result cuMemHostRegister(Pointer host, size_t size, unsigned flags) { return stub_add(host, size, 0, ON_HOST, 0); }
Result cuMemHostUnregister(Pointer host) { return stub_remove(host); }
Result cuMemGetInfo(size_t *available, size_t *total) {
    *total = (size_t)1 << 34;
    *available = stub.allocatable < 0 ? *total : (size_t)stub.allocatable;
    return SUCCESS;
}
Result cuMemGetAddressRange(Pointer *base, size_t *size, Pointer pointer) {
    struct block *block = find(pointer);
    if (!block) return NOT_FOUND;
    if (base) *base = block->address;
    if (size) *size = block->size;
    return SUCCESS;
}
static Result attribute_of(void *value, int attribute, Pointer pointer) {
    struct block *block = find(pointer);
    switch (attribute) {
        case 1: *(Handle *)value = block ? &contexts[block->device] : NULL; break;
        case 2: *(unsigned *)value = block ? block->kind : 0; break;
        case 3: *(Pointer *)value = block ? pointer : 0; break;
        case 4: *(Pointer *)value = block ? pointer : 0; break;
        case 7: *(uint64_t *)value = block ? (uint64_t)(block - stub_blocks) + 1 : 0; break;
        case 8: *(unsigned *)value = 0; break;  // is managed
        case 9: *(int *)value = block ? block->device : -2; break;
        case 11: *(Pointer *)value = block ? block->address : 0; break;
        case 12: *(size_t *)value = block ? block->size : 0; break;
        case 13: *(unsigned *)value = block != NULL; break;  // is mapped
        default: return NOT_SUPPORTED;
    }
    return SUCCESS;
}
Result cuPointerGetAttribute(void *value, int attribute, Pointer pointer) {
    if (!find(pointer)) return INVALID_VALUE;  // as of memory that CUDA does not know
    return attribute_of(value, attribute, pointer);
}
Result cuPointerGetAttributes(unsigned count, int *attributes, void **values, Pointer pointer) {
    for (unsigned i = 0; i < count; i++) attribute_of(values[i], attributes[i], pointer);
    return SUCCESS;
}
static int pool;
Result cuDeviceGetMemPool(Handle *found, int device) { return *found = &pool, SUCCESS; }
Result cuDeviceGetDefaultMemPool(Handle *found, int device) { return *found = &pool, SUCCESS; }
Result cuMemGetMemPool(Handle *found, void *location, int type) { return *found = &pool, SUCCESS; }
Result cuMemGetDefaultMemPool(Handle *found, void *location, int type) { return *found = &pool, SUCCESS; }
Result cuMemPoolGetAttribute(Handle pool, int attribute, void *value) { return *(uint64_t *)value = 0, SUCCESS; }
Result cuMemPoolSetAttribute(Handle pool, int attribute, void *value) { return SUCCESS; }
Result cuMemPoolTrimTo(Handle pool, size_t size) { return SUCCESS; }

Result cuMemcpyAsync(Pointer to, Pointer of, size_t size, Handle stream) {
    return memmove((void *)to, (void *)of, size), SUCCESS;
}
Result cuMemcpyHtoDAsync(Pointer to, Pointer of, size_t n, Handle stream) { return cuMemcpyAsync(to, of, n, stream); }
Result cuMemcpyDtoHAsync(Pointer to, Pointer of, size_t n, Handle stream) { return cuMemcpyAsync(to, of, n, stream); }
Result cuMemcpyDtoDAsync(Pointer to, Pointer of, size_t n, Handle stream) { return cuMemcpyAsync(to, of, n, stream); }
Result cuMemcpy(Pointer to, Pointer of, size_t size) {
    Result result = waits();
    return result ? result : cuMemcpyAsync(to, of, size, NULL);
}
Result cuMemcpyHtoD(Pointer to, Pointer of, size_t size) { return cuMemcpy(to, of, size); }
Result cuMemcpyDtoH(Pointer to, Pointer of, size_t size) { return cuMemcpy(to, of, size); }
Result cuMemcpyDtoD(Pointer to, Pointer of, size_t size) { return cuMemcpy(to, of, size); }
Result cuMemsetD8Async(Pointer to, unsigned char value, size_t count, Handle stream) {
    return memset((void *)to, value, count), SUCCESS;
}
Result cuMemsetD16Async(Pointer to, unsigned short value, size_t count, Handle stream) {
    for (size_t i = 0; i < count; i++) ((unsigned short *)to)[i] = value;
    return SUCCESS;
}
Result cuMemsetD32Async(Pointer to, unsigned value, size_t count, Handle stream) {
    for (size_t i = 0; i < count; i++) ((unsigned *)to)[i] = value;
    return SUCCESS;
}
Result cuMemsetD8(Pointer to, unsigned char value, size_t count) { return cuMemsetD8Async(to, value, count, NULL); }
Result cuMemsetD32(Pointer to, unsigned value, size_t count) { return cuMemsetD32Async(to, value, count, NULL); }

// ---- modules and kernels ----

Result cuLibraryLoadData(struct library **library, const char *image, void *a, void *b, unsigned c, void *d, void *e,
                         unsigned f) {
    *library = calloc(1, sizeof **library);
    const char *text = image + strspn(image, " \t\r\n");
    if (!strncmp(text, "//", 2) || !strncmp(text, ".version", 8)) (*library)->ptx = strdup(image);
    return SUCCESS;
}
Result cuLibraryUnload(struct library *library) { return SUCCESS; }
Result cuModuleLoadDataEx(struct library **module, const char *image, unsigned n, void *options, void *values) {
    return cuLibraryLoadData(module, image, 0, 0, 0, 0, 0, 0);
}
Result cuModuleLoadData(struct library **module, const char *image) {
    return cuLibraryLoadData(module, image, 0, 0, 0, 0, 0, 0);
}
Result cuModuleUnload(struct library *module) { return SUCCESS; }
static int defines(const char *ptx, const char *name) {
    size_t length = strlen(name);
    while ((ptx = strstr(ptx, ".entry"))) {
        ptx += 6;
        ptx += strspn(ptx, " \t\r\n");
        if (!strncmp(ptx, name, length) && strchr(" \t\r\n({", ptx[length])) return 1;
    }
    return 0;
}
Result cuLibraryGetKernel(struct kernel **kernel, struct library *library, const char *name) {
    if (library->ptx && !defines(library->ptx, name)) return NOT_FOUND;
    *kernel = calloc(1, sizeof **kernel);
    (*kernel)->library = library;
    snprintf((*kernel)->name, sizeof (*kernel)->name, "%s", name);
    return SUCCESS;
}
Result cuModuleGetFunction(struct kernel **kernel, struct library *module, const char *name) {
    return cuLibraryGetKernel(kernel, module, name);
}
Result cuLibraryGetModule(Handle *module, Handle library) { return *module = library, SUCCESS; }
Result cuKernelGetFunction(Handle *function, Handle kernel) { return *function = kernel, SUCCESS; }
Result cuKernelGetLibrary(struct library **library, struct kernel *kernel) {
    return *library = kernel->library, SUCCESS;
}
Result cuKernelGetName(const char **name, struct kernel *kernel) { return *name = kernel->name, SUCCESS; }
Result cuFuncGetName(const char **name, struct kernel *kernel) { return *name = kernel->name, SUCCESS; }
Result cuFuncGetModule(struct library **module, struct kernel *kernel) { return *module = kernel->library, SUCCESS; }
Result cuFuncGetAttribute(int *value, int attribute, Handle function) {
    return *value = attribute == 0 ? 1024 : 0, SUCCESS;  // 0: threads of a block
}
Result cuKernelGetAttribute(int *value, int attribute, Handle kernel, int device) {
    return cuFuncGetAttribute(value, attribute, kernel);
}
Result cuKernelSetAttribute(int attribute, int value, Handle kernel, int device) { return SUCCESS; }
Result cuFuncSetAttribute(Handle function, int attribute, int value) { return SUCCESS; }
Result cuKernelSetCacheConfig(Handle kernel, int config, int device) { return SUCCESS; }
Result cuFuncSetCacheConfig(Handle function, int config) { return SUCCESS; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Handle function, int block, size_t shared) {
    return *blocks = block > 0 ? 2048 / block : 0, SUCCESS;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Handle function, int block, size_t shared,
                                                            unsigned flags) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block, shared);
}
const char *stub_name(struct kernel *kernel) { return kernel->name; }
const char *stub_ptx(struct kernel *kernel) { return kernel->library->ptx; }

Result cuLaunchKernel(Handle kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Handle stream, void **params, void **extra) {
    stub.launches++;
    if (!gx || !gy || !gz || !bx || !by || !bz || (uint64_t)bx * by * bz > 1024) return INVALID_VALUE;
    if (!stub.execute || !stub.launcher) return SUCCESS;
    return stub.launcher(kernel, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, params);
}
struct configuration {
    unsigned gx, gy, gz, bx, by, bz, shared;
    Handle stream;
    void *attributes;
    unsigned count;
};
Result cuLaunchKernelEx(const struct configuration *c, Handle kernel, void **params, void **extra) {
    return cuLaunchKernel(kernel, c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream, params, extra);
}
Result cuLaunchCooperativeKernel(Handle kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                 unsigned bz, unsigned shared, Handle stream, void **params) {
    return cuLaunchKernel(kernel, gx, gy, gz, bx, by, bz, shared, stream, params, NULL);
}

// ---- streams and events ----

static int predefined(const void *stream) { return (uintptr_t)stream <= 2; }  // the default streams
static struct context *context_of(struct stream *stream) { return predefined(stream) ? current() : stream->context; }

Result cuStreamCreateWithPriority(struct stream **stream, unsigned flags, int priority) {
    if (!current()) return INVALID_CONTEXT;
    *stream = malloc(sizeof **stream);
    (*stream)->context = current();
    return SUCCESS;
}
Result cuStreamCreate(struct stream **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
Result cuStreamDestroy(struct stream *stream) { return free(stream), SUCCESS; }
Result cuStreamSynchronize(Handle stream) { return waits(); }
Result cuStreamQuery(Handle stream) { return stub.capturing ? CAPTURE_UNSUPPORTED : SUCCESS; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { return SUCCESS; }
Result cuStreamGetCtx(struct stream *stream, struct context **context) {
    *context = context_of(stream);
    return *context ? SUCCESS : INVALID_CONTEXT;
}
Result cuStreamGetCtx_v2(struct stream *stream, struct context **context, Handle *green) {
    *green = NULL;
    return cuStreamGetCtx(stream, context);
}
Result cuStreamGetDevice(struct stream *stream, int *device) {
    struct context *context = context_of(stream);
    return context ? (*device = context->device, SUCCESS) : INVALID_CONTEXT;
}
Result cuStreamGetId(Handle stream, uint64_t *id) { return *id = (uintptr_t)stream, SUCCESS; }
Result cuStreamGetFlags(Handle stream, unsigned *flags) { return *flags = predefined(stream) ? 0 : 1, SUCCESS; }
Result cuStreamGetPriority(Handle stream, int *priority) { return *priority = 0, SUCCESS; }
Result cuStreamIsCapturing(Handle stream, int *status) { return *status = stub.capturing, SUCCESS; }
Result cuStreamGetCaptureInfo(Handle stream, int *status, uint64_t *id, Handle *graph, const Handle **dependencies,
                              const Handle **edges, size_t *count) {
    *status = stub.capturing;
    if (id) *id = 1;
    if (graph) *graph = NULL;
    if (dependencies) *dependencies = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return SUCCESS;
}
Result cuStreamGetCaptureInfo_v2(Handle stream, int *status, uint64_t *id, Handle *graph, const Handle **dependencies,
                                 size_t *count) {
    return cuStreamGetCaptureInfo(stream, status, id, graph, dependencies, NULL, count);
}
Result cuThreadExchangeStreamCaptureMode(int *mode) { return SUCCESS; }
Result cuEventCreate(Handle *event, unsigned flags) { return *event = malloc(8), SUCCESS; }
Result cuEventRecord(Handle event, Handle stream) { return SUCCESS; }
Result cuEventRecordWithFlags(Handle event, Handle stream, unsigned flags) { return SUCCESS; }
Result cuEventDestroy(Handle event) { return free(event), SUCCESS; }
Result cuEventSynchronize(Handle event) { return waits(); }
Result cuEventQuery(Handle event) { return stub.capturing ? CAPTURE_UNSUPPORTED : SUCCESS; }
Result cuEventElapsedTime(float *milliseconds, Handle a, Handle b) { return *milliseconds = 1, SUCCESS; }

// ---- errors and symbols ----

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
};
static int error_index(int code) {
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return i;
    return -1;
}
Result cuGetErrorName(int code, const char **name) {
    int i = error_index(code);
    return *name = i < 0 ? NULL : errors[i].name, i < 0 ? INVALID_VALUE : SUCCESS;
}
Result cuGetErrorString(int code, const char **text) {
    int i = error_index(code);
    return *text = i < 0 ? NULL : errors[i].text, i < 0 ? INVALID_VALUE : SUCCESS;
}
Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static void *self;
    if (!self) {
        Dl_info info;
        dladdr((void *)cuInit, &info);
        self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }
    *function = NULL;
    // Names come without the suffix of a version, which `version` stands for.
    if (!strcmp(name, "cuStreamGetCaptureInfo") && version < 12030) name = "cuStreamGetCaptureInfo_v2";
    if (!strcmp(name, "cuCtxGetDevice") && version >= 13000) name = "cuCtxGetDevice_v2";
    if (!strcmp(name, "cuStreamGetCtx") && version >= 12050) name = "cuStreamGetCtx_v2";
    if (!strcmp(name, "cuGetProcAddress")) name = "cuGetProcAddress_v2";
    *function = dlsym(self, name);
    if (status) *status = *function ? 0 : 1;  // 1: the symbol is not found
    return *function ? SUCCESS : NOT_FOUND;
}
Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
