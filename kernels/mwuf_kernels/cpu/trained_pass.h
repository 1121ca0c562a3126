// The forward pass of rows of a batch through a head in training: see trained_rows.py.

#pragma once

#include "batch_norm.h"
#include "pairs.h"
#include "partial_sums.h"
#include "pool.h"

extern "C" {

struct Side {
    long rows, width, column;  // column: where its fields begin in the first layer's input
    const float* x;            // [rows, width]
    const int64_t* index;      // which of the rows each row of the batch has [n]; null: its own
    float* d_x;                // [rows, width]
};

struct Trained {
    long n, dim, interactions, depth, num_sides;
    long num_pairs;  // whose products are the last columns of the first layer's input; 0: it has no such columns
    float momentum, eps;
    const float *linear, *linear_bias, *out, *out_bias;  // [fields * dim], [1] (null: no linear part), [last width], [1]
    float *total, *pairs;                                // sums of the field embeddings [n, dim]; products [n, num_pairs]
    float *d_linear, *d_out, *d_bias;                    // d_bias: of both biases [1]; null: no weight's is asked for
    void (*sum_over_ranks)(double*, long);               // see batch_norm.h
};

}  // extern "C"

namespace {

// A field: which side it is of, and where in its rows.
struct FieldOfSide {
    long side, column;
};

// The fields in the order of the first layer's columns; none where nothing asks for pairs of them.
inline std::vector<FieldOfSide> fields_of(const Trained& net, const Side* sides) {
    std::vector<FieldOfSide> out;
    for (long s = 0; net.num_pairs && s < net.num_sides; s++)
        for (long column = 0; column < sides[s].width; column += net.dim) {
            const size_t place = (sides[s].column + column) / net.dim;
            if (out.size() <= place) out.resize(place + 1);
            out[place] = {s, column};
        }
    return out;
}

struct Pass {
    const Trained& net;
    const Side* sides;
    const Layer* layers;
    long hidden = net.depth ? layers[0].out : 0;
    bool has_norm = net.depth && layers[0].gamma, of_weights = net.d_bias;
    std::vector<FieldOfSide> fields = fields_of(net, sides);

    // The field embeddings of a row of the batch, in the order of the first layer's columns.
    void find_fields(long row, const float** at) const {
        for (const FieldOfSide& field : fields) {
            const Side& side = sides[field.side];
            *at++ = side.x + (side.index ? side.index[row] : row) * side.width + field.column;
        }
    }

    // Products of all pairs of fields i < j, in the order of i, then j.
    void pair_products(long start, long rows) const {
        std::vector<const float*> at(fields.size());
        float* out = net.pairs + start * net.num_pairs;
        for (long r = 0; r < rows; r++) {
            find_fields(start + r, at.data());
            out = products_of_pairs(long(at.size()), net.dim, [&](long i) { return at[i]; }, out);
        }
    }

    // The same backwards: of d_pairs [num_pairs] of a row, the gradients of its fields into d_row [fields * dim].
    void pairs_back(const float* d_pairs, const std::vector<const float*>& at, float* matrix, float* d_row) const {
        const size_t num = at.size();
        matrix_of_pairs(long(num), d_pairs, matrix);
        for (size_t i = 0; i < num; i++, matrix += num, d_row += net.dim)
            along(
                net.dim,
                [&](long c) {
                    Vec sum{};
                    for (size_t j = 0; j < num; j++) sum += matrix[j] * load(at[j] + c);
                    store(d_row + c, sum);
                },
                [&](long c) {
                    d_row[c] = 0;
                    for (size_t j = 0; j < num; j++) d_row[c] += matrix[j] * at[j][c];
                });
    }

    // What rows [start, start + rows) of a side add to the linear part, and to the sums of fields [rows, dim].
    void field_sums(const Side& side, long start, long rows, float* constant, float* total) const {
        if (!net.linear) return;
        const long dim = net.dim;
        const float half = net.interactions ? 0.5f : 0.0f;
        for (long r = 0; r < rows; r++) {
            const float *x = side.x + (start + r) * side.width, *weight = net.linear + side.column;
            float* sums = total + r * dim;
            Vec own{};
            float rest = 0;
            for (long f = 0; f < side.width; f += dim, x += dim, weight += dim)
                along(
                    dim,
                    [&](long i) {
                        own += load(x + i) * (load(weight + i) - half * load(x + i));
                        if (half) store(sums + i, load(sums + i) + load(x + i));
                    },
                    [&](long i) {
                        rest += x[i] * (weight[i] - half * x[i]);
                        if (half) sums[i] += x[i];
                    });
            constant[r] += sum_of_lanes(own) + rest;
        }
    }

    // The same backwards, into d_x, beside what the first layer sends back: d_layer [rows, hidden] of it. Sums over rows
    // are added to d_weight [hidden, width] and d_linear [width].
    void side_back(const Side& side, long start, long rows, const float* d_layer, const float* d_constant,
                   const float* d_total, float* d_weight, float* d_linear) const {
        const long dim = net.dim;
        const float one = net.interactions ? 1.0f : 0.0f;
        for (long r = 0; net.linear && r < rows; r++) {
            const float *x = side.x + (start + r) * side.width, *weight = net.linear + side.column;
            const float *of_total = d_total + r * dim, d = d_constant[r];
            float *d_x = side.d_x + (start + r) * side.width, *of_linear = d_linear;
            for (long f = 0; f < side.width; f += dim, x += dim, weight += dim, d_x += dim, of_linear += dim)
                along(
                    dim,
                    [&](long i) {
                        store(of_linear + i, load(of_linear + i) + d * load(x + i));
                        store(d_x + i, d * (load(weight + i) - one * load(x + i)) + one * load(of_total + i));
                    },
                    [&](long i) {
                        of_linear[i] += d * x[i];
                        d_x[i] = d * (weight[i] - one * x[i]) + one * of_total[i];
                    });
        }
        if (!net.depth) return;
        float* d_x = side.d_x + start * side.width;
        product<Then::Nothing>(rows, side.width, hidden, {d_layer, hidden, 1},
                               {layers[0].weight + side.column, layers[0].in, 1},
                               {net.linear ? d_x : nullptr, side.width, 1}, NONE, d_x, side.width);
        if (!of_weights) return;
        product<Then::Nothing>(hidden, side.width, rows, {d_layer, 1, hidden},
                               {side.x + start * side.width, side.width, 1}, {d_weight, side.width, 1}, NONE, d_weight,
                               side.width);
    }

    // a [rows, out] of a layer from its product z, in place where there is no norm.
    void activate(const Layer& layer, long start, long rows, const float* factor, const float* offset) const {
        const float* from = (layer.gamma ? layer.z : layer.a) + start * layer.out;
        for (long i = 0; i < layer.out; i += V) {
            const long lanes = least(V, layer.out - i);
            const Vec by = layer.gamma ? part(factor + i, lanes) : Vec{} + 1, plus = layer.gamma ? part(offset + i, lanes) : Vec{};
            for (long at = i; at < rows * layer.out; at += layer.out) {
                Vec x = part(from + at, lanes);
                if (layer.gamma) x = x * by + plus;
                x = x < 0 ? Vec{} : x;  // keeps NaN, as torch does
                if (layer.noise) x *= part(layer.noise + start * layer.out + at, lanes);
                put(layer.a + start * layer.out + at, x, lanes);
            }
        }
    }

    // The same backwards, in place. An output of zero lets nothing through: the ReLU's, or what dropout took. Of a layer
    // with a norm, sums [2, out] of what it gives over the rows, as it is and times the normalised product, are added to.
    void activation_back(const Layer& layer, long start, long rows, float* d, double* sums) const {
        const long first = start * layer.out;
        for (long i = 0; i < layer.out; i += V) {
            const long lanes = least(V, layer.out - i);
            const Vec mean = sums ? part(layer.mean + i, lanes) : Vec{};
            Vec plain{}, scaled{};
            for (long at = i; at < rows * layer.out; at += layer.out) {
                Vec x = part(layer.a + first + at, lanes) <= 0 ? Vec{} : part(d + at, lanes);
                if (layer.noise) x *= part(layer.noise + first + at, lanes);
                put(d + at, x, lanes);
                if (!sums) continue;
                plain += x;
                scaled += x * (part(layer.z + first + at, lanes) - mean);
            }
            if (sums) add_sums(sums + i, sums + layer.out + i, plain, scaled, layer.scale + i, lanes);
        }
    }

    // About the nanoseconds of the layers on `rows` rows, once through.
    double ns(double rows) const {
        double cells = 4.0 * net.dim;
        for (long l = 0; l < net.depth; l++) cells += double(layers[l].in * layers[l].out);
        return rows * (20 + cells / (2 * V));
    }

    // body(block's first row, its rows) for the blocks of rows [start, stop).
    template <typename Body>
    static void by_blocks(long start, long stop, Body&& body) {
        for (; start < stop; start += BLOCK) body(start, least(BLOCK, stop - start));
    }

    // body(span, block's first row, its rows) for all blocks of the batch, in parallel; a span's one after another.
    template <typename Body>
    void by_spans(double ns, Body&& body) const {
        const long each = span_rows(net.n);
        in_parallel(spans_of(net.n), ns, [&](long span) {
            by_blocks(span * each, least(span * each + each, net.n),
                      [&](long start, long rows) { body(span, start, rows); });
        });
    }

    void forward(float* logit) const {
        long size = 0;
        for (long l = 0; l < net.depth; l++) size += layers[l].in * layers[l].out;
        for (long s = 0; s < net.num_sides; s++)
            if (sides[s].index) size += sides[s].rows * (hidden + net.dim + 1);
        float* free = workspace<Kept::ForTheCall>(size);
        std::vector<float*> transposed(net.depth), parts(net.num_sides, nullptr);
        for (long l = 0; l < net.depth; l++) {
            transposed[l] = free;
            free += layers[l].in * layers[l].out;
        }
        transpose(transposed);
        // A side whose rows repeat in the batch is done once for each of its own.
        Lists blocks;
        double cells = 0;
        for (long s = 0; s < net.num_sides; s++) {
            const Side& side = sides[s];
            blocks.add(side.index ? (side.rows + BLOCK - 1) / BLOCK : 0);
            if (!side.index) continue;
            parts[s] = free;
            free += side.rows * (hidden + net.dim + 1);
            cells += double(side.rows) * double(side.width) * double(hidden + 4);
        }
        in_parallel(blocks.size(), cells / (2 * V), [&](long task) {
            const auto [s, block] = blocks.of(task);
            side_parts(sides[s], block * BLOCK, least(BLOCK, sides[s].rows - block * BLOCK), transposed, parts[s]);
        });
        if (!has_norm) {  // Nothing needs the whole batch: a block goes through all layers at once.
            by_spans(ns(double(net.n)), [&](long, long start, long rows) {
                first_layer(start, rows, transposed, parts, logit + start);
                for (long l = 0; l < net.depth; l++) {
                    if (l) linear(l, start, rows, transposed[l]);
                    activate(layers[l], start, rows, nullptr, nullptr);
                }
                output(start, rows, logit + start);
            });
            return;
        }
        // A norm needs the whole batch. What follows it up to the next one's product is done while a block is in the cache.
        std::vector<float> factor, offset;
        for (long l = 0; l <= net.depth; l++) {
            BatchMoments moments(l < net.depth ? spans_of(net.n) : 0, l < net.depth ? layers[l].out : 0);
            by_spans(ns(double(net.n)) / double(net.depth), [&](long span, long start, long rows) {
                if (l) activate(layers[l - 1], start, rows, factor.data(), offset.data());
                if (l == net.depth) return output(start, rows, logit + start);
                l ? linear(l, start, rows, transposed[l]) : first_layer(start, rows, transposed, parts, logit + start);
                moments.add_rows(span, layers[l].z + start * layers[l].out, rows, rows, [](long) { return true; });
            });
            if (l == net.depth) break;
            const Layer& layer = layers[l];
            set_moments(layer, moments.total(net.n), net.momentum, net.eps, net.sum_over_ranks);
            factor.resize(layer.out), offset.resize(layer.out);
            for (long i = 0; i < layer.out; i++) {
                factor[i] = layer.gamma[i] * layer.scale[i];
                offset[i] = layer.beta[i] - layer.mean[i] * factor[i];
            }
        }
    }

    // The weights of all layers [in, out].
    void transpose(const std::vector<float*>& transposed) const {
        Lists strips;
        double cells = 0;
        for (long l = 0; l < net.depth; l++) {
            strips.add((layers[l].in + V - 1) / V);
            cells += double(layers[l].in * layers[l].out);
        }
        in_parallel(strips.size(), cells, [&](long task) {
            const auto [l, strip] = strips.of(task);
            const Layer& layer = layers[l];
            for (long o = 0; o < layer.out; o++)
                for (long i = strip * V; i < least(strip * V + V, layer.in); i++)
                    transposed[l][i * layer.out + o] = layer.weight[o * layer.in + i];
        });
    }

    // What rows of a side with an index add to the first layer, to the sums of fields, and to the linear part.
    void side_parts(const Side& side, long start, long rows, const std::vector<float*>& transposed, float* parts) const {
        float *total = parts + side.rows * hidden + start * net.dim, *constant = parts + side.rows * (hidden + net.dim) + start;
        std::memset(total, 0, rows * net.dim * sizeof(float));
        std::memset(constant, 0, rows * sizeof(float));
        field_sums(side, start, rows, constant, total);
        if (net.depth)
            product<Then::Nothing>(rows, hidden, side.width, {side.x + start * side.width, side.width, 1},
                                   {transposed[0] + side.column * hidden, hidden, 1}, NONE, NONE, parts + start * hidden,
                                   hidden);
    }

    void first_layer(long start, long rows, const std::vector<float*>& transposed, const std::vector<float*>& parts,
                     float* logit) const {
        float* total = net.total + start * net.dim;
        if (net.interactions) std::memset(total, 0, rows * net.dim * sizeof(float));
        float* z = net.depth ? (has_norm ? layers[0].z : layers[0].a) + start * hidden : nullptr;
        for (long r = 0; r < rows; r++) {
            logit[r] = (net.linear ? *net.linear_bias : 0) + (net.depth ? *net.out_bias : 0);
            if (!net.depth) continue;
            if (layers[0].bias)
                copy_of(z + r * hidden, layers[0].bias, hidden);
            else
                std::memset(z + r * hidden, 0, hidden * sizeof(float));
        }
        for (long s = 0; s < net.num_sides; s++) {
            const Side& side = sides[s];
            if (!side.index) {
                field_sums(side, start, rows, logit, total);
                if (net.depth)
                    product<Then::Nothing>(rows, hidden, side.width, {side.x + start * side.width, side.width, 1},
                                           {transposed[0] + side.column * hidden, hidden, 1}, {z, hidden, 1}, NONE, z,
                                           hidden);
                continue;
            }
            const float *of_layer = parts[s], *totals = of_layer + side.rows * hidden;
            const float* constants = totals + side.rows * net.dim;
            for (long r = 0; r < rows; r++) {
                const int64_t row = side.index[start + r];
                logit[r] += constants[row];
                if (net.depth) add_to(z + r * hidden, of_layer + row * hidden, hidden);
                if (net.interactions) add_to(total + r * net.dim, totals + row * net.dim, net.dim);
            }
        }
        if (!net.num_pairs) return;
        pair_products(start, rows);
        product<Then::Nothing>(rows, hidden, net.num_pairs, {net.pairs + start * net.num_pairs, net.num_pairs, 1},
                               {transposed[0] + (layers[0].in - net.num_pairs) * hidden, hidden, 1}, {z, hidden, 1}, NONE,
                               z, hidden);
    }

    void linear(long l, long start, long rows, const float* transposed) const {
        const Layer& layer = layers[l];
        float* z = (layer.gamma ? layer.z : layer.a) + start * layer.out;
        const Matrix bias{layer.bias, 0, 1};
        product<Then::Nothing>(rows, layer.out, layer.in, {layers[l - 1].a + start * layer.in, layer.in, 1},
                               {transposed, layer.out, 1}, bias, NONE, z, layer.out);
    }

    void output(long start, long rows, float* logit) const {
        for (long r = 0; r < rows; r++) {
            const float* total = net.total + (start + r) * net.dim;
            if (net.interactions) logit[r] += 0.5f * dot(total, total, net.dim);
            if (!net.depth) continue;
            const Layer& last = layers[net.depth - 1];
            logit[r] += dot(last.a + (start + r) * last.out, net.out, last.out);
        }
    }

};

}  // namespace
