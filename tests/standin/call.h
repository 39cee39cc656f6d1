// What most functions of the API begin with: the gate, the device, the stream.
#pragma once
#include "device.h"
#include "gate.h"
#include "stream.h"

inline thread_local int current_device = 0;
inline thread_local int last_error = Success;

// Passes the gate and does what `body` says.
template <class Body>
inline int call(const char *name, Body body) {
    Locked locked(gate.lock);
    int status = standin_enter(name);
    if (!status) {
        scheduler.get_ahead();
        status = body();
    }
    if (status) last_error = status;
    return status;
}

inline int count_devices() {
    if (environment("STANDIN_DRIVER", "") == "old") return InsufficientDriver;
    return devices.empty() ? NoDevice : Success;
}

inline int check_device(int device) {
    if (int status = count_devices()) return status;
    return device < 0 || device >= (int)devices.size() ? InvalidDevice : Success;
}

// Once an operation has failed, every call on its device reports it.
inline int usable(int device) {
    if (int status = check_device(device)) return status;
    return devices[device].lost;
}

// The same for a call that works on the current device.
template <class Body>
inline int device_call(const char *name, Body body) {
    return call(name, [&]() -> int {
        int status = usable(current_device);
        return status ? status : body();
    });
}

// The same for a call on a stream; a null pointer is the current device's null stream.
template <class Body>
inline int stream_call(const char *name, void *stream, Body body) {
    return call(name, [&]() -> int {
        int status = check_device(current_device);
        if (status) return status;
        QueuePointer found;
        if (!stream) found = scheduler.null_queue(current_device);
        for (const QueuePointer &queue : scheduler.queues)
            if (queue.get() == stream && queue->open && !queue->null) found = queue;
        if (!found) return InvalidHandle;
        status = usable(found->device);
        return status ? status : body(found);
    });
}
