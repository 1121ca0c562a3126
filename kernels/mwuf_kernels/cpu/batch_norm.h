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

// Sums values over the ranks, in place; null where this rank has the whole batch.
using SumOverRanks = void (*)(double* values, long n);

// The mean of a layer's product over the rows of this rank: what squared distances are taken to.
inline void set_own_mean(const Layer& layer, const std::vector<double>& sum, long n) {
    const double rows = std::max(1.0, double(n));  // a rank may have none
    for (long i = 0; i < layer.out; i++) layer.mean[i] = float(sum[i] / rows);
}

// Mean and 1 / deviation over the whole batch, and what that makes of the running moments, from this rank's sums [out]
// and squared distances to its own mean [out].
inline void set_moments(const Layer& layer, const std::vector<double>& sum, std::vector<double> squares, long n,
                        float momentum, float eps, SumOverRanks sum_over_ranks) {
    double rows = double(n);
    if (sum_over_ranks) {
        // Squared distances to zero can be added up; behind both sums, the number of rows: one exchange for all.
        std::vector<double> all(2 * layer.out + 1);
        for (long i = 0; i < layer.out; i++) {
            const double own = layer.mean[i];
            all[i] = sum[i];
            all[layer.out + i] = squares[i] + 2 * own * sum[i] - rows * own * own;
        }
        all[2 * layer.out] = rows;
        sum_over_ranks(all.data(), 2 * layer.out + 1);
        rows = all[2 * layer.out];
        for (long i = 0; i < layer.out; i++) {
            const double mean = all[i] / rows;
            layer.mean[i] = float(mean);
            squares[i] = std::max(0.0, all[layer.out + i] - rows * mean * mean);
        }
    }
    for (long i = 0; i < layer.out; i++) {
        layer.running_mean[i] += momentum * (layer.mean[i] - layer.running_mean[i]);
        layer.scale[i] = float(1 / std::sqrt(squares[i] / rows + double(eps)));
        const float unbiased = float(squares[i] / std::max(1.0, rows - 1));
        layer.running_var[i] += momentum * (unbiased - layer.running_var[i]);
    }
}

// d of what a norm gives becomes that of what it was given:
// factor * (d - mean of d - normalised z * mean of d times normalised z) = factor * (d - rest - slope * (z - mean))
//
// Its sum over the batch is zero, which is the gradient of all that is the same in every row, and Adam makes steps of
// what rounding leaves of it: so z is taken to its mean first, where `rest + slope * mean` would be off alike in all rows.
struct NormBack {
    std::vector<float> factor, rest, slope;
    const float* mean;

    // From this rank's sums of d [out] and of d times normalised z [out].
    NormBack(const Layer& layer, const Moments& moments, long n, SumOverRanks sum_over_ranks)
        : factor(layer.out), rest(layer.out), slope(layer.out), mean(layer.mean) {
        std::vector<double> sums = moments.total();
        for (long i = 0; i < layer.out; i++) {
            layer.d_beta[i] = float(sums[i]);
            layer.d_gamma[i] = float(sums[layer.out + i]);
        }
        sums.push_back(double(n));
        if (sum_over_ranks) sum_over_ranks(sums.data(), 2 * layer.out + 1);
        const double rows = sums.back();
        for (long i = 0; i < layer.out; i++) {
            factor[i] = layer.gamma[i] * layer.scale[i];
            slope[i] = float(sums[layer.out + i] / rows) * layer.scale[i];
            rest[i] = float(sums[i] / rows);
        }
    }

    void operator()(const float* z, float* d) const {
        const float *by = factor.data(), *less = rest.data(), *tilt = slope.data();
        for (size_t i = 0; i < factor.size(); i++) d[i] = by[i] * (d[i] - less[i] - tilt[i] * (z[i] - mean[i]));
    }
};

}  // namespace
