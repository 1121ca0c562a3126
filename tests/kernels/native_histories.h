// Checks of the loops over histories, for native_checks.cpp.

#pragma once

#include "activation_unit.cpp"
#include "history_attention.cpp"
#include "history_gru.cpp"
#include "native_draws.h"

namespace {

void check_attention(long heads, long width) {
    const long rows = 20, distinct = 9, wide_row = heads * width;
    const Ids lengths = {0, 3, 40, 16}, group = draw_ids(rows, 4);
    Ids offsets = {0};
    for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
    const Ids event = draw_ids(offsets.back(), distinct);
    const Floats query = draws(rows * wide_row), key = draws(distinct * wide_row), value = draws(distinct * wide_row);
    const Floats d_out = draws(rows * wide_row);
    Doubles q = wide(query), k = wide(key), v = wide(value), found(rows * wide_row);
    const auto loss = [&] {
        double sum = 0;
        for (long r = 0; r < rows; r++)
            for (long h = 0; h < heads; h++) {
                Doubles weight;
                double all = 0;
                for (long j = offsets[group[r]]; j < offsets[group[r] + 1]; j++) {
                    double score = 0;
                    for (long c = 0; c < width; c++) score += q[(r * heads + h) * width + c] * k[(event[j] * heads + h) * width + c];
                    weight.push_back(std::exp(score / std::sqrt(double(width))));
                    all += weight.back();
                }
                for (long c = 0; c < width; c++) {
                    double& to = found[(r * heads + h) * width + c];
                    to = 0;
                    for (size_t j = 0; j < weight.size(); j++)
                        to += weight[j] / all * v[(event[offsets[group[r]] + long(j)] * heads + h) * width + c];
                    sum += to * d_out[(r * heads + h) * width + c];
                }
            }
        return sum;
    };
    loss();
    Floats out(rows * wide_row), normalisers(rows * heads), d_q(query.size()), d_k(key.size()), d_v(value.size());
    const Attention attention{rows, distinct, heads, width, 4, query.data(), key.data(), value.data(),
                              event.data(), offsets.data(), group.data(), out.data(), normalisers.data(), d_out.data(),
                              d_q.data(), d_k.data(), d_v.data()};
    mwuf_attention(&attention);
    same("attention", out, found, width + 40);
    mwuf_attention_back(&attention);
    const long terms = rows * (width + 40);
    same("attention: d query", d_q, slopes(q, loss), terms);
    same("attention: d key", d_k, slopes(k, loss), terms);
    same("attention: d value", d_v, slopes(v, loss), terms);
}

// A gated recurrent unit in double, whose gradients are differences.
void check_gru(long dim) {
    const long histories = 30, distinct = 7;
    Ids offsets = {0};
    for (long g = 0; g < histories; g++) offsets.push_back(offsets.back() + g % 5);
    const Ids index = draw_ids(offsets.back(), distinct);
    const Floats gates = draws(distinct * 3 * dim, 2), weight = draws(3 * dim * dim), bias = draws(3 * dim);
    const Floats d_out = draws(histories * dim);
    Doubles of_gates = wide(gates), of_weight = wide(weight), of_bias = wide(bias), found(histories * dim);
    const auto sigmoid_of = [](double x) { return 1 / (1 + std::exp(-x)); };
    const auto loss = [&] {
        double all = 0;
        for (long g = 0; g < histories; g++) {
            Doubles h(dim, 0.0);
            for (long e = offsets[g]; e < offsets[g + 1]; e++) {
                Doubles next(dim), own(3 * dim);
                for (long k = 0; k < 3 * dim; k++) {
                    own[k] = of_bias[k];
                    for (long i = 0; i < dim; i++) own[k] += of_weight[k * dim + i] * h[i];
                }
                const double* x = of_gates.data() + index[e] * 3 * dim;
                for (long i = 0; i < dim; i++) {
                    const double r = sigmoid_of(x[i] + own[i]), z = sigmoid_of(x[dim + i] + own[dim + i]);
                    next[i] = (1 - z) * std::tanh(x[2 * dim + i] + r * own[2 * dim + i]) + z * h[i];
                }
                h = next;
            }
            for (long i = 0; i < dim; i++) {
                found[g * dim + i] = h[i];
                all += h[i] * d_out[g * dim + i];
            }
        }
        return all;
    };
    loss();
    const long events = offsets.back();
    Floats out(histories * dim), states(events * dim), kept(events * 4 * dim), d_events(events * 3 * dim);
    Floats d_gates(gates.size()), d_weight(weight.size()), d_bias(bias.size());
    const Gru gru{histories, distinct, dim, gates.data(), weight.data(), bias.data(), index.data(), offsets.data(),
                  out.data(), states.data(), kept.data(), d_out.data(), d_events.data(), d_gates.data(),
                  d_weight.data(), d_bias.data()};
    mwuf_gru(&gru);
    const long steps = 4 * (dim + 4);
    same("gru", out, found, steps);
    mwuf_gru_back(&gru);
    same("gru: d gates", d_gates, slopes(of_gates, loss), histories * steps);
    same("gru: d weight", d_weight, slopes(of_weight, loss), histories * steps);
    same("gru: d bias", d_bias, slopes(of_bias, loss), histories * steps);
}

// DIN's activation unit in double, likewise.
void check_unit(long dim) {
    const long rows = 50, distinct = 9, histories = 12, longest = 6, units = 16;
    const float slope = 0.25f, constant = -0.5f;
    Ids offsets = {0};
    for (long g = 0; g < histories; g++) offsets.push_back(offsets.back() + g % (longest + 1));
    const Ids index = draw_ids(offsets.back(), distinct), group = draw_ids(rows, histories);
    const Floats item = draws(rows * dim), events = draws(distinct * dim), weight = draws(units * 3 * dim);
    const Floats bias = draws(units), relevance = draws(units), d_out = draws(rows * dim);
    Doubles v = wide(item), e = wide(events), w = wide(weight), b = wide(bias), of = wide(relevance);
    Doubles numbers = {slope, constant}, found(rows * dim);
    const auto loss = [&] {
        double all = 0;
        for (long row = 0; row < rows; row++) {
            double* to = found.data() + row * dim;
            for (long i = 0; i < dim; i++) to[i] = 0;
            for (long j = offsets[group[row]]; j < offsets[group[row] + 1]; j++) {
                const double* event = e.data() + index[j] * dim;
                double relevant = numbers[1];
                for (long u = 0; u < units; u++) {
                    double x = b[u];
                    for (long i = 0; i < dim; i++) {
                        const double *of_unit = w.data() + u * 3 * dim + i, mine = v[row * dim + i];
                        x += of_unit[0] * event[i] + of_unit[dim] * event[i] * mine + of_unit[2 * dim] * mine;
                    }
                    relevant += of[u] * (x > 0 ? x : numbers[0] * x);
                }
                for (long i = 0; i < dim; i++) to[i] += relevant * event[i];
            }
            for (long i = 0; i < dim; i++) all += to[i] * d_out[row * dim + i];
        }
        return all;
    };
    loss();
    Floats out(rows * dim), d_item(item.size()), d_events(events.size()), d_bias(units), d_relevance(units), d_numbers(2);
    Floats d_weights(3 * dim * units);  // turned: [3 dim, units]
    float* parts = d_weights.data();
    const Unit unit{rows, distinct, dim, units, slope, constant, item.data(), events.data(), weight.data(), bias.data(),
                    relevance.data(), index.data(), offsets.data(), group.data(), out.data(), d_out.data(), d_item.data(), d_events.data(), parts, parts + dim * units,
                    parts + 2 * dim * units, d_bias.data(), d_relevance.data(), d_numbers.data()};
    const long terms = 3 * dim + units + longest;
    mwuf_unit(&unit);
    same("activation unit", out, found, terms);
    mwuf_unit_back(&unit);
    same("activation unit: d item", d_item, slopes(v, loss), terms);
    same("activation unit: d events", d_events, slopes(e, loss), rows * terms);
    const Doubles d_w = slopes(w, loss);
    Doubles turned(d_w.size());
    for (long u = 0; u < units; u++)
        for (long i = 0; i < 3 * dim; i++) turned[i * units + u] = d_w[u * 3 * dim + i];
    same("activation unit: d weight", d_weights, turned, rows * terms);
    same("activation unit: d bias", d_bias, slopes(b, loss), rows * terms);
    same("activation unit: d relevance", d_relevance, slopes(of, loss), rows * terms);
    same("activation unit: d slope and constant", d_numbers, slopes(numbers, loss), rows * terms);
}

}  // namespace
