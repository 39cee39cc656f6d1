// Streams that put everything off. An operation waits in its queue until somebody synchronises, so a program that
// forgets to synchronise sees that nothing has happened. With STANDIN_SEED some of it happens early.
#pragma once
#include <stdint.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "device.h"
#include "gate.h"
#include "memory.h"

inline std::vector<Device> &devices = *new std::vector<Device>(listed_devices());

struct Queue;

// A point in a queue, and whether it has been reached: what an event stands for after it was recorded.
struct Point {
    std::shared_ptr<Queue> queue;
    uint64_t number;
    bool reached;
    std::chrono::steady_clock::time_point time;
};

struct Operation {
    uint64_t number;  // operations of all queues are numbered in the order of the calls
    int failure;
    std::string name;
    std::function<void()> run;
    std::shared_ptr<Point> after, reaches;
};

struct Queue {
    int device;
    bool null, blocking;
    bool open = true;  // whether the program still has a handle
    std::deque<Operation> operations;
};
typedef std::shared_ptr<Queue> QueuePointer;

struct Scheduler {
    // Destroyed streams stay until they have run dry.
    std::vector<QueuePointer> queues;
    uint64_t operations = 0;
    uint64_t random;
    bool early;

    Scheduler() {
        uint64_t seed = strtoull(environment("STANDIN_SEED", "0").c_str(), nullptr, 10);
        early = seed != 0;
        random = seed * 0x9E3779B97F4A7C15ull + 1;
    }

    // xorshift64* (Vigna, 2016).
    uint64_t draw(uint64_t below) {
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        return (random * 0x2545F4914F6CDD1Dull >> 33) % below;
    }

    QueuePointer create(int device, bool null, bool blocking) {
        queues.push_back(std::make_shared<Queue>(Queue{device, null, blocking, true, {}}));
        return queues.back();
    }

    QueuePointer null_queue(int device) {
        for (const QueuePointer &queue : queues)
            if (queue->null && queue->device == device) return queue;
        return create(device, true, true);
    }

    Operation &add(const QueuePointer &queue, const std::string &name, std::function<void()> run) {
        queue->operations.push_back({operations++, gate.failure, name, std::move(run), nullptr, nullptr});
        return queue->operations.back();
    }

    // Executes the first operation of a queue, after all that must precede it. Whatever that is has a lower number.
    void step(const QueuePointer &queue) {
        uint64_t number = queue->operations.front().number;
        std::shared_ptr<Point> after = queue->operations.front().after;
        if (after && !after->reached) run_until(after->queue, after->number + 1);
        // The null stream and the blocking streams wait for each other.
        for (size_t i = 0; queue->blocking && i < queues.size(); i++) {
            QueuePointer other = queues[i];
            bool waits = other->blocking && other->device == queue->device && (other->null || queue->null);
            if (waits && other != queue) run_until(other, number);
        }
        Operation operation = std::move(queue->operations.front());
        queue->operations.pop_front();
        Device &device = devices[queue->device];
        if (!device.lost) device.lost = operation.failure;
        if (!device.lost && operation.run) {
            Access access(queue->device, operation.name.c_str());
            operation.run();
        }
        if (operation.reaches) {
            operation.reaches->reached = true;
            operation.reaches->time = std::chrono::steady_clock::now();
        }
    }

    // Executes what comes before operation `number`.
    void run_until(const QueuePointer &queue, uint64_t number) {
        while (!queue->operations.empty() && queue->operations.front().number < number) step(queue);
    }

    void finish(const QueuePointer &queue) {
        run_until(queue, UINT64_MAX);
        // Whoever waits for the null stream waits for those that it waits for.
        for (size_t i = 0; queue->null && i < queues.size(); i++)
            if (queues[i]->blocking && queues[i]->device == queue->device)
                run_until(QueuePointer(queues[i]), UINT64_MAX);
    }

    // A queue of the device (or of any, -1) where something waits.
    QueuePointer any_waiting(int device) {
        std::vector<QueuePointer> waiting;
        for (const QueuePointer &queue : queues)
            if (!queue->operations.empty() && (device < 0 || queue->device == device)) waiting.push_back(queue);
        return waiting.empty() ? nullptr : waiting[draw(waiting.size())];
    }

    void finish_device(int device) {
        while (QueuePointer queue = any_waiting(device)) step(queue);
    }

    // Now and then, between calls, a queue gets ahead.
    void get_ahead() {
        for (size_t i = queues.size(); i--;)
            if (!queues[i]->open && queues[i]->operations.empty()) queues.erase(queues.begin() + (ptrdiff_t)i);
        if (!early || draw(4)) return;
        if (QueuePointer queue = any_waiting(-1))
            for (uint64_t steps = 1 + draw(4); steps-- && !queue->operations.empty();) step(queue);
    }
};

inline Scheduler &scheduler = *new Scheduler;
