// Every entry of the API passes here: calls are counted, named, and made to fail where a test wants them to.
#pragma once
#include <stdint.h>

#include <deque>
#include <map>
#include <mutex>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

// Counts a call and notes its name. What it returns, if not 0, is the code with which the call must fail at once.
// Exported, since hipRTC is a library of its own and the count is one.
API int standin_enter(const char *name);

#ifndef STANDIN_HIPRTC

struct Gate {
    struct Fault {
        int code;
        bool later;  // when the operation that the call queues is executed
    };
    // One lock for everything. Whoever waits for the device holds it, and runs the kernels.
    std::recursive_mutex lock;
    std::deque<std::string> calls;  // since the last reset; elements stay where they are
    std::map<uint64_t, Fault> faults;
    int failure = 0;  // of what the call in progress queues
};

// Never destroyed, like all state here: the program may call until its last instruction.
inline Gate &gate = *new Gate;
typedef std::lock_guard<std::recursive_mutex> Locked;

API int standin_enter(const char *name) {
    Locked locked(gate.lock);
    auto fault = gate.faults.find(gate.calls.size());
    gate.calls.push_back(name);
    bool found = fault != gate.faults.end();
    gate.failure = found && fault->second.later ? fault->second.code : 0;
    return found && !fault->second.later ? fault->second.code : 0;
}

// The number of calls since the last reset, and what the one of that number (from 0) was.
API uint64_t standin_calls() {
    Locked locked(gate.lock);
    return gate.calls.size();
}
API const char *standin_call(uint64_t index) {
    Locked locked(gate.lock);
    return index < gate.calls.size() ? gate.calls[index].c_str() : nullptr;
}

// The call of that number will return `code` and do nothing.
API void standin_fail_at(uint64_t index, int code) {
    Locked locked(gate.lock);
    gate.faults[index] = {code, false};
}
// The operation that the call of that number queues will fail when it is executed, and its device is lost.
API void standin_fail_async(uint64_t index, int code) {
    Locked locked(gate.lock);
    gate.faults[index] = {code, true};
}

#endif
