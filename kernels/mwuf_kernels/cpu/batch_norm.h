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

inline long least(long a, long b) { return a < b ? a : b; }

// Mean and 1 / deviation of a layer's product over the batch, and what that makes of the running moments.
inline void moments(const Layer& layer, long n, float momentum, float eps) {
    std::vector<double> sum(layer.out, 0.0);
    std::vector<float> of_block(layer.out);
    for (int moment = 1; moment <= 2; moment++) {
        std::fill(sum.begin(), sum.end(), 0.0);
        for (long start = 0; start < n; start += BLOCK) {
            std::fill(of_block.begin(), of_block.end(), 0.0f);
            for (long r = start; r < least(start + BLOCK, n); r++) {
                const float* z = layer.z + r * layer.out;
                float* out = of_block.data();
                if (moment == 1) {
                    add_to(out, z, layer.out);
                    continue;
                }
                for (long i = 0; i < layer.out; i++) out[i] += (z[i] - layer.mean[i]) * (z[i] - layer.mean[i]);
            }
            for (long i = 0; i < layer.out; i++) sum[i] += of_block[i];
        }
        for (long i = 0; i < layer.out; i++) {
            const double mean = sum[i] / double(n);
            if (moment == 1) {
                layer.mean[i] = float(mean);
                layer.running_mean[i] += momentum * (layer.mean[i] - layer.running_mean[i]);
                continue;
            }
            layer.scale[i] = float(1 / std::sqrt(mean + eps));
            const float unbiased = float(mean * double(n) / double(n > 1 ? n - 1 : 1));
            layer.running_var[i] += momentum * (unbiased - layer.running_var[i]);
        }
    }
}

// d [n, out] of what a norm gives becomes that of what it was given.
inline void norm_back(const Layer& layer, long n, float* d) {
    std::vector<double> sums(2 * layer.out, 0.0);
    std::vector<float> of_block(2 * layer.out);
    for (long start = 0; start < n; start += BLOCK) {
        std::fill(of_block.begin(), of_block.end(), 0.0f);
        float *plain = of_block.data(), *scaled = plain + layer.out;
        for (long r = start; r < least(start + BLOCK, n); r++) {
            const float *z = layer.z + r * layer.out, *of_row = d + r * layer.out;
            for (long i = 0; i < layer.out; i++) plain[i] += of_row[i];
            for (long i = 0; i < layer.out; i++) scaled[i] += of_row[i] * (z[i] - layer.mean[i]) * layer.scale[i];
        }
        for (long i = 0; i < 2 * layer.out; i++) sums[i] += of_block[i];
    }
    // d = factor * (d - mean of d - normalised z * mean of d times normalised z)
    std::vector<float> factor(layer.out), shift(layer.out), slope(layer.out);
    for (long i = 0; i < layer.out; i++) {
        layer.d_beta[i] = float(sums[i]);
        layer.d_gamma[i] = float(sums[layer.out + i]);
        factor[i] = layer.gamma[i] * layer.scale[i];
        slope[i] = float(sums[layer.out + i] / double(n)) * layer.scale[i];
        shift[i] = float(sums[i] / double(n)) - layer.mean[i] * slope[i];
    }
    const float *by = factor.data(), *less = shift.data(), *tilt = slope.data();
    for (long r = 0; r < n; r++) {
        const float* z = layer.z + r * layer.out;
        float* of_row = d + r * layer.out;
        for (long i = 0; i < layer.out; i++) of_row[i] = by[i] * (of_row[i] - less[i] - tilt[i] * z[i]);
    }
}

}  // namespace
