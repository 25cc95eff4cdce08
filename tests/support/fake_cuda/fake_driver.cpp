// A CUDA driver without a GPU, for the tests: libcuda.so.1 as cuda.bindings loads it.
//
// Device memory is the host's, and kernels run through ../host_cuda. Streams are as lazy
// as they may be: work runs when something waits for it, so a missing wait, or memory that
// goes back too early, shows as poison in the results. Only what sigcam calls is here;
// cuGetProcAddress knows nothing else.
//
// Environment: FAKE_CUDA_DEVICES (1), FAKE_CUDA_POOLS (1), FAKE_CUDA_INTEGRATED (0),
// FAKE_CUDA_REFUSES (0; 1 lets no module load).

#include "../host_cuda/host_cuda.cpp"

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>

namespace fake {

enum Status {
    SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
    UNSUPPORTED_IN_CAPTURE = 900,
};

using Work = std::function<void()>;

struct Queue {
    std::deque<Work> waiting;
    uint64_t queued = 0, done = 0;
    bool capturing = false;
    std::vector<Work> captured;
    void* context = nullptr;
};

struct Point {
    Queue* queue = nullptr;
    uint64_t number = 0;
};

struct Code {
    int dummy;
};

struct Pool {
    uint64_t kept = 0;
};

using Graph = std::vector<Work>;

std::recursive_mutex mutex;
std::vector<std::string> calls;
std::map<uintptr_t, size_t> device_memory, host_memory;
std::set<void*> handles;  // streams, events, modules, graphs that aren't destroyed
Queue legacy, per_thread;
std::set<Queue*> queues{&legacy, &per_thread};
int primary[8];  // a context is the address of its device's entry, which counts its owners
thread_local std::vector<void*> contexts;
thread_local int captures = 0;

int number(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

Queue* queue_of(void* handle) {
    const auto value = reinterpret_cast<uintptr_t>(handle);
    if (value <= 1) return &legacy;
    if (value == 2) return &per_thread;
    return handles.count(handle) ? static_cast<Queue*>(handle) : nullptr;
}

void drain(Queue* queue, uint64_t until) {
    while (queue->done < until && !queue->waiting.empty()) {
        Work work = std::move(queue->waiting.front());
        queue->waiting.pop_front();
        ++queue->done;
        work();
    }
}

void drain_all() {
    for (Queue* queue : queues) drain(queue, queue->queued);
}

int push(void* stream, Work work) {
    if (contexts.empty()) return INVALID_CONTEXT;
    Queue* queue = queue_of(stream);
    if (!queue) return INVALID_HANDLE;
    if (queue->capturing) {
        queue->captured.push_back(std::move(work));
    } else {
        queue->waiting.push_back(std::move(work));
        ++queue->queued;
    }
    return SUCCESS;
}

int allocate(uintptr_t* out, size_t size, std::map<uintptr_t, size_t>& kind) {
    if (contexts.empty()) return INVALID_CONTEXT;
    if (captures) return UNSUPPORTED_IN_CAPTURE;
    if (!size) return INVALID_VALUE;
    void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
    std::memset(memory, 0xAB, size);
    *out = reinterpret_cast<uintptr_t>(memory);
    kind[*out] = size;
    return SUCCESS;
}

void give_back(uintptr_t address, std::map<uintptr_t, size_t>& kind) {
    std::memset(reinterpret_cast<void*>(address), 0xCD, kind[address]);
    kind.erase(address);
    std::free(reinterpret_cast<void*>(address));
}

// Whether [address, address + size) lies in one allocation.
bool lies_in(const std::map<uintptr_t, size_t>& kind, uintptr_t address, size_t size) {
    auto found = kind.upper_bound(address);
    if (found == kind.begin()) return false;
    --found;
    return address + size <= found->first + found->second;
}

template <typename T>
int create(T** out) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *out = new T();
    handles.insert(*out);
    return SUCCESS;
}

int destroy(void* handle) {
    if (contexts.empty()) return INVALID_CONTEXT;
    return handles.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

}  // namespace fake

using namespace fake;

#define CU(name, ...)                                                    \
    extern "C" int name(__VA_ARGS__) {                                   \
        const std::lock_guard<std::recursive_mutex> lock(fake::mutex);   \
        fake::calls.push_back(#name);
#define END }

CU(cuInit, unsigned) return number("FAKE_CUDA_DEVICES", 1) ? SUCCESS : NO_DEVICE; END
CU(cuDriverGetVersion, int* out) *out = 13000; return SUCCESS; END
CU(cuDeviceGetCount, int* out) *out = number("FAKE_CUDA_DEVICES", 1); return SUCCESS; END
CU(cuDeviceGet, int* out, int ordinal)
    if (ordinal < 0 || ordinal >= number("FAKE_CUDA_DEVICES", 1)) return INVALID_DEVICE;
    *out = ordinal;
    return SUCCESS;
END
CU(cuDeviceGetName, char* out, int size, int ordinal)
    std::snprintf(out, static_cast<size_t>(size), "Fake %d", ordinal);
    return SUCCESS;
END
CU(cuDeviceGetAttribute, int* out, int kind, int)
    switch (kind) {
        case 75: *out = 8; return SUCCESS;   // COMPUTE_CAPABILITY_MAJOR
        case 76: *out = 6; return SUCCESS;   // COMPUTE_CAPABILITY_MINOR
        case 16: *out = 4; return SUCCESS;   // MULTIPROCESSOR_COUNT
        case 115: *out = number("FAKE_CUDA_POOLS", 1); return SUCCESS;
        case 18: *out = number("FAKE_CUDA_INTEGRATED", 0); return SUCCESS;
    }
    return INVALID_VALUE;
END

extern "C" int cuGetErrorName(int status, const char** out) {
    *out = status == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
         : status == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
         : status == NO_BINARY ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
         : status == INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE" : "CUDA_ERROR_OTHER";
    return SUCCESS;
}
extern "C" int cuGetErrorString(int, const char** out) {
    *out = "text of the error";
    return SUCCESS;
}

CU(cuCtxGetCurrent, void** out)
    *out = contexts.empty() ? nullptr : contexts.back();
    return SUCCESS;
END
CU(cuCtxGetDevice, int* out)
    if (contexts.empty()) return INVALID_CONTEXT;
    *out = static_cast<int>(static_cast<int*>(contexts.back()) - primary);
    return SUCCESS;
END
CU(cuCtxPushCurrent, void* context)
    const auto entry = static_cast<int*>(context);
    if (entry < primary || entry >= primary + 8 || !*entry) return INVALID_CONTEXT;
    contexts.push_back(context);
    return SUCCESS;
END
CU(cuCtxPopCurrent, void** out)
    if (contexts.empty()) return INVALID_CONTEXT;
    *out = contexts.back();
    contexts.pop_back();
    return SUCCESS;
END
CU(cuDevicePrimaryCtxRetain, void** out, int ordinal)
    ++primary[ordinal];
    *out = primary + ordinal;
    return SUCCESS;
END
CU(cuDevicePrimaryCtxRelease, int ordinal)
    if (!primary[ordinal]) return INVALID_CONTEXT;
    --primary[ordinal];
    return SUCCESS;
END

CU(cuMemAlloc, uintptr_t* out, size_t size) return allocate(out, size, device_memory); END
CU(cuMemFree, uintptr_t address)
    if (contexts.empty()) return INVALID_CONTEXT;
    if (captures) return UNSUPPORTED_IN_CAPTURE;
    if (!device_memory.count(address)) return INVALID_VALUE;
    drain_all();
    give_back(address, device_memory);
    return SUCCESS;
END
CU(cuMemPoolCreate, void** out, const int* wish)
    // Allocation type PINNED, no handles to share, and a device that there is.
    if (wish[0] != 1 || wish[1] != 0 || wish[2] != 1) return INVALID_VALUE;
    if (wish[3] < 0 || wish[3] >= number("FAKE_CUDA_DEVICES", 1)) return INVALID_DEVICE;
    Pool* made = nullptr;
    const int status = create(&made);
    *out = made;
    return status;
END
CU(cuMemPoolSetAttribute, void* pool, int kind, void* value)
    if (!handles.count(pool) || kind != 4) return INVALID_VALUE;  // RELEASE_THRESHOLD
    static_cast<Pool*>(pool)->kept = *static_cast<uint64_t*>(value);
    return SUCCESS;
END
CU(cuMemPoolDestroy, void* pool) return destroy(pool); END
CU(cuMemAllocFromPoolAsync, uintptr_t* out, size_t size, void* pool, void* stream)
    if (!queue_of(stream) || !handles.count(pool)) return INVALID_HANDLE;
    return allocate(out, size, device_memory);
END
CU(cuMemFreeAsync, uintptr_t address, void* stream)
    if (!device_memory.count(address)) return INVALID_VALUE;
    return push(stream, [=] { give_back(address, device_memory); });
END
CU(cuMemHostAlloc, void** out, size_t size, unsigned)
    return allocate(reinterpret_cast<uintptr_t*>(out), size, host_memory);
END
CU(cuMemFreeHost, void* memory)
    if (contexts.empty()) return INVALID_CONTEXT;
    const auto address = reinterpret_cast<uintptr_t>(memory);
    if (!host_memory.count(address)) return INVALID_VALUE;
    drain_all();
    give_back(address, host_memory);
    return SUCCESS;
END
CU(cuPointerGetAttribute, void* out, int kind, uintptr_t address)
    if (kind != 9 || !lies_in(device_memory, address, 1)) return INVALID_VALUE;  // DEVICE_ORDINAL
    *static_cast<int*>(out) = 0;
    return SUCCESS;
END
CU(cuMemcpyHtoDAsync, uintptr_t to, const void* from, size_t size, void* stream)
    if (!lies_in(device_memory, to, size)) return INVALID_VALUE;
    const auto source = reinterpret_cast<uintptr_t>(from);
    if (lies_in(host_memory, source, size))
        return push(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, size); });
    const std::string staged(static_cast<const char*>(from), size);
    return push(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), staged.data(), size); });
END
CU(cuMemcpyDtoHAsync, void* to, uintptr_t from, size_t size, void* stream)
    if (!lies_in(device_memory, from, size)) return INVALID_VALUE;
    const int status =
        push(stream, [=] { std::memcpy(to, reinterpret_cast<const void*>(from), size); });
    Queue* queue = queue_of(stream);
    const bool pinned = lies_in(host_memory, reinterpret_cast<uintptr_t>(to), size);
    if (!status && !pinned && !queue->capturing) drain(queue, queue->queued);
    return status;
END
CU(cuMemcpyAsync, uintptr_t to, uintptr_t from, size_t size, void* stream)
    for (const uintptr_t address : {to, from})
        if (!lies_in(device_memory, address, size) && !lies_in(host_memory, address, size))
            return INVALID_VALUE;
    return push(stream, [=] {
        std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size);
    });
END
CU(cuLaunchHostFunc, void* stream, void (*work)(void*), void* data)
    return push(stream, [=] { work(data); });
END
CU(cuMemsetD8Async, uintptr_t to, unsigned char value, size_t size, void* stream)
    if (!lies_in(device_memory, to, size)) return INVALID_VALUE;
    return push(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, size); });
END

CU(cuStreamCreate, void** out, unsigned flags)
    if (flags > 1) return INVALID_VALUE;
    Queue* made = nullptr;
    const int status = create(&made);
    if (!status) queues.insert(made), made->context = contexts.back();
    *out = made;
    return status;
END
CU(cuStreamGetCtx, void* stream, void** out)
    Queue* queue = queue_of(stream);
    if (!queue) return INVALID_HANDLE;
    *out = queue->context;
    return SUCCESS;
END
extern "C" int cuStreamGetCtx_v2(void* stream, void** out, void**) {
    return cuStreamGetCtx(stream, out);
}
CU(cuStreamDestroy, void* stream) return destroy(stream); END
CU(cuStreamSynchronize, void* stream)
    Queue* queue = queue_of(stream);
    if (!queue) return INVALID_HANDLE;
    if (queue->capturing) return UNSUPPORTED_IN_CAPTURE;
    drain(queue, queue->queued);
    return SUCCESS;
END
CU(cuStreamIsCapturing, void* stream, int* out)
    Queue* queue = queue_of(stream);
    if (!queue) return INVALID_HANDLE;
    *out = queue->capturing;
    return SUCCESS;
END
CU(cuStreamBeginCapture, void* stream, int mode)
    Queue* queue = queue_of(stream);
    if (!queue || queue == &legacy) return INVALID_HANDLE;
    if (mode != 1) return INVALID_VALUE;  // THREAD_LOCAL
    queue->capturing = true;
    ++captures;
    return SUCCESS;
END
CU(cuStreamEndCapture, void* stream, void** out)
    Queue* queue = queue_of(stream);
    if (!queue || !queue->capturing) return INVALID_VALUE;
    queue->capturing = false;
    --captures;
    Graph* graph = nullptr;
    create(&graph);
    graph->swap(queue->captured);
    *out = graph;
    return SUCCESS;
END
CU(cuStreamWaitEvent, void* stream, void* event, unsigned)
    if (!handles.count(event)) return INVALID_HANDLE;
    const Point point = *static_cast<Point*>(event);
    return push(stream, [=] { if (point.queue) drain(point.queue, point.number); });
END
CU(cuEventCreate, void** out, unsigned)
    Point* made = nullptr;
    const int status = create(&made);
    *out = made;
    return status;
END
CU(cuEventDestroy, void* event) return destroy(event); END
CU(cuEventRecord, void* event, void* stream)
    Queue* queue = queue_of(stream);
    if (!queue || !handles.count(event)) return INVALID_HANDLE;
    *static_cast<Point*>(event) = {queue, queue->queued};
    return SUCCESS;
END
CU(cuEventSynchronize, void* event)
    const Point point = *static_cast<Point*>(event);
    if (point.queue) drain(point.queue, point.number);
    return SUCCESS;
END
CU(cuEventElapsedTime, float* out, void*, void*) *out = 1.5f; return SUCCESS; END

CU(cuGraphInstantiate, void** out, void* graph, unsigned long long)
    Graph* made = nullptr;
    const int status = create(&made);
    if (!status) *made = *static_cast<Graph*>(graph);
    *out = made;
    return status;
END
extern "C" int cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long flags) {
    return cuGraphInstantiate(out, graph, flags);
}
CU(cuGraphDestroy, void* graph) return destroy(graph); END
CU(cuGraphExecDestroy, void* graph) return destroy(graph); END
CU(cuGraphLaunch, void* graph, void* stream)
    if (!handles.count(graph)) return INVALID_HANDLE;
    for (const Work& work : *static_cast<Graph*>(graph))
        if (const int status = push(stream, work)) return status;
    return SUCCESS;
END

CU(cuModuleLoadData, void** out, const void* image)
    if (captures) return UNSUPPORTED_IN_CAPTURE;
    if (number("FAKE_CUDA_REFUSES", 0)) return NO_BINARY;
    // An ELF file (cubin) or a fat binary.
    const auto* data = static_cast<const unsigned char*>(image);
    if (std::memcmp(data, "\x7f" "ELF", 4) && std::memcmp(data, "\x50\xed\x55\xba", 4))
        return INVALID_IMAGE;
    Code* made = nullptr;
    const int status = create(&made);
    *out = made;
    return status;
END
CU(cuModuleUnload, void* module) drain_all(); return destroy(module); END
CU(cuModuleGetFunction, void** out, void* module, const char* name)
    if (!handles.count(module)) return INVALID_HANDLE;
    static std::map<std::string, std::string> names;
    if (!dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name)) return NOT_FOUND;
    *out = &names.emplace(name, name).first->second;
    return SUCCESS;
END
CU(cuLaunchKernel, void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
   unsigned by, unsigned bz, unsigned shared_bytes, void* stream, void** parameters, void** extra)
    if (by != 1 || bz != 1 || extra || shared_bytes > 48 * 1024 || bx > 1024) return INVALID_VALUE;
    const std::string name = *static_cast<std::string*>(function);
    const std::string argument(static_cast<const char*>(parameters[0]), size_of(kind_of(name)));
    return push(stream, [=] {
        const unsigned grid[3] = {gx, gy, gz};
        std::string own = argument;
        run(name.c_str(), own.data(), grid, bx, shared_bytes);
    });
END

extern "C" int cuGetProcAddress_v2(const char* name, void** out, int, uint64_t, int* status) {
    static void* const self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *out = dlsym(self, name);
    if (status) *status = *out ? 0 : 1;
    return *out ? SUCCESS : NOT_FOUND;
}
extern "C" int cuGetProcAddress(const char* name, void** out, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}

// NVRTC asks for the driver's private tables where it finds a driver.
extern "C" int cuGetExportTable(const void** out, const void*) {
    *out = nullptr;
    return NOT_FOUND;
}

// For the tests: the calls since the last time, one a line; what is allocated or open.
extern "C" int fake_calls(char* out, int size) {
    std::string text;
    for (const std::string& call : calls) text += call + "\n";
    calls.clear();
    std::snprintf(out, static_cast<size_t>(size), "%s", text.c_str());
    return static_cast<int>(text.size());
}
extern "C" int fake_live() {
    drain_all();
    return static_cast<int>(device_memory.size() + host_memory.size() + handles.size());
}
extern "C" int fake_owners() { return primary[0]; }
