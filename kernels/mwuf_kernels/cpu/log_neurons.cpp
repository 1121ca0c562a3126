// Logarithmic neurons of the rows of a batch, forward and back: see log_neurons.py.

#include "batch_norm.h"
#include "partial_sums.h"
#include "pool.h"
#include "powers.h"

extern "C" {

// Shapes: item, d_item [rows, dim]; context, d_context [rows, fields - 1, dim]; row_weight [rows], 0 on padding, null where
// there is none; weight, d_weight [neurons, fields]; bias, d_bias [neurons]; out, d_out [rows, dim, neurons]. For the way
// back: the logarithms less their mean [rows, fields, dim], field by field for STEP rows at once, and the powers before
// their norm [rows, dim, neurons].
struct LogNeurons {
    long rows, fields, dim, neurons;
    float smallest, momentum, eps;
    const float *item, *context, *row_weight, *weight, *bias;
    float *out, *logs, *powers;
    const float* d_out;
    float *d_item, *d_context, *d_weight, *d_bias;
    void (*sum_over_ranks)(double*, long);
};

}  // extern "C"

namespace {

constexpr long STEP = 12;  // Rows at once, a divisor of BLOCK: with 16 columns and 32 neurons 24 KB.

struct Neurons : LogNeurons {
    const Layer &of_logs, &of_powers;  // the norms
    std::vector<float> turned, constant;  // weight with the first norm's factor [fields, neurons], bias with its offset
    long counted = 0;                     // of a norm: columns of rows that are no padding

    Neurons(const LogNeurons& neurons, const Layer* norms)
        : LogNeurons(neurons), of_logs(norms[0]), of_powers(norms[1]), turned(fields * neurons.neurons) {
        counted = counted_of(0, rows);
    }

    bool counts(long row) const { return !row_weight || row_weight[row] != 0; }
    long counted_of(long start, long n) const {
        long number = 0;
        for (long row = start; row < start + n; row++) number += counts(row) * dim;
        return number;
    }
    double ns() const { return double(rows * dim) * double(10 * fields + neurons * (fields + 10)) / (2 * V); }
    const float* field(long row, long f) const { return f ? context + (row * (fields - 1) + f - 1) * dim : item + row * dim; }
    float* d_field(long row, long f) const {
        return f ? d_context + (row * (fields - 1) + f - 1) * dim : d_item + row * dim;
    }

    template <typename Body>
    static void in_steps(long start, long stop, Body&& body) {
        for (; start < stop; start += STEP) body(start, least(STEP, stop - start));
    }
    template <typename Body>
    void by_spans(double cost, Body&& body) const {
        const long each = span_rows(rows);
        in_parallel(spans_of(rows), cost, [&](long span) {
            in_steps(span * each, least(span * each + each, rows), [&](long start, long n) { body(span, start, n); });
        });
    }

    // The logarithms of n rows [fields][n dim].
    void logarithms(long start, long n, float* to) const {
        for (long f = 0; f < fields; f++)
            for (long r = 0; r < n; r++, to += dim)
                for (long i = 0; i < dim; i += V) {
                    const long lanes = least(V, dim - i);
                    put(to + i, log_of_size(part(field(start + r, f) + i, lanes), smallest), lanes);
                }
    }

    // Of logarithms [fields][n dim].
    void add_moments(BatchMoments& moments, long span, long start, long n, const float* log) const {
        const long number = counted_of(start, n);
        if (!number) return;
        long begin = 0;
        while (!counts(start + begin)) begin++;
        const BatchMoments::Block block = moments.block();
        for (long f = 0; f < fields; f++, log += n * dim) {
            const auto sum_of_all = [&](auto&& term) {
                float sum = 0;
                for (long r = begin; r < n; r++)
                    for (long i = 0; counts(start + r) && i < dim; i++) sum += term(log[r * dim + i]);
                return sum;
            };
            const float first = block.first[f] = log[begin * dim];
            block.distances[f] = sum_of_all([&](float x) { return x - first; });
            const float mean = block.mean[f] = first + block.distances[f] / float(number);
            block.squares[f] = sum_of_all([&](float x) { return (x - mean) * (x - mean); });
        }
        moments.add(span, number, block);
    }

    void fold_norm() {
        constant.assign(bias, bias + neurons);
        for (long f = 0; f < fields; f++)
            for (long u = 0; u < neurons; u++) {
                turned[f * neurons + u] = weight[u * fields + f] * of_logs.gamma[f] * of_logs.scale[f];
                constant[u] += weight[u * fields + f] * of_logs.beta[f];
            }
    }

    void normalise(long n, const float* from, float* to) const {
        const Layer& norm = of_powers;
        for (long k = 0; k < n * dim; k++, from += neurons, to += neurons)
            for (long u = 0; u < neurons; u += V) {
                const long lanes = least(V, neurons - u);
                const Vec factor = part(norm.gamma + u, lanes) * part(norm.scale + u, lanes);
                put(to + u, (part(from + u, lanes) - part(norm.mean + u, lanes)) * factor + part(norm.beta + u, lanes), lanes);
            }
    }

    void forward() {
        BatchMoments log_moments(spans_of(rows), fields);
        by_spans(ns() / 4, [&](long span, long start, long n) {
            float* log = logs + start * fields * dim;
            logarithms(start, n, log);
            add_moments(log_moments, span, start, n, log);
        });
        set_moments(of_logs, log_moments.total(counted), momentum, eps, sum_over_ranks);
        fold_norm();
        BatchMoments moments(spans_of(rows), neurons);
        by_spans(ns(), [&](long span, long start, long n) {
            float *log = logs + start * fields * dim, *power = powers + start * dim * neurons;
            for (long f = 0; f < fields; f++)
                for (long k = 0; k < n * dim; k++) log[f * n * dim + k] -= of_logs.mean[f];
            raise(n * dim, fields, neurons, log, turned.data(), constant.data(), power);
            moments.add_rows(span, power, n * dim, counted_of(start, n), [&](long k) { return counts(start + k / dim); });
        });
        set_moments(of_powers, moments.total(counted), momentum, eps, sum_over_ranks);
        by_spans(ns() / 4, [&](long, long start, long n) {
            normalise(n, powers + start * dim * neurons, out + start * dim * neurons);
        });
    }

    // What the second norm sends back.
    NormBack back_through_powers() const {
        Moments moments(spans_of(rows), 2 * neurons);
        by_spans(ns() / 4, [&](long span, long start, long n) {
            const float *d = d_out + start * dim * neurons, *of = powers + start * dim * neurons;
            double* sums = moments.at(span);
            for (long u = 0; u < neurons; u += V) {
                const long lanes = least(V, neurons - u);
                const Vec mean = part(of_powers.mean + u, lanes);
                Vec plain{}, scaled{};
                for (long k = 0; k < n * dim; k++) {
                    if (!counts(start + k / dim)) continue;
                    const Vec x = part(d + k * neurons + u, lanes);
                    plain += x;
                    scaled += x * (part(of + k * neurons + u, lanes) - mean);
                }
                add_sums(sums + u, sums + neurons + u, plain, scaled, of_powers.scale + u, lanes);
            }
        });
        return NormBack(of_powers, moments, counted, sum_over_ranks);
    }

    // The gradient of what the exponential was taken of [n dim, neurons].
    void back_through_exp(const NormBack& norm, long start, long n, float* to) const {
        for (long row = start; row < start + n; row++) {
            const float *d = d_out + row * dim * neurons, *of = powers + row * dim * neurons;
            if (!counts(row)) std::memset(to, 0, dim * neurons * sizeof(float));
            for (long u = 0; counts(row) && u < neurons; u += V) {
                const long lanes = least(V, neurons - u);
                const Vec factor = part(&norm.factor[u], lanes), rest = part(&norm.rest[u], lanes);
                const Vec slope = part(&norm.slope[u], lanes), mean = part(norm.mean + u, lanes);
                for (long at = u; at < dim * neurons; at += neurons) {
                    const Vec power = part(of + at, lanes);
                    put(to + at, factor * (part(d + at, lanes) - rest - slope * (power - mean)) * power, lanes);
                }
            }
            to += dim * neurons;
        }
    }

    // Into d_item and d_context the gradients of the normalised logarithms. A span's own sums: of these gradients before
    // the weights, times the logarithms [fields, neurons] and as they are [neurons].
    void back_through_weights(const float* d, long start, long n, float* own) const {
        const float* log = logs + start * fields * dim;
        product<Then::Nothing>(fields, neurons, n * dim, {log, n * dim, 1}, {d, neurons, 1}, {own, neurons, 1}, NONE, own,
                               neurons);
        for (long k = 0; k < n * dim; k++) add_to(own + fields * neurons, d + k * neurons, neurons);
        float* of_fields = workspace<Kept::ForMoments>(STEP * dim * fields);
        product<Then::Nothing>(n * dim, fields, neurons, {d, neurons, 1}, {weight, fields, 1}, NONE, NONE, of_fields, fields);
        for (long r = 0; r < n; r++)
            for (long f = 0; f < fields; f++) {
                float* to = d_field(start + r, f);
                for (long i = 0; i < dim; i++) to[i] = of_fields[(r * dim + i) * fields + f];
            }
    }

    // What the first norm sends back, from sums over all rows; and the gradients of the weights.
    NormBack back_through_logs(const std::vector<float>& of_products) const {
        Moments moments(1, 2 * fields);
        double* sums = moments.at(0);
        for (long f = 0; f < fields; f++) {
            double plain = 0, scaled = 0;
            for (long u = 0; u < neurons; u++) {
                const double by = weight[u * fields + f];
                plain += by * d_bias[u];
                scaled += by * of_products[f * neurons + u];
            }
            sums[f] = plain, sums[fields + f] = scaled * of_logs.scale[f];
        }
        const NormBack norm(of_logs, moments, counted, sum_over_ranks);
        for (long u = 0; u < neurons; u++)
            for (long f = 0; f < fields; f++)
                d_weight[u * fields + f] = norm.factor[f] * of_products[f * neurons + u] + of_logs.beta[f] * d_bias[u];
        return norm;
    }

    void back_to_fields(const NormBack& norm, long start, long n) const {
        const float* log = logs + start * fields * dim;
        for (long f = 0; f < fields; f++)
            for (long r = 0; r < n; r++)
                for (long i = 0; i < dim; i += V) {
                    const long lanes = least(V, dim - i);
                    const Vec e = part(field(start + r, f) + i, lanes), x = part(log + (f * n + r) * dim + i, lanes);
                    float* d = d_field(start + r, f) + i;
                    const Vec of = norm.factor[f] * (part(d, lanes) - norm.rest[f] - norm.slope[f] * x);
                    put(d, counts(start + r) ? log_back(of, e, smallest) : Vec{}, lanes);
                }
    }

    void back() const {
        const NormBack of_powers_back = back_through_powers();
        std::vector<float> of_products(fields * neurons);
        PartialSums sums(spans_of(rows));
        sums.add(of_products.data(), fields, neurons, neurons);
        sums.add(d_bias, neurons);
        sums.use(workspace<Kept::ForTheCall>(sums.floats()));
        for (long span = 0; span < spans_of(rows); span++) sums.clear(span);
        by_spans(2 * ns(), [&](long span, long start, long n) {
            float* d = workspace<Kept::ForTheTask>(STEP * dim * neurons);
            back_through_exp(of_powers_back, start, n, d);
            back_through_weights(d, start, n, sums.at(span));
        });
        add_up({&sums});
        const NormBack of_logs_back = back_through_logs(of_products);
        by_spans(ns() / 8, [&](long, long start, long n) { back_to_fields(of_logs_back, start, n); });
    }
};

}  // namespace

extern "C" {

long mwuf_size_of_log_neurons() { return sizeof(LogNeurons); }

// norms: of the logarithms, and of the powers.
void mwuf_log_neurons(const LogNeurons* neurons, const Layer* norms) {
    Neurons(*neurons, norms).forward();
}

void mwuf_log_neurons_back(const LogNeurons* neurons, const Layer* norms) { Neurons(*neurons, norms).back(); }

}  // extern "C"
