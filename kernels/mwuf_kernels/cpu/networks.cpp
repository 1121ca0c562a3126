// A two-layer network over rows, forward and back: see meta_networks.py.

#include "rows.h"

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
    for (long start = 0; start < n; start += BLOCK) {
        const long rows = n - start < BLOCK ? n - start : BLOCK;
        float* of_hidden = hidden + start * hidden_width;
        product<Then::Relu>(rows, hidden_width, inputs, {x + start * inputs, inputs, 1}, {first, hidden_width, 1},
                            {b1, 0, 1}, NONE, of_hidden, hidden_width);
        product<Then::Nothing>(rows, dim, hidden_width, {of_hidden, hidden_width, 1}, {second, dim, 1}, {bias, 0, 1}, NONE,
                               out + start * dim, dim);
    }
}

// Gradients of the weights, of out's gradient d_out [n, dim]; d_hidden [n, hidden] is that of the first layer's product.
void mwuf_network_back(long n, long inputs, long hidden_width, long dim, const float* x, const float* w2,
                       const float* hidden, const float* d_out, float* d_hidden, float* d_w1, float* d_b1, float* d_w2,
                       float* d_b2) {
    std::memset(d_w1, 0, hidden_width * inputs * sizeof(float));
    std::memset(d_b1, 0, hidden_width * sizeof(float));
    std::memset(d_w2, 0, dim * hidden_width * sizeof(float));
    std::memset(d_b2, 0, dim * sizeof(float));
    for (long start = 0; start < n; start += BLOCK) {
        const long rows = n - start < BLOCK ? n - start : BLOCK;
        const float *of_hidden = hidden + start * hidden_width, *d = d_out + start * dim;
        float* d_layer = d_hidden + start * hidden_width;
        product<Then::ReluBack>(rows, hidden_width, dim, {d, dim, 1}, {w2, hidden_width, 1}, NONE,
                                {of_hidden, hidden_width, 1}, d_layer, hidden_width);
        product<Then::Nothing>(dim, hidden_width, rows, {d, 1, dim}, {of_hidden, hidden_width, 1},
                               {d_w2, hidden_width, 1}, NONE, d_w2, hidden_width);
        product<Then::Nothing>(hidden_width, inputs, rows, {d_layer, 1, hidden_width}, {x + start * inputs, inputs, 1},
                               {d_w1, inputs, 1}, NONE, d_w1, inputs);
        for (long r = 0; r < rows; r++) {
            add_to(d_b1, d_layer + r * hidden_width, hidden_width);
            add_to(d_b2, d + r * dim, dim);
        }
    }
}

}  // extern "C"
