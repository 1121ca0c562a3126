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

    // What a span adds up [columns].
    double* at(long span) { return spans_.data() + span * columns_; }

    std::vector<double> total() const {
        std::vector<double> sums(columns_, 0.0);
        for (size_t i = 0; i < spans_.size(); i++) sums[i % columns_] += spans_[i];
        return sums;
    }

   private:
    long columns_;
    std::vector<double> spans_;
};

// Adds to a norm's sums of what is sent back to it, as it is and times the normalised numbers, those of some columns.
inline void add_sums(double* plain, double* scaled, Vec d, Vec times_distance, const float* scale, long lanes) {
    for (long lane = 0; lane < lanes; lane++) {
        plain[lane] += double(d[lane]);
        scaled[lane] += double(times_distance[lane] * scale[lane]);
    }
}

// What mean and variance over a batch are made of: sums of numbers, of their squares, and how many they are.
//
// It takes one pass over the batch: a block's sums are those of distances to its first number, and its squares those of
// distances to its own mean, in float32 and while the block is in the cache. In float64 they become sums of the numbers
// and of their squares, which spans and ranks can add up.
class BatchMoments {
   public:
    BatchMoments(long spans, long columns) : columns_(columns), moments_(spans, 2 * columns) {}

    // Of a block's columns: a number, the sum of distances to it, about the mean, and the sum of squared distances to that.
    struct Block {
        float *first, *distances, *mean, *squares;
    };
    Block block() const {
        float* memory = workspace<Kept::ForMoments>(4 * columns_);
        return {memory, memory + columns_, memory + 2 * columns_, memory + 3 * columns_};
    }
    // Adds a block of n numbers a column.
    void add(long span, long n, const Block& block) {
        double *sums = moments_.at(span), *of_squares = sums + columns_;
        for (long i = 0; i < columns_; i++) {
            const double mean = block.mean[i], sum = double(n) * double(block.first[i]) + double(block.distances[i]);
            sums[i] += sum;
            of_squares[i] += double(block.squares[i]) + 2 * mean * sum - double(n) * mean * mean;
        }
    }

    // Adds rows [rows, columns] of which `counts(row)` says those that count, `n` of them.
    template <typename Counts>
    void add_rows(long span, const float* z, long rows, long n, Counts&& counts) {
        if (!n) return;
        long begin = 0;
        while (!counts(begin)) begin++;
        const Block to = block();
        for (long i = 0; i < columns_; i += V) {
            const long lanes = least(V, columns_ - i);
            // Told apart out of the loops over rows, which else ask in every row.
            const auto over_rows = [&](auto&& read) {
                const Vec first = read(z + begin * columns_ + i);
                Vec distances{}, squares{};
                for (long r = begin + 1; r < rows; r++)
                    if (counts(r)) distances += read(z + r * columns_ + i) - first;
                const Vec mean = first + distances / float(n);
                for (long r = begin; r < rows; r++)
                    if (counts(r)) {
                        const Vec distance = read(z + r * columns_ + i) - mean;
                        squares += distance * distance;
                    }
                put(to.first + i, first, lanes), put(to.distances + i, distances, lanes);
                put(to.mean + i, mean, lanes), put(to.squares + i, squares, lanes);
            };
            if (lanes == V)
                over_rows([](const float* at) { return load(at); });
            else
                over_rows([=](const float* at) { return load_some(at, lanes); });
        }
        add(span, n, to);
    }

    // Sums and squares of all [2 * columns], and behind them how many numbers a column has: one exchange for all.
    std::vector<double> total(long n) const {
        std::vector<double> out = moments_.total();
        out.push_back(double(n));
        return out;
    }

   private:
    long columns_;
    Moments moments_;
};

// Sums values over the ranks, in place; null where this rank has the whole batch.
using SumOverRanks = void (*)(double* values, long n);

// Mean and 1 / deviation over the whole batch, and what that makes of the running moments, from `BatchMoments::total`.
inline void set_moments(const Layer& layer, std::vector<double> total, float momentum, float eps,
                        SumOverRanks sum_over_ranks) {
    if (sum_over_ranks) sum_over_ranks(total.data(), long(total.size()));
    const double n = std::max(1.0, total.back());  // a rank that is alone may have none
    for (long i = 0; i < layer.out; i++) {
        const double mean = total[i] / n, found = total[layer.out + i] / n - mean * mean;
        const double variance = found < 0 ? 0 : found;  // NaN stays NaN
        layer.mean[i] = float(mean);
        layer.scale[i] = float(1 / std::sqrt(variance + double(eps)));
        layer.running_mean[i] += momentum * (layer.mean[i] - layer.running_mean[i]);
        layer.running_var[i] += momentum * (float(variance * n / std::max(1.0, n - 1)) - layer.running_var[i]);
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
