// AdamW (Loshchilov and Hutter 2019) over one parameter: see adam.py.

#include "pool.h"
#include "rows.h"

namespace {

void step(long n, float* __restrict parameter, const float* __restrict gradient, float* __restrict mean,
          float* __restrict square, float step_size, float root, float keep, float new_mean, float new_square, float eps) {
    for (long i = 0; i < n; i++) {
        const float g = gradient[i];
        mean[i] += new_mean * (g - mean[i]);
        square[i] += new_square * (g * g - square[i]);
        parameter[i] = keep * parameter[i] - step_size * mean[i] / (std::sqrt(square[i]) * root + eps);
    }
}

}  // namespace

extern "C" {

// Step t: `step_size` is the learning rate over 1 - beta_1^t, `root` 1 / sqrt(1 - beta_2^t), `keep` 1 - rate * decay,
// `new_mean` and `new_square` 1 - beta_1 and 1 - beta_2.
void mwuf_adam(long n, float* parameter, const float* gradient, float* mean, float* square, float step_size, float root,
               float keep, float new_mean, float new_square, float eps) {
    constexpr long CELLS = 1 << 13;  // of a task
    in_parallel((n + CELLS - 1) / CELLS, double(n), [&](long task) {
        const long at = task * CELLS;
        step(least(CELLS, n - at), parameter + at, gradient + at, mean + at, square + at, step_size, root, keep, new_mean,
             new_square, eps);
    });
}

}  // extern "C"
