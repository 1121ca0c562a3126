// Checks of products of powers, for native_checks.cpp.

#pragma once

#include "frozen_rows.cpp"
#include "log_neurons.cpp"
#include "native_draws.h"

namespace {

// Of numbers from where float32 has none to where it has infinity, over what they should be.
void check_exp_and_log() {
    const auto one = [](Vec (*of)(Vec), double x) {
        Vec in{};
        in[0] = float(x);
        return double(of(in)[0]);
    };
    Doubles exps, logs;
    for (double x = -87; x < 88.7; x += 0.37) exps.push_back(one(exp_of, x) / std::exp(double(float(x))));
    for (double x = 1e-37; x < 1e38; x *= 1.37) {
        const double wanted = std::log(double(float(x)));
        logs.push_back(1 + (one(log_of, x) - wanted) / (1 + std::fabs(wanted)));
    }
    same("exp", exps, Doubles(exps.size(), 1.0), 4);
    same("log", logs, Doubles(logs.size(), 1.0), 4);
    same("exp beyond float32", Doubles{one(exp_of, -110), double(std::isinf(one(exp_of, 89)))}, {0, 1}, 0);
    same("exp and log of NaN", Doubles{double(std::isnan(one(exp_of, NAN)) && std::isnan(one(log_of, NAN)))}, {1}, 0);
}

// Powers of fields between two norms, in double, whose gradients are differences.
void check_log_neurons(long dim) {
    const long rows = 31, fields = 3, neurons = 10, columns = dim * neurons;
    const float smallest = 0.01f, eps = 1e-5f;
    const Floats item = draws(rows * dim), context = draws(rows * (fields - 1) * dim), weight = draws(neurons * fields, 0.4);
    const Floats bias = draws(neurons), row_weight = [&] {
        Floats out(rows, 1);
        for (long r = 0; r < rows; r += 5) out[r] = 0;
        return out;
    }();
    const Floats log_gamma = draws(fields), log_beta = draws(fields), gamma = draws(neurons), beta = draws(neurons);
    Floats d_out = draws(rows * columns);
    for (long r = 0; r < rows; r += 5)
        for (long i = 0; i < columns; i++) d_out[r * columns + i] = 0;  // nobody reads padding
    Doubles v = wide(item), c = wide(context), w = wide(weight), b = wide(bias), lg = wide(log_gamma), lb = wide(log_beta);
    Doubles g = wide(gamma), be = wide(beta), found(rows * columns);
    // Of [rows, dim, width], in place.
    const auto normalise = [&](Doubles& x, long width, const Doubles& by, const Doubles& plus) {
        for (long k = 0; k < width; k++) {
            double mean = 0, squares = 0, count = 0;
            for (long at = 0; at < rows * dim; at++)
                if (row_weight[at / dim] > 0) mean += x[at * width + k], count++;
            mean /= count;
            for (long at = 0; at < rows * dim; at++)
                if (row_weight[at / dim] > 0) squares += std::pow(x[at * width + k] - mean, 2);
            for (long at = 0; at < rows * dim; at++)
                x[at * width + k] = (x[at * width + k] - mean) / std::sqrt(squares / count + double(eps)) * by[k] + plus[k];
        }
    };
    const auto loss = [&] {
        Doubles logs(rows * dim * fields);
        for (long r = 0; r < rows; r++)
            for (long i = 0; i < dim; i++)
                for (long f = 0; f < fields; f++) {
                    const double e = f ? c[(r * (fields - 1) + f - 1) * dim + i] : v[r * dim + i];
                    logs[(r * dim + i) * fields + f] = std::log(std::fmax(std::fabs(e), double(smallest)));
                }
        normalise(logs, fields, lg, lb);
        for (long at = 0; at < rows * dim; at++)
            for (long u = 0; u < neurons; u++) {
                double sum = b[u];
                for (long f = 0; f < fields; f++) sum += w[u * fields + f] * logs[at * fields + f];
                found[at * neurons + u] = std::exp(sum);
            }
        normalise(found, neurons, g, be);
        double all = 0;
        for (long i = 0; i < rows * columns; i++) all += found[i] * d_out[i];
        return all;
    };
    loss();
    Doubles expected = found;
    Floats out(rows * columns), logs(rows * fields * dim), powers(rows * columns), running(4 * neurons, 0.5f);
    Floats moments(4 * neurons), d_item(item.size()), d_context(context.size()), d_weight(weight.size()), d_bias(neurons);
    Floats d_log_gamma(fields), d_log_beta(fields), d_gamma(neurons), d_beta(neurons);
    const auto norm = [&](long width, const Floats& by, const Floats& plus, long place, Floats& d_by, Floats& d_plus) {
        float *of_running = running.data() + 2 * place * neurons, *of_batch = moments.data() + 2 * place * neurons;
        return Layer{0, width, nullptr, nullptr, by.data(), plus.data(), of_running, of_running + neurons, nullptr, nullptr,
                     nullptr, of_batch, of_batch + neurons, nullptr, nullptr, d_by.data(), d_plus.data()};
    };
    const Layer norms[] = {norm(fields, log_gamma, log_beta, 0, d_log_gamma, d_log_beta),
                           norm(neurons, gamma, beta, 1, d_gamma, d_beta)};
    const LogNeurons net{rows, fields, dim, neurons, smallest, 0.1f, eps, item.data(), context.data(), row_weight.data(),
                         weight.data(), bias.data(), out.data(), logs.data(), powers.data(), d_out.data(), d_item.data(),
                         d_context.data(), d_weight.data(), d_bias.data(), nullptr};
    mwuf_log_neurons(&net, norms);
    for (long r = 0; r < rows; r += 5)
        for (long i = 0; i < columns; i++) out[r * columns + i] = 0, expected[r * columns + i] = 0;
    const long terms = 2 * rows * dim + fields + neurons;
    same("log neurons", out, expected, terms);
    mwuf_log_neurons_back(&net, norms);
    same("log neurons: d item", d_item, slopes(v, loss), terms);
    same("log neurons: d context", d_context, slopes(c, loss), terms);
    same("log neurons: d weight", d_weight, slopes(w, loss), terms);
    same("log neurons: d gamma of logarithms", d_log_gamma, slopes(lg, loss), terms);
    same("log neurons: d gamma", d_gamma, slopes(g, loss), terms);
    same("log neurons: d beta", d_beta, slopes(be, loss), terms);
}

// A frozen head over powers, with one hidden layer.
void check_power_head(long n, long dim) {
    const long fields = 4, neurons = 16, inputs = dim * neurons, h = 16, items = 9, parts = 20, step = fields * dim + 3;
    const float smallest = 0.01f;
    const Floats w1 = draws(inputs * h, 0.1), b1 = draws(h), out = draws(h), powers = draws(fields * neurons, 0.3);
    const Floats power_bias = draws(neurons, 0.3), item = draws(items * dim), label = draws(n), weight = draws(n);
    Floats part = draws(parts * step), labels(n), weights(n), w1_t(h * inputs), linear(inputs), logits(n), d_items(items * dim);
    for (long p = 0; p < parts; p++)
        for (long i = 0; i < dim; i++) part[p * step + i] = 0;  // a place for the item
    const Ids first = draw_ids(n, parts), second = draw_ids(n, parts), index = draw_ids(n, items);
    for (long r = 0; r < n; r++) labels[r] = label[r] > 0, weights[r] = std::fabs(weight[r]);
    for (long i = 0; i < inputs; i++)
        for (long j = 0; j < h; j++) w1_t[j * inputs + i] = w1[i * h + j];
    Doubles v = wide(item), logit(n);
    const auto loss = [&] {
        double sum = 0;
        for (long r = 0; r < n; r++) {
            const float *a = part.data() + first[r] * step, *b = part.data() + second[r] * step;
            Doubles layer = wide(b1);
            for (long i = 0; i < dim; i++)
                for (long u = 0; u < neurons; u++) {
                    double power = power_bias[u];
                    for (long f = 0; f < fields; f++) {
                        const double of_item = std::log(std::fmax(std::fabs(v[index[r] * dim + i]), double(smallest)));
                        power += powers[f * neurons + u] * (f ? double(a[f * dim + i]) + b[f * dim + i] : of_item);
                    }
                    for (long j = 0; j < h; j++) layer[j] += std::exp(power) * w1[(i * neurons + u) * h + j];
                }
            logit[r] = double(a[fields * dim]) + b[fields * dim];
            for (long j = 0; j < h; j++) logit[r] += out[j] * std::fmax(layer[j], 0);
            sum += weights[r] * cross_entropy(logit[r], labels[r]);
        }
        return sum;
    };
    const Doubles slope = slopes(v, loss), total{loss()};
    const float *forward[] = {w1.data()}, *backward[] = {w1_t.data()}, *biases[] = {b1.data()};
    const Head head{dim, inputs, inputs, h, 0, 1, 0, 0, fields, neurons, smallest, &h, forward, backward, biases, out.data(),
                    linear.data(), nullptr, powers.data(), power_bias.data()};
    Doubles sum(1);
    mwuf_head(&head, n, part.data(), step, first.data(), second.data(), 1, item.data(), items, index.data(), labels.data(),
              weights.data(), 1, sum.data(), d_items.data(), logits.data());
    const long terms = inputs + h + fields;
    same("power head: logits", logits, logit, terms);
    same("power head: loss", sum, total, terms);
    same("power head: gradient", d_items, slope, 2 * terms + n);
}

}  // namespace
