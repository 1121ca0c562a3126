// A two-layer network over rows, forward and back: see meta_networks.py.

#include "partial_sums.h"
#include "pool.h"
#include "rows.h"

namespace {

double ns_of(long n, long inputs, long hidden, long dim) {
    return double(n) * (10 + double((inputs + dim) * hidden) / (2 * V));
}

}  // namespace

extern "C" {

// hidden [n, hidden] = relu(x w1^T + b1), out [n, dim] = hidden w2^T + b2 + plus.
void mwuf_network(long n, long inputs, long hidden_width, long dim, const float* x, const float* w1,
                  const float* b1, const float* w2, const float* b2, float plus, float* hidden, float* out) {
    std::vector<float> memory((inputs + dim) * hidden_width + dim);
    float *first = memory.data(), *second = first + inputs * hidden_width, *bias = second + dim * hidden_width;
    for (long h = 0; h < hidden_width; h++) {
        for (long i = 0; i < inputs; i++) first[i * hidden_width + h] = w1[h * inputs + i];
        for (long d = 0; d < dim; d++) second[h * dim + d] = w2[d * hidden_width + h];
    }
    for (long d = 0; d < dim; d++) bias[d] = b2[d] + plus;
    in_parallel((n + BLOCK - 1) / BLOCK, ns_of(n, inputs, hidden_width, dim), [&](long block) {
        const long start = block * BLOCK, rows = least(BLOCK, n - start);
        float* of_hidden = hidden + start * hidden_width;
        product<Then::Relu>(rows, hidden_width, inputs, {x + start * inputs, inputs, 1}, {first, hidden_width, 1},
                            {b1, 0, 1}, NONE, of_hidden, hidden_width);
        product<Then::Nothing>(rows, dim, hidden_width, {of_hidden, hidden_width, 1}, {second, dim, 1}, {bias, 0, 1}, NONE,
                               out + start * dim, dim);
    });
}

// Gradients of the weights, of out's gradient d_out [n, dim]; d_hidden [n, hidden] is that of the first layer's product.
void mwuf_network_back(long n, long inputs, long hidden_width, long dim, const float* x, const float* w2,
                       const float* hidden, const float* d_out, float* d_hidden, float* d_w1, float* d_b1, float* d_w2,
                       float* d_b2) {
    PartialSums sums(spans_of(n));
    const long at_w1 = sums.add(d_w1, hidden_width, inputs, inputs), at_b1 = sums.add(d_b1, hidden_width);
    const long at_w2 = sums.add(d_w2, dim, hidden_width, hidden_width), at_b2 = sums.add(d_b2, dim);
    sums.use(workspace<Kept::ForTheCall>(sums.floats()));
    in_parallel(spans_of(n), 2 * ns_of(n, inputs, hidden_width, dim), [&](long span) {
        float *own = sums.clear(span), *of_w1 = own + at_w1, *of_w2 = own + at_w2;
        const long stop = least((span + 1) * span_rows(n), n);
        for (long start = span * span_rows(n); start < stop; start += BLOCK) {
            const long rows = least(BLOCK, stop - start);
            const float *of_hidden = hidden + start * hidden_width, *d = d_out + start * dim;
            float* d_layer = d_hidden + start * hidden_width;
            product<Then::ReluBack>(rows, hidden_width, dim, {d, dim, 1}, {w2, hidden_width, 1}, NONE,
                                    {of_hidden, hidden_width, 1}, d_layer, hidden_width);
            product<Then::Nothing>(dim, hidden_width, rows, {d, 1, dim}, {of_hidden, hidden_width, 1},
                                   {of_w2, hidden_width, 1}, NONE, of_w2, hidden_width);
            product<Then::Nothing>(hidden_width, inputs, rows, {d_layer, 1, hidden_width}, {x + start * inputs, inputs, 1},
                                   {of_w1, inputs, 1}, NONE, of_w1, inputs);
            for (long r = 0; r < rows; r++) {
                add_to(own + at_b1, d_layer + r * hidden_width, hidden_width);
                add_to(own + at_b2, d + r * dim, dim);
            }
        }
    });
    add_up({&sums});
}

}  // extern "C"
