// BatchNorm over the rows of a batch, as a layer in training has it.

#pragma once

#include <algorithm>

#include "rows.h"

extern "C" {

struct Layer {
    long in, out;
    const float *weight, *bias;  // [out, in], [out]; no bias with a norm
    const float *gamma, *beta;   // of BatchNorm [out]; null where there is none
    float *running_mean, *running_var;
    const float* noise;  // of dropout [n, out]; null where there is none
    float *z, *a;        // the product and the output [n, out]; z with a norm only
    float *mean, *scale;  // of the batch [out]
    float *d_weight, *d_bias, *d_gamma, *d_beta;
};

}  // extern "C"

namespace {

// Sums over the rows of a batch in float64, of what each span has summed; a span adds up a block of rows in float32.
class Moments {
   public:
    Moments(long spans, long columns) : columns_(columns), spans_(spans * columns, 0.0) {}

    // add(row, sums) for rows [start, start + rows) of a span.
    template <typename Add>
    void add_block(long span, long start, long rows, Add&& add) {
        float* sums = workspace<Kept::ForMoments>(columns_);
        std::memset(sums, 0, columns_ * sizeof(float));
        for (long row = start; row < start + rows; row++) add(row, sums);
        for (long i = 0; i < columns_; i++) spans_[span * columns_ + i] += double(sums[i]);
    }

    std::vector<double> total() const {
        std::vector<double> sums(columns_, 0.0);
        for (size_t i = 0; i < spans_.size(); i++) sums[i % columns_] += spans_[i];
        return sums;
    }

   private:
    long columns_;
    std::vector<double> spans_;
};

// The mean of a layer's product over the batch, and what that makes of the running mean.
inline void set_mean(const Layer& layer, const Moments& moments, long n, float momentum) {
    const std::vector<double> sum = moments.total();
    for (long i = 0; i < layer.out; i++) {
        layer.mean[i] = float(sum[i] / double(n));
        layer.running_mean[i] += momentum * (layer.mean[i] - layer.running_mean[i]);
    }
}

// 1 / deviation likewise, from sums of squared distances to the mean.
inline void set_scale(const Layer& layer, const Moments& moments, long n, float momentum, float eps) {
    const std::vector<double> sum = moments.total();
    for (long i = 0; i < layer.out; i++) {
        layer.scale[i] = float(1 / std::sqrt(sum[i] / double(n) + double(eps)));
        const float unbiased = float(sum[i] / double(n > 1 ? n - 1 : 1));
        layer.running_var[i] += momentum * (unbiased - layer.running_var[i]);
    }
}

// d of what a norm gives becomes that of what it was given:
// factor * (d - mean of d - normalised z * mean of d times normalised z) = factor * (d - shift - slope * z)
struct NormBack {
    std::vector<float> factor, shift, slope;

    // From the sums of d [out] and of d times normalised z [out].
    NormBack(const Layer& layer, const Moments& moments, long n)
        : factor(layer.out), shift(layer.out), slope(layer.out) {
        const std::vector<double> sums = moments.total();
        for (long i = 0; i < layer.out; i++) {
            layer.d_beta[i] = float(sums[i]);
            layer.d_gamma[i] = float(sums[layer.out + i]);
            factor[i] = layer.gamma[i] * layer.scale[i];
            slope[i] = float(sums[layer.out + i] / double(n)) * layer.scale[i];
            shift[i] = float(sums[i] / double(n)) - layer.mean[i] * slope[i];
        }
    }

    void operator()(const float* z, float* d) const {
        const float *by = factor.data(), *less = shift.data(), *tilt = slope.data();
        for (size_t i = 0; i < factor.size(); i++) d[i] = by[i] * (d[i] - less[i] - tilt[i] * z[i]);
    }
};

}  // namespace
