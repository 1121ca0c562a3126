// The threads of the loops: see pool.h.

#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

struct Job {
    void (*task)(void*, long);
    void* context;
    long n;
    std::atomic<long> next{0};
    long helpers = 0;  // threads that may still touch this job; under the pool's mutex

    void work() {
        for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) task(context, i);
    }
};

// Never destroyed, and its threads are never joined: at the end of the process they sleep, and hold nothing.
struct Pool {
    std::mutex mutex;
    std::condition_variable wake, done;
    Job* job = nullptr;
    long serial = 0;  // of the job
    long sleeping = 0, wanted = 0, started = 0;
    std::atomic<bool> is_taken{false};  // one loop at a time; a second caller does its own alone

    // Two are woken by each that wakes, so that many are awake soon. The lock is given back first.
    void wake_two(const Job& of, std::unique_lock<std::mutex>& lock) {
        const long left = std::min(of.n - of.next.load(std::memory_order_relaxed), sleeping);
        lock.unlock();
        if (left > 0) wake.notify_one();
        if (left > 1) wake.notify_one();
    }

    void help(long number) {
        std::unique_lock<std::mutex> lock(mutex);
        long last = 0;
        while (true) {
            sleeping++;
            wake.wait(lock, [&] { return number >= wanted || (job && serial != last); });
            sleeping--;
            if (number >= wanted) {
                started--;
                return;
            }
            Job& mine = *job;
            last = serial;
            mine.helpers++;
            wake_two(mine, lock);
            mine.work();
            lock.lock();
            if (--mine.helpers == 0) done.notify_one();
        }
    }

    // So many threads; returns how many there are, fewer where the system gives no more.
    long want(long number) {
        wanted = number;
        wake.notify_all();  // some may have to go
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the main thread's
        try {
            for (; started < wanted; started++) std::thread(&Pool::help, this, started).detach();
        } catch (const std::system_error&) {
            wanted = started;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return wanted;
    }
};

std::atomic<long> allowed{1};
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
    Pool* found = pool.load();
    if (found) return *found;
    // A child of fork has none of its parent's threads, and maybe locked mutexes: it gets a pool of its own.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    (void)registered;
    Pool* made = new Pool;
    if (pool.compare_exchange_strong(found, made)) return *made;
    delete made;
    return *found;
}

}  // namespace

long num_threads() { return allowed.load(std::memory_order_relaxed); }

void run_tasks(long n, void (*task)(void*, long), void* context) {
    const long helpers = allowed - 1;
    Pool* const p = helpers > 0 ? &the_pool() : nullptr;
    if (!p || p->is_taken.exchange(true)) {
        for (long i = 0; i < n; i++) task(context, i);
        return;
    }
    Job job{task, context, n};
    std::unique_lock<std::mutex> lock(p->mutex);
    if (p->wanted != helpers || p->started < helpers) allowed = p->want(helpers) + 1;
    p->job = &job;
    p->serial++;
    p->wake_two(job, lock);
    job.work();
    lock.lock();
    p->job = nullptr;
    p->done.wait(lock, [&] { return job.helpers == 0; });
    lock.unlock();
    p->is_taken.store(false);
}

extern "C" {

// How many threads a loop may use, the caller among them.
void mwuf_set_threads(long n) { allowed = std::max<long>(n, 1); }
long mwuf_threads() { return num_threads(); }

}  // extern "C"
