// Copies. Pinned host memory is read and written when a copy is executed, other host memory before the call returns:
// HIP promises no more of the one and no less of the other.
#pragma once
#include <utility>
#include <vector>

#include "call.h"
#include "memory.h"

enum CopyKind { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT };

// One end of a copy. `region` is null for ordinary memory of the host.
struct End {
    void *p;
    Region *region;

    explicit End(const void *p) : p((void *)p), region(memory.find(p)) {}
    bool is_device() const { return region && region->device != PINNED; }
    bool fits(size_t bytes, bool on_device, int device) const {
        if (on_device != is_device()) return false;
        return p && (!region || (region->holds(p, bytes) && (!on_device || region->device == device)));
    }
    void must_live(size_t bytes, const char *name) const {
        if (region && !region->holds(p, bytes)) die("%s: its memory was freed before it was executed", name);
    }
};

inline int copy(const char *name, void *to, const void *from, size_t bytes, int kind, void *stream) {
    return stream_call(name, stream, [=](const QueuePointer &queue) -> int {
        if (!bytes) return Success;
        End destination(to), source(from);
        if (kind < HOST_TO_HOST || kind > DEFAULT) return InvalidValue;
        bool to_device = kind == DEFAULT ? destination.is_device() : kind & HOST_TO_DEVICE;
        bool from_device = kind == DEFAULT ? source.is_device() : kind & DEVICE_TO_HOST;
        if (!destination.fits(bytes, to_device, queue->device)) return InvalidValue;
        if (!source.fits(bytes, from_device, queue->device)) return InvalidValue;
        std::vector<char> now;
        if (!source.region) {
            // Memory that is not pinned is read before the call returns.
            now.assign((const char *)from, (const char *)from + bytes);
        } else if (source.region->device == PINNED) {
            source.region->readers++;
        }
        // Nobody may rely on what pinned memory holds until the copy is done.
        if (destination.region && !to_device && !destination.region->readers) memset(to, GARBAGE, bytes);
        uint64_t number = scheduler.operations;
        scheduler.add(queue, name, [=, now = std::move(now)] {
            destination.must_live(bytes, name);
            source.must_live(bytes, name);
            if (source.region && source.region->device == PINNED) source.region->readers--;
            memmove(to, source.region ? from : now.data(), bytes);
        });
        // Memory that is not pinned is written before the call returns.
        if (!destination.region) scheduler.run_until(queue, number + 1);
        return devices[queue->device].lost;
    });
}
