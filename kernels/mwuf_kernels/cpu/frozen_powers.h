// Rows of a batch through a frozen head over powers of their fields: see frozen_rows.py.

#pragma once

#include "frozen_pass.h"
#include "powers.h"

namespace {

// A head over powers of fields, whose parts hold the logarithms of the fields [fields, dim] and a constant. The item's are
// zero where that is not a part of the part.
struct PowerRows : Rows {
    void block(long number, double* loss, float* d_rows) const {
        const long dim = head->dim, fields = head->fields, neurons = head->neurons, inputs = dim * neurons;
        const long wide = head->padded_inputs, hidden = head->widths[0], last = last_width();
        const long start = number * BLOCK, rows = least(BLOCK, n - start), cells = rows * dim;
        const long size = BLOCK * (fields * dim + 2 * inputs + all_widths() + 2 * widest()) + 5 * BLOCK;
        float* logs = workspace<Kept::ForTheTask>(size);  // [fields, rows, dim]
        float *raised = logs + BLOCK * fields * dim, *d_raised = raised + BLOCK * inputs;  // [BLOCK, dim, neurons]
        float *states = d_raised + BLOCK * inputs, *d = states + BLOCK * all_widths(), *d_next = d + BLOCK * widest();
        float *plain = d_next + BLOCK * widest(), *logit = plain + BLOCK, *slope = logit + BLOCK, *label = slope + BLOCK;
        if (rows < BLOCK) std::memset(logs, 0, size * sizeof(float));  // what is behind the last row
        for (long r = 0; r < rows; r++) {
            const float* a = parts + (first ? first[start + r] : start + r) * parts_step;
            const float* b = second ? parts + second[start + r] * parts_step : nullptr;
            for (long f = 0; f < fields; f++)
                sum_of(logs + f * cells + r * dim, a + f * dim, b ? b + f * dim : nullptr, dim);
            plain[r] = a[fields * dim] + (b ? b[fields * dim] : 0);
        }
        for (long pass = 0; pass < passes; pass++) {
            const auto item = [&](long r) { return items + (pass * item_rows + index[start + r]) * dim; };
            for (long r = 0; items && r < rows; r++)
                for (long i = 0; i < dim; i += V) {
                    const long lanes = least(V, dim - i);
                    put(logs + r * dim + i, log_of_size(part(item(r) + i, lanes), head->smallest), lanes);
                }
            raise(cells, fields, neurons, logs, head->powers, head->power_bias, raised);
            product<Then::Relu>(BLOCK, hidden, inputs, {raised, inputs, 1}, {head->weights[0], hidden, 1},
                                {head->biases[0], 0, 1}, NONE, states, hidden);
            float* x = through_layers(states);
            for (long r = 0; r < rows; r++) logit[r] = plain[r] + dot(x + r * last, head->out, last);
            if (logits) std::memcpy(logits + pass * n + start, logit, rows * sizeof(float));
            if (!labels) continue;
            slopes(start, rows, logit, label, label + BLOCK, slope, loss + pass);
            if (!d_rows) continue;
            product<Then::Nothing>(rows, inputs, hidden, {back_through_layers(x, slope, d, d_next), hidden, 1},
                                   {head->transposed[0], wide, 1}, NONE, NONE, d_raised, inputs);
            for (long r = 0; r < rows; r++)
                item_back(d_raised + r * inputs, raised + r * inputs, item(r), d_rows + (pass * n + start + r) * dim);
        }
    }

    // The gradient of a row's item embedding [dim] from that of its powers [dim, neurons].
    void item_back(const float* d_raised, const float* raised, const float* item, float* out) const {
        const long dim = head->dim, neurons = head->neurons;
        for (long i = 0; i < dim; i++, d_raised += neurons, raised += neurons) {
            Vec sum{};
            for (long u = 0; u < neurons; u += V) {
                const long lanes = least(V, neurons - u);
                sum += part(d_raised + u, lanes) * part(raised + u, lanes) * part(head->powers + u, lanes);
            }
            out[i] = sum_of_lanes(sum);
        }
        for (long i = 0; i < dim; i += V) {
            const long lanes = least(V, dim - i);
            put(out + i, log_back(part(out + i, lanes), part(item + i, lanes), head->smallest), lanes);
        }
    }
};

}  // namespace
