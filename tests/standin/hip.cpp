// A stand-in for libamdhip64, AMD's HIP runtime, on machines without a GPU: see README.md.
//
// The signatures are those of hip_runtime_api.h, with int for enumerations and void * for handles.
#include <set>
#include <utility>

#include "call.h"
#include "copy.h"
#include "module.h"

// What ROCm 5.2.3 says.
#define VERSION 50221153

struct Event {
    int device;
    bool timed;
    std::shared_ptr<Point> recorded;
};

static std::set<Event *> &events = *new std::set<Event *>;

// ---- Devices. -----------------------------------------------------------------------------------------------------

static size_t memory_limit() { return strtoull(environment("STANDIN_MEMORY", "1073741824").c_str(), nullptr, 10); }

API int hipGetDeviceCount(int *count) {
    return call(__func__, [=]() -> int {
        if (!count) return InvalidValue;
        *count = count_devices() ? 0 : (int)devices.size();
        return count_devices();
    });
}

API int hipSetDevice(int device) {
    return call(__func__, [=]() -> int {
        if (device < 0 || device >= (int)devices.size()) return InvalidDevice;
        current_device = device;
        return count_devices();
    });
}

API int hipGetDevice(int *device) {
    return call(__func__, [=]() -> int {
        if (!device) return InvalidValue;
        *device = current_device;
        return count_devices();
    });
}

API int hipDeviceGetName(char *name, int length, int device) {
    return call(__func__, [=]() -> int {
        if (int status = check_device(device)) return status;
        if (!name || length <= 0) return InvalidValue;
        snprintf(name, (size_t)length, "Stand-in %s", devices[device].target.c_str());
        return Success;
    });
}

API int hipDeviceGetAttribute(int *value, int attribute, int device) {
    return call(__func__, [=]() -> int {
        if (int status = check_device(device)) return status;
        if (!value) return InvalidValue;
        // The numbers are ROCm 5's.
        switch (attribute) {
        case 23: *value = devices[device].major(); return Success;
        case 56: *value = MAX_THREADS; return Success;
        case 61: *value = devices[device].minor(); return Success;
        case 63: *value = PROCESSORS; return Success;
        case 67: *value = 3 + device; return Success;  // PCI bus
        case 68: *value = 0; return Success;           // PCI device
        case 69: *value = 0; return Success;           // PCI domain
        case 74: *value = SHARED_MEMORY; return Success;
        case 87: *value = (int)devices[device].wave; return Success;
        default: return InvalidValue;
        }
    });
}

template <class Properties>
static int get_properties(const char *name, Properties *properties, int device) {
    return call(name, [=]() -> int {
        if (!properties) return InvalidValue;
        if (int status = check_device(device)) return status;
        fill_properties(properties, devices[device], memory_limit());
        return Success;
    });
}

API int hipGetDeviceProperties(Properties5 *properties, int device) {
    return get_properties(__func__, properties, device);
}

// ROCm 5 has no such function.
#ifndef STANDIN_ROCM5
API int hipGetDevicePropertiesR0600(Properties6 *properties, int device) {
    return get_properties(__func__, properties, device);
}
#endif

API int hipDeviceTotalMem(size_t *bytes, int device) {
    return call(__func__, [=]() -> int {
        if (int status = check_device(device)) return status;
        if (!bytes) return InvalidValue;
        *bytes = memory_limit();
        return Success;
    });
}

API int hipMemGetInfo(size_t *free, size_t *total) {
    return device_call(__func__, [=]() -> int {
        if (!free || !total) return InvalidValue;
        *total = memory_limit();
        *free = *total - memory.used(current_device);
        return Success;
    });
}

static int get_version(const char *name, int *version) {
    return call(name, [=]() -> int {
        if (!version) return InvalidValue;
        *version = VERSION;
        return Success;
    });
}
API int hipDriverGetVersion(int *version) { return get_version(__func__, version); }
API int hipRuntimeGetVersion(int *version) { return get_version(__func__, version); }

API const char *hipGetErrorName(int code) { return code_name(code); }
API const char *hipGetErrorString(int code) { return code_name(code); }
API int hipGetLastError() { return std::exchange(last_error, Success); }

// ---- Memory. ------------------------------------------------------------------------------------------------------

API int hipMalloc(void **p, size_t bytes) {
    return device_call(__func__, [=]() -> int {
        if (!p) return InvalidValue;
        *p = nullptr;
        if (!bytes) return Success;
        size_t rest = memory_limit() - memory.used(current_device);
        if (bytes <= rest) *p = memory.allocate(bytes, current_device);
        return *p ? Success : OutOfMemory;
    });
}

API int hipFree(void *p) {
    return call(__func__, [=]() -> int {
        if (int status = check_device(current_device)) return status;
        if (!p) return Success;
        Region *region = memory.find(p);
        if (!region || !region->live || region->device == PINNED || region->start != p) return InvalidValue;
        scheduler.finish_device(region->device);
        memory.release(*region);
        return usable(region->device);
    });
}

API int hipHostMalloc(void **p, size_t bytes, unsigned flags) {
    return device_call(__func__, [=]() -> int {
        // Portable, mapped, write-combined; NUMA, coherent, non-coherent.
        if (!p || flags & ~0xe0000007u) return InvalidValue;
        *p = bytes ? memory.allocate(bytes, PINNED) : nullptr;
        return *p || !bytes ? Success : OutOfMemory;
    });
}

// Does not wait: HIP does not promise it. A copy that comes later finds its memory gone, and says so.
API int hipHostFree(void *p) {
    return call(__func__, [=]() -> int {
        if (int status = check_device(current_device)) return status;
        if (!p) return Success;
        Region *region = memory.find(p);
        if (!region || !region->live || region->device != PINNED || region->start != p) return InvalidValue;
        memory.release(*region);
        return usable(current_device);
    });
}

API int hipMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    return copy(__func__, to, from, bytes, kind, stream);
}
API int hipMemcpyHtoDAsync(void *to, void *from, size_t bytes, void *stream) {
    return copy(__func__, to, from, bytes, HOST_TO_DEVICE, stream);
}
API int hipMemcpyDtoHAsync(void *to, void *from, size_t bytes, void *stream) {
    return copy(__func__, to, from, bytes, DEVICE_TO_HOST, stream);
}

API int hipMemsetAsync(void *to, int value, size_t bytes, void *stream) {
    const char *name = __func__;
    return stream_call(name, stream, [=](const QueuePointer &queue) -> int {
        if (!bytes) return Success;
        if (!End(to).fits(bytes, true, queue->device)) return InvalidValue;
        scheduler.add(queue, name, [=] { memset(to, value, bytes); });
        return Success;
    });
}

// ---- Streams and events. ------------------------------------------------------------------------------------------

API int hipStreamCreateWithFlags(void **stream, unsigned flags) {
    return device_call(__func__, [=]() -> int {
        if (!stream || flags > 1) return InvalidValue;
        *stream = scheduler.create(current_device, false, !flags).get();
        return Success;
    });
}

// Does not wait either; what is queued is still executed, some time.
API int hipStreamDestroy(void *stream) {
    return call(__func__, [=]() -> int {
        for (const QueuePointer &queue : scheduler.queues) {
            if (queue.get() != stream || !queue->open || queue->null) continue;
            queue->open = false;
            return usable(queue->device);
        }
        return InvalidHandle;
    });
}

API int hipStreamSynchronize(void *stream) {
    return stream_call(__func__, stream, [](const QueuePointer &queue) -> int {
        scheduler.finish(queue);
        return devices[queue->device].lost;
    });
}

API int hipDeviceSynchronize() {
    return device_call(__func__, [] {
        scheduler.finish_device(current_device);
        return devices[current_device].lost;
    });
}

API int hipStreamWaitEvent(void *stream, void *event, unsigned flags) {
    const char *name = __func__;
    return stream_call(name, stream, [=](const QueuePointer &queue) -> int {
        if (flags) return InvalidValue;
        if (!events.count((Event *)event)) return InvalidHandle;
        std::shared_ptr<Point> after = ((Event *)event)->recorded;
        if (after) scheduler.add(queue, name, nullptr).after = after;
        return Success;
    });
}

API int hipEventCreateWithFlags(void **event, unsigned flags) {
    return device_call(__func__, [=]() -> int {
        // Blocking, without time, interprocess; release to device, to system.
        if (!event || flags & ~0xc0000007u) return InvalidValue;
        *event = *events.insert(new Event{current_device, !(flags & 2), nullptr}).first;
        return Success;
    });
}

API int hipEventDestroy(void *event) {
    return call(__func__, [=]() -> int {
        if (!events.erase((Event *)event)) return InvalidHandle;
        int device = ((Event *)event)->device;
        delete (Event *)event;
        return usable(device);
    });
}

API int hipEventRecord(void *event, void *stream) {
    const char *name = __func__;
    return stream_call(name, stream, [=](const QueuePointer &queue) -> int {
        if (!events.count((Event *)event) || ((Event *)event)->device != queue->device) return InvalidHandle;
        auto point = std::make_shared<Point>(Point{queue, scheduler.operations, false, {}});
        scheduler.add(queue, name, nullptr).reaches = point;
        ((Event *)event)->recorded = point;
        return Success;
    });
}

template <class Body>
static int event_call(const char *name, void *event, Body body) {
    return call(name, [&]() -> int {
        if (!events.count((Event *)event)) return InvalidHandle;
        int status = usable(((Event *)event)->device);
        return status ? status : body(*(Event *)event);
    });
}

API int hipEventSynchronize(void *event) {
    return event_call(__func__, event, [](const Event &e) -> int {
        if (e.recorded) scheduler.run_until(e.recorded->queue, e.recorded->number + 1);
        return devices[e.device].lost;
    });
}

// Whoever asks again and again gets an answer in the end: each time the queue takes one step.
API int hipEventQuery(void *event) {
    return event_call(__func__, event, [](const Event &e) -> int {
        if (!e.recorded || e.recorded->reached) return Success;
        scheduler.step(e.recorded->queue);
        return NotReady;
    });
}

API int hipEventElapsedTime(float *milliseconds, void *start, void *stop) {
    return event_call(__func__, start, [=](const Event &a) -> int {
        if (!events.count((Event *)stop)) return InvalidHandle;
        const Event &b = *(Event *)stop;
        if (!milliseconds) return InvalidValue;
        if (!a.timed || !b.timed || !a.recorded || !b.recorded) return InvalidHandle;
        if (!a.recorded->reached || !b.recorded->reached) return NotReady;
        *milliseconds = std::chrono::duration<float, std::milli>(b.recorded->time - a.recorded->time).count();
        return Success;
    });
}

// ---- Kernels. -----------------------------------------------------------------------------------------------------

API int hipModuleLoadData(void **module, const void *image) {
    return device_call(__func__, [=]() -> int {
        if (!module || !image) return InvalidValue;
        return load_module((Module **)module, image, current_device);
    });
}

API int hipModuleUnload(void *module) {
    return call(__func__, [=]() -> int {
        Module *found = find_module(module);
        if (!found) return InvalidHandle;
        int device = found->device;
        scheduler.finish_device(device);
        unload_module(found);
        return usable(device);
    });
}

API int hipModuleGetFunction(void **function, void *module, const char *name) {
    return device_call(__func__, [=]() -> int {
        Module *found = find_module(module);
        if (!found) return InvalidHandle;
        if (!function || !name) return InvalidValue;
        for (Function &f : found->functions)
            if (!strcmp(f.kernel->name, name)) return *function = &f, Success;
        return NotFound;
    });
}

API int hipModuleLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters,
                              void **extra) {
    return stream_call(__func__, stream, [=](const QueuePointer &queue) -> int {
        const Function *found = find_function(function);
        if (!found || found->module->device != current_device || queue->device != current_device) return InvalidHandle;
        Launch launch = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, parameters, extra};
        return launch_kernel(*found, queue, launch);
    });
}

// ---- For tests. ---------------------------------------------------------------------------------------------------

// What was created and is not gone: allocations, pinned ones too, streams, events and modules.
API int standin_live() {
    Locked locked(gate.lock);
    size_t live = events.size() + modules.size();
    for (auto &[key, region] : memory.regions) live += region.live;
    for (const QueuePointer &queue : scheduler.queues) live += queue->open && !queue->null;
    return (int)live;
}

// Forgets calls and faults, and gives lost devices back. What is queued stays.
API void standin_reset() {
    Locked locked(gate.lock);
    gate.calls.clear();
    gate.faults.clear();
    for (Device &device : devices) device.lost = Success;
}
