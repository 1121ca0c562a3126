// AdamW (Loshchilov and Hutter 2019) over several parameters: see adam.py.

#include "pool.h"
#include "rows.h"

extern "C" {

// Step t of a parameter: `step_size` is the learning rate over 1 - beta_1^t, `root` 1 / sqrt(1 - beta_2^t), `keep`
// 1 - rate * decay, `new_mean` and `new_square` 1 - beta_1 and 1 - beta_2.
struct Update {
    long n;
    float step_size, root, keep, new_mean, new_square, eps;
    float* parameter;
    const float* gradient;
    float *mean, *square;
};

}  // extern "C"

namespace {

constexpr long CELLS = 1 << 13;  // of a task

long num_tasks(const Update& of) { return (of.n + CELLS - 1) / CELLS; }

void step(const Update& of, long begin, long end) {
    float *__restrict parameter = of.parameter, *__restrict mean = of.mean, *__restrict square = of.square;
    const float* __restrict gradient = of.gradient;
    const float step_size = of.step_size, root = of.root, keep = of.keep, new_mean = of.new_mean,
                new_square = of.new_square, eps = of.eps;
    for (long i = begin; i < end; i++) {
        const float g = gradient[i];
        mean[i] += new_mean * (g - mean[i]);
        square[i] += new_square * (g * g - square[i]);
        parameter[i] = keep * parameter[i] - step_size * mean[i] / (std::sqrt(square[i]) * root + eps);
    }
}

}  // namespace

extern "C" {

long mwuf_size_of_update() { return sizeof(Update); }

// One loop over all parameters, so that threads are woken once.
void mwuf_adam(long num, const Update* updates) {
    long tasks = 0, cells = 0;
    for (long i = 0; i < num; i++) tasks += num_tasks(updates[i]), cells += updates[i].n;
    in_parallel(tasks, double(cells), [&](long task) {
        const Update* of = updates;
        for (; task >= num_tasks(*of); of++) task -= num_tasks(*of);
        step(*of, task * CELLS, least((task + 1) * CELLS, of->n));
    });
}

}  // extern "C"
