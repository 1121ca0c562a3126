// Rows of a batch through a head in training, forward and back: see trained_rows.py.

#include "batch_norm.h"

namespace {

// Kept between calls: what is asked for anew comes in pages that are filled with zeros first.
float* workspace(long n) {
    thread_local std::vector<float> memory;
    if (long(memory.size()) < n) memory.resize(n);
    return memory.data();
}

}  // namespace

extern "C" {

struct Side {
    long rows, width, column;  // column: where its fields begin in the first layer's input
    const float* x;            // [rows, width]
    const int64_t* index;      // which of the rows each row of the batch has [n]; null: its own
    float* d_x;                // [rows, width]
};

struct Trained {
    long n, dim, interactions, depth, num_sides;
    float momentum, eps;
    const float *linear, *linear_bias, *out, *out_bias;  // [fields * dim], [1], [last width], [1]
    float* total;                                        // sums of the field embeddings [n, dim]
    float *d_linear, *d_out, *d_bias;                    // d_bias: of both biases [1]
};

}  // extern "C"

namespace {

struct Pass {
    const Trained& net;
    const Side* sides;
    const Layer* layers;
    long hidden = net.depth ? layers[0].out : 0;
    bool has_norm = net.depth && layers[0].gamma;

    // What rows [start, start + rows) of a side add to the linear part, and to the sums of fields [rows, dim].
    void field_sums(const Side& side, long start, long rows, float* constant, float* total) const {
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

    // The same backwards, into d_x, beside what the first layer sends back: d_layer [rows, hidden] of it.
    void side_back(const Side& side, long start, long rows, const float* d_layer, const float* d_constant,
                   const float* d_total) const {
        const Layer& first = layers[0];
        const long dim = net.dim;
        const float one = net.interactions ? 1.0f : 0.0f;
        for (long r = 0; r < rows; r++) {
            const float *x = side.x + (start + r) * side.width, *weight = net.linear + side.column;
            const float *of_total = d_total + r * dim, d = d_constant[r];
            float *d_x = side.d_x + (start + r) * side.width, *d_weight = net.d_linear + side.column;
            for (long f = 0; f < side.width; f += dim, x += dim, weight += dim, d_x += dim, d_weight += dim)
                along(
                    dim,
                    [&](long i) {
                        store(d_weight + i, load(d_weight + i) + d * load(x + i));
                        store(d_x + i, d * (load(weight + i) - one * load(x + i)) + one * load(of_total + i));
                    },
                    [&](long i) {
                        d_weight[i] += d * x[i];
                        d_x[i] = d * (weight[i] - one * x[i]) + one * of_total[i];
                    });
        }
        if (!net.depth) return;
        float* d_x = side.d_x + start * side.width;
        product<Then::Nothing>(rows, side.width, hidden, {d_layer, hidden, 1}, {first.weight + side.column, first.in, 1},
                               {d_x, side.width, 1}, NONE, d_x, side.width);
        float* d_weight = first.d_weight + side.column;
        product<Then::Nothing>(hidden, side.width, rows, {d_layer, 1, hidden},
                               {side.x + start * side.width, side.width, 1}, {d_weight, first.in, 1}, NONE, d_weight,
                               first.in);
    }

    // a [rows, out] of a layer from its product z, in place where there is no norm.
    void activate(const Layer& layer, long start, long rows, const float* factor, const float* offset) const {
        for (long r = start; r < start + rows; r++) {
            const float* z = (layer.gamma ? layer.z : layer.a) + r * layer.out;
            float* a = layer.a + r * layer.out;
            if (layer.gamma)
                for (long i = 0; i < layer.out; i++) a[i] = z[i] * factor[i] + offset[i];
            for (long i = 0; i < layer.out; i++) a[i] = a[i] < 0 ? 0 : a[i];
            if (!layer.noise) continue;
            const float* noise = layer.noise + r * layer.out;
            for (long i = 0; i < layer.out; i++) a[i] *= noise[i];
        }
    }

    // The same backwards, in place. An output of zero lets nothing through: the ReLU's, or what dropout took.
    void activation_back(const Layer& layer, long start, long rows, float* d) const {
        for (long r = 0; r < rows; r++, d += layer.out) {
            const float* a = layer.a + (start + r) * layer.out;
            for (long i = 0; i < layer.out; i++) d[i] = a[i] <= 0 ? 0 : d[i];
            if (!layer.noise) continue;
            const float* noise = layer.noise + (start + r) * layer.out;
            for (long i = 0; i < layer.out; i++) d[i] *= noise[i];
        }
    }

    void forward(float* logit) const {
        long size = net.depth ? layers[0].in * hidden : 0;
        for (long l = 1; l < net.depth; l++) size += layers[l].in * layers[l].out;
        for (long s = 0; s < net.num_sides; s++)
            if (sides[s].index) size += sides[s].rows * (hidden + net.dim + 1);
        for (long l = 0; l < net.depth; l++) size += 2 * layers[l].out;  // more than the norms' factors need
        float* free = workspace(size);
        std::vector<float*> transposed(net.depth);
        for (long l = 0; l < net.depth; l++) {
            const Layer& layer = layers[l];
            transposed[l] = free;
            free += layer.in * layer.out;
            for (long o = 0; o < layer.out; o++)
                for (long i = 0; i < layer.in; i++) transposed[l][i * layer.out + o] = layer.weight[o * layer.in + i];
        }
        // A side whose rows repeat in the batch is done once for each of its own.
        std::vector<float*> parts(net.num_sides, nullptr);
        for (long s = 0; s < net.num_sides; s++) {
            const Side& side = sides[s];
            if (!side.index) continue;
            float *of_layer = parts[s] = free, *total = of_layer + side.rows * hidden, *constant = total + side.rows * net.dim;
            free = constant + side.rows;
            std::memset(total, 0, side.rows * (net.dim + 1) * sizeof(float));
            field_sums(side, 0, side.rows, constant, total);
            if (net.depth)
                product<Then::Nothing>(side.rows, hidden, side.width, {side.x, side.width, 1},
                                       {transposed[0] + side.column * hidden, hidden, 1}, NONE, NONE, of_layer, hidden);
        }
        if (!has_norm) {  // Nothing needs the whole batch: a block goes through all layers at once.
            for (long start = 0; start < net.n; start += BLOCK) {
                const long rows = least(BLOCK, net.n - start);
                first_layer(start, rows, transposed, parts, logit + start);
                for (long l = 0; l < net.depth; l++) {
                    if (l) linear(l, start, rows, transposed[l]);
                    activate(layers[l], start, rows, nullptr, nullptr);
                }
                output(start, rows, logit + start);
            }
            return;
        }
        for (long l = 0; l < net.depth; l++) {
            const Layer& layer = layers[l];
            for (long start = 0; start < net.n; start += BLOCK) {
                const long rows = least(BLOCK, net.n - start);
                if (l)
                    linear(l, start, rows, transposed[l]);
                else
                    first_layer(start, rows, transposed, parts, logit + start);
            }
            moments(layer, net.n, net.momentum, net.eps);
            float *factor = free, *offset = free + layer.out;
            for (long i = 0; i < layer.out; i++) {
                factor[i] = layer.gamma[i] * layer.scale[i];
                offset[i] = layer.beta[i] - layer.mean[i] * factor[i];
            }
            activate(layer, 0, net.n, factor, offset);
        }
        output(0, net.n, logit);
    }

    void first_layer(long start, long rows, const std::vector<float*>& transposed, const std::vector<float*>& parts,
                     float* logit) const {
        float* total = net.total + start * net.dim;
        if (net.interactions) std::memset(total, 0, rows * net.dim * sizeof(float));
        float* z = net.depth ? (has_norm ? layers[0].z : layers[0].a) + start * hidden : nullptr;
        for (long r = 0; r < rows; r++) {
            logit[r] = *net.linear_bias + (net.depth ? *net.out_bias : 0);
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

    void backward(const float* d_logit) const {
        // Gradients of the layers' outputs: of the whole batch where a norm needs its sums, else of a block.
        const long rows_kept = has_norm ? net.n : BLOCK;
        long size = BLOCK * net.dim;
        for (long l = 0; l < net.depth; l++) size += rows_kept * layers[l].out;
        for (long s = 0; s < net.num_sides; s++)
            if (sides[s].index) size += sides[s].rows * (hidden + net.dim + 1);
        float* free = workspace(size);
        float* d_total = free;
        free += BLOCK * net.dim;
        std::vector<float*> d(net.depth), parts(net.num_sides, nullptr);
        for (long l = 0; l < net.depth; l++) {
            const Layer& layer = layers[l];
            d[l] = free;
            free += rows_kept * layer.out;
            std::memset(layer.d_weight, 0, layer.in * layer.out * sizeof(float));
            if (layer.d_bias) std::memset(layer.d_bias, 0, layer.out * sizeof(float));
        }
        for (long s = 0; s < net.num_sides; s++) {
            std::memset(net.d_linear + sides[s].column, 0, sides[s].width * sizeof(float));
            if (!sides[s].index) continue;
            parts[s] = free;
            free += sides[s].rows * (hidden + net.dim + 1);
            std::memset(parts[s], 0, sides[s].rows * (hidden + net.dim + 1) * sizeof(float));
        }
        double d_bias = 0;
        for (long r = 0; r < net.n; r++) d_bias += d_logit[r];
        *net.d_bias = float(d_bias);
        if (net.depth) std::memset(net.d_out, 0, layers[net.depth - 1].out * sizeof(float));
        for (long l = net.depth - 1; has_norm && l >= 0; l--) {
            for (long start = 0; start < net.n; start += BLOCK) {
                const long rows = least(BLOCK, net.n - start);
                if (l == net.depth - 1) output_back(start, rows, d_logit + start, d[l] + start * layers[l].out);
                activation_back(layers[l], start, rows, d[l] + start * layers[l].out);
            }
            norm_back(layers[l], net.n, d[l]);
            for (long start = 0; start < net.n; start += BLOCK) {
                const long rows = least(BLOCK, net.n - start);
                if (l)
                    linear_back(l, start, rows, d[l] + start * layers[l].out, d[l - 1] + start * layers[l].in);
                else
                    first_back(start, rows, d[0] + start * hidden, d_logit + start, d_total, parts);
            }
        }
        for (long start = 0; !has_norm && start < net.n; start += BLOCK) {
            const long rows = least(BLOCK, net.n - start);
            for (long l = net.depth - 1; l >= 0; l--) {
                if (l == net.depth - 1) output_back(start, rows, d_logit + start, d[l]);
                activation_back(layers[l], start, rows, d[l]);
                for (long r = 0; r < rows; r++) add_to(layers[l].d_bias, d[l] + r * layers[l].out, layers[l].out);
                if (l) linear_back(l, start, rows, d[l], d[l - 1]);
            }
            first_back(start, rows, net.depth ? d[0] : nullptr, d_logit + start, d_total, parts);
        }
        for (long s = 0; s < net.num_sides; s++) {
            const Side& side = sides[s];
            if (!side.index) continue;
            const float *of_layer = parts[s], *of_total = of_layer + side.rows * hidden;
            const float* of_constant = of_total + side.rows * net.dim;
            for (long start = 0; start < side.rows; start += BLOCK)
                side_back(side, start, least(BLOCK, side.rows - start), of_layer + start * hidden, of_constant + start,
                          of_total + start * net.dim);
        }
    }

    void output_back(long start, long rows, const float* d_logit, float* d) const {
        const Layer& last = layers[net.depth - 1];
        for (long r = 0; r < rows; r++) {
            times(d + r * last.out, d_logit[r], net.out, last.out);
            add_times(net.d_out, d_logit[r], last.a + (start + r) * last.out, last.out);
        }
    }

    void linear_back(long l, long start, long rows, const float* d, float* d_before) const {
        const Layer& layer = layers[l];
        product<Then::Nothing>(layer.out, layer.in, rows, {d, 1, layer.out},
                               {layers[l - 1].a + start * layer.in, layer.in, 1}, {layer.d_weight, layer.in, 1}, NONE,
                               layer.d_weight, layer.in);
        product<Then::Nothing>(rows, layer.in, layer.out, {d, layer.out, 1}, {layer.weight, layer.in, 1}, NONE, NONE,
                               d_before, layer.in);
    }

    void first_back(long start, long rows, const float* d, const float* d_logit, float* d_total,
                    const std::vector<float*>& parts) const {
        if (net.interactions)
            for (long r = 0; r < rows; r++)
                times(d_total + r * net.dim, d_logit[r], net.total + (start + r) * net.dim, net.dim);
        for (long s = 0; s < net.num_sides; s++) {
            const Side& side = sides[s];
            if (!side.index) {
                side_back(side, start, rows, d, d_logit, d_total);
                continue;
            }
            float *of_layer = parts[s], *of_total = of_layer + side.rows * hidden;
            float* of_constant = of_total + side.rows * net.dim;
            for (long r = 0; r < rows; r++) {
                const int64_t row = side.index[start + r];
                of_constant[row] += d_logit[r];
                if (net.depth) add_to(of_layer + row * hidden, d + r * hidden, hidden);
                if (net.interactions) add_to(of_total + row * net.dim, d_total + r * net.dim, net.dim);
            }
        }
    }
};

}  // namespace

extern "C" {

void mwuf_trained_forward(const Trained* net, const Side* sides, const Layer* layers, float* logit) {
    Pass{*net, sides, layers}.forward(logit);
}

void mwuf_trained_backward(const Trained* net, const Side* sides, const Layer* layers, const float* d_logit) {
    Pass{*net, sides, layers}.backward(d_logit);
}

}  // extern "C"
