// Threads for the loops: tasks 0..n-1 of a loop are claimed one by one, by the caller and by threads that else sleep.
//
// Which thread does a task is left to chance, so a task writes only what is its own, and sums over tasks are made from
// what each has left, in their order: a result has the same bits for any number of threads. Nobody spins, and nobody
// waits for a thread that has not claimed a task. Where other processes have the cores, the threads keep off the
// caller's, and one that loses its own with a task gets the caller's as soon as that one waits.

#pragma once

#include <utility>

// Runs task(context, 0), ..., task(context, n - 1) and returns when all are done; see pool.cpp.
void run_tasks(long n, void (*task)(void*, long), void* context);

// How many threads a loop may use, the caller among them.
long num_threads();

// Below so much work, in nanoseconds of one core, waking a thread takes longer than it gains. Steps of 2,048 rows on two
// threads take 1.05 to 1.08 times as long with 30e3, and no less time with 150e3 or 300e3.
constexpr double LEAST_NS = 90e3;

// Whether work of so many nanoseconds of one core is shared out.
inline bool worth_threads(double ns) { return ns >= LEAST_NS && num_threads() > 1; }

// body(task) for tasks 0..n-1 in any order, `ns` being about what all of them take on one core. No body may throw.
template <typename Body>
inline void in_parallel(long n, double ns, Body&& body) {
    if (n < 2 || !worth_threads(ns)) {
        for (long task = 0; task < n; task++) body(task);
        return;
    }
    run_tasks(n, [](void* context, long task) { (*static_cast<Body*>(context))(task); }, &body);
}
