// The threads of the loops: see pool.h.

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// How long the caller waits before it first looks whether others still run: longer than most tasks take.
constexpr std::chrono::microseconds FIRST_LOOK{50};

struct Job {
    void (*task)(void*, long);
    void* context;
    long n;
    const pthread_t caller = pthread_self();
    const int core = sched_getcpu();  // of the caller
    std::atomic<long> claimed{0}, from_the_back{0};
    long helpers = 0;  // threads that may still touch this job; under the pool's mutex

    cpu_set_t other_cores() const {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        pthread_getaffinity_np(caller, sizeof cores, &cores);
        CPU_CLR(core, &cores);
        return cores;
    }

    // The caller goes from the front and the others from the back, so that a step's next loop finds most rows of a
    // task in the cache of the core that does it.
    void work(bool helps) {
        for (long i = 0; claimed.fetch_add(1, std::memory_order_relaxed) < n; i++)
            task(context, helps ? n - 1 - from_the_back.fetch_add(1, std::memory_order_relaxed) : i);
    }
};

// A thread that helps; all but `thread` under the pool's mutex.
struct Helper {
    const pthread_t thread = pthread_self();
    bool works = false, is_moved = false;
    long seen_ns = -1;  // its processor time at the last look

    // Where it has a task and has not run since the last look, it gets this core, whose thread only waits for it.
    void look() {
        clockid_t clock;
        timespec time;
        if (!works || pthread_getcpuclockid(thread, &clock) || clock_gettime(clock, &time)) return;
        const long ns = time.tv_sec * 1000000000L + time.tv_nsec;
        if (ns == seen_ns) {
            cpu_set_t core;
            CPU_ZERO(&core);
            CPU_SET(sched_getcpu(), &core);
            is_moved = !pthread_setaffinity_np(thread, sizeof core, &core);
        }
        seen_ns = ns;
    }
};

// Never destroyed, and its threads are never joined: at the end of the process they sleep, and hold nothing.
struct Pool {
    std::mutex mutex;
    std::condition_variable wake, done;
    Job* job = nullptr;
    long serial = 0;  // of the job
    long sleeping = 0, wanted = 0, started = 0;
    std::vector<Helper*> helpers;
    std::atomic<bool> is_taken{false};  // one loop at a time; a second caller does its own alone

    // Two are woken by each that wakes, so that many are awake soon. The lock is given back first.
    void wake_two(const Job& of, std::unique_lock<std::mutex>& lock) {
        const long left = std::min(of.n - of.claimed.load(std::memory_order_relaxed), sleeping);
        lock.unlock();
        if (left > 0) wake.notify_one();
        if (left > 1) wake.notify_one();
    }

    void help(long number) {
        std::unique_lock<std::mutex> lock(mutex);
        Helper self;
        helpers.push_back(&self);
        long last = 0, left = 0;
        while (true) {
            sleeping++;
            wake.wait(lock, [&] { return number >= wanted || (job && serial != last); });
            sleeping--;
            if (number >= wanted) {
                started--;
                helpers.erase(std::find(helpers.begin(), helpers.end(), &self));
                return;
            }
            Job& mine = *job;
            // Where the other cores are busy the system wakes it on the caller's, which would stop. It leaves before it
            // claims a task, so nobody waits for it meanwhile.
            if (left != serial && (self.is_moved || sched_getcpu() == mine.core)) {
                left = serial;
                self.is_moved = false;
                const cpu_set_t cores = mine.other_cores();
                wake_two(mine, lock);
                pthread_setaffinity_np(self.thread, sizeof cores, &cores);  // fails where the caller has no other
                lock.lock();
                continue;
            }
            last = serial;
            mine.helpers++;
            self.works = true;
            wake_two(mine, lock);
            mine.work(true);
            lock.lock();
            self.works = false;
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
    job.work(false);
    lock.lock();
    p->job = nullptr;
    for (auto pause = FIRST_LOOK; !p->done.wait_for(lock, pause, [&] { return job.helpers == 0; }); pause *= 2)
        for (Helper* helper : p->helpers) helper->look();
    lock.unlock();
    p->is_taken.store(false);
}

extern "C" {

// How many threads a loop may use, the caller among them.
void mwuf_set_threads(long n) { allowed = std::max<long>(n, 1); }
long mwuf_threads() { return num_threads(); }

}  // extern "C"
