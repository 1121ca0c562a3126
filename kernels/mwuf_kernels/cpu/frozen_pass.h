// What all frozen heads share: see frozen_rows.py.

#pragma once

#include "rows.h"

extern "C" {

// A frozen head: see mwuf_kernels/frozen_rows.py. Widths are padded with zeros to multiples of 16.
struct Head {
    long dim, inputs, padded_inputs, hidden, interactions, depth;  // depth: hidden layers
    long item_fields, user_fields;                                 // of which parts have the embeddings; else 0
    long fields, neurons;                                          // of which parts have the logarithms; else 0
    float smallest;                                                // of an absolute value: see powers.h
    const long* widths;                                            // [depth], padded
    const float* const* weights;     // [depth]: [in, out] of each hidden layer; of the first, the item's rows [inputs, out]
    const float* const* transposed;  // the same [out, in]
    const float* const* biases;      // [depth]; the first is read with neurons only, else it is in the parts
    const float* out;                // [last width]
    const float* linear;             // [padded_inputs], zeros behind dim
    const float* crossed;            // the first layer's rows of item fields times user fields [item * user, widths[0]]
    const float *powers, *power_bias;  // of the neurons [fields, neurons], [neurons]
};

}  // extern "C"

namespace {

// The gradient of x where a logit of slope `slope` is x . out and x came from a ReLU.
void slope_back(float* __restrict d, float slope, const float* __restrict out, const float* __restrict x, long n) {
    for (long i = 0; i < n; i++) d[i] = x[i] <= 0 ? 0 : slope * out[i];
}

// Binary cross entropies of V logits, and their slopes.
inline Vec losses_of(Vec logit, Vec label, Vec* slope) {
    const Vec size = logit < 0 ? -logit : logit;
    const Vec e = exp_of_negative(-size);
    const Vec likely = 1 / (1 + e), unlikely = e * likely;
    // probability - label, without taking nearly equal numbers from each other.
    *slope = (logit < 0 ? unlikely : likely) * (1 - label) - (logit < 0 ? likely : unlikely) * label;
    // log(1 + e) = 2 atanh(z) for z = e / (2 + e) <= 1/3, to z^15 / 15.
    const Vec z = e / (2 + e), square = z * z;
    Vec sum = Vec{} + 1.0f / 15;
    for (float c : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f}) sum = sum * square + c;
    return (logit > 0 ? logit : Vec{}) - logit * label + 2 * z * sum;
}


// Rows of a batch, of which a block is computed at a time.
struct Rows {
    const Head* head;
    long n;
    const float* parts;
    long parts_step;
    const int64_t *first, *second;
    long passes;
    const float* items;
    long item_rows;
    const int64_t* index;
    const float *labels, *weights;
    float scale;
    float* logits;

    // About the nanoseconds of all rows, on one core.
    double ns() const {
        double cells = 4.0 * head->dim;
        for (long l = 0; l < head->depth; l++) cells += double(head->widths[l]) * (l ? head->widths[l - 1] : head->inputs);
        cells += double(head->item_fields * head->user_fields) * (head->depth ? head->widths[0] : 0);
        cells += double(head->neurons * head->dim) * double(head->fields + 10);
        return double(n) * double(passes) * (20 + cells * (labels ? 2 : 1) / (2 * V));
    }

    long widest() const {
        long width = 16;
        for (long l = 0; l < head->depth; l++) width = head->widths[l] > width ? head->widths[l] : width;
        return width;
    }
    long all_widths() const {
        long all = 0;
        for (long l = 0; l < head->depth; l++) all += head->widths[l];
        return all;
    }
    long last_width() const { return head->depth ? head->widths[head->depth - 1] : 0; }

    // From the first layer's output x [BLOCK, widths[0]] through the others, each behind the one before; the last one's.
    float* through_layers(float* x) const {
        for (long l = 1; l < head->depth; l++) {
            const long in = head->widths[l - 1], out = head->widths[l];
            float* y = x + BLOCK * in;
            product<Then::Relu>(BLOCK, out, in, {x, in, 1}, {head->weights[l], out, 1}, {head->biases[l], 0, 1}, NONE, y, out);
            x = y;
        }
        return x;
    }

    // Adds a block's weighted cross entropies to loss; its logits' slopes. label and weight are room for BLOCK each.
    void slopes(long start, long rows, const float* logit, float* label, float* weight, float* slope, double* loss) const {
        std::memset(weight, 0, BLOCK * sizeof(float));  // of the rows behind the last
        std::memset(label, 0, BLOCK * sizeof(float));
        std::memcpy(label, labels + start, rows * sizeof(float));
        for (long r = 0; r < rows; r++) weight[r] = weights ? weights[start + r] : 1.0f;
        for (long r = 0; r < BLOCK; r += V) {
            Vec tilt;
            const Vec found = load(weight + r) * losses_of(load(logit + r), load(label + r), &tilt);
            store(slope + r, load(weight + r) * scale * tilt);
            for (long lane = 0; lane < V; lane++) *loss += double(found[lane]);
        }
    }

    // The same backwards, from the last layer's output x: the gradient of the first layer's product, in one of d, d_next.
    float* back_through_layers(float* x, const float* slope, float* d, float* d_next) const {
        const long last = last_width();
        for (long r = 0; r < BLOCK; r++) slope_back(d + r * last, slope[r], head->out, x + r * last, last);
        for (long l = head->depth - 1; l > 0; l--) {
            const long in = head->widths[l - 1], out = head->widths[l];
            x -= BLOCK * in;
            product<Then::ReluBack>(BLOCK, in, out, {d, out, 1}, {head->transposed[l], in, 1}, NONE, {x, in, 1}, d_next, in);
            std::swap(d, d_next);
        }
        return d;
    }
};

}  // namespace
