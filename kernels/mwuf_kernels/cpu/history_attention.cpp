// Rows that attend to the events of their histories, forward and back: see history_attention.py.

#include <cmath>

#include "pool.h"
#include "rows.h"

extern "C" {

// Shapes: query, out, d_out and d_query [rows, heads * width]; key, value and their gradients [distinct, heads * width];
// normalisers, the logarithms of the sums of e^score, [rows, heads]. The events of row r are event[offsets[group[r]]] up to
// the next offset.
struct Attention {
    long rows, distinct, heads, width, events;  // events: of all rows, about
    const float *query, *key, *value;
    const int64_t *event, *offsets, *group;
    float *out, *normalisers;
    const float* d_out;
    float *d_query, *d_key, *d_value;
};

}  // extern "C"

namespace {

// Calls body with a width that the compiler knows, where it is a usual one: loops along a head are short.
template <typename Body>
inline void with_width(long width, Body&& body) {
    if (width == 16)
        body(std::integral_constant<long, 16>());
    else if (width == 32)
        body(std::integral_constant<long, 32>());
    else
        body(width);
}

struct Heads : Attention {
    double ns() const { return double(events * heads) * (4 + double(width) / V); }
    float scale() const { return 1 / std::sqrt(float(width)); }
    long first(long row) const { return offsets[group[row]]; }
    long length(long row) const { return offsets[group[row] + 1] - offsets[group[row]]; }

    // query . key of each event of a row: [length], and what is behind it in the last register is far below.
    template <typename Width>
    void scores(long row, long head, Width n, float* to) const {
        const int64_t* of = event + first(row);
        const float* q = query + (row * heads + head) * n;
        const long number = length(row);
        for (long j = 0; j < number; j++) to[j] = scale() * dot(q, key + (of[j] * heads + head) * n, n);
        for (long j = number; j % V; j++) to[j] = -INFINITY;
    }

    // e^(score - normaliser) of each, in place; returns their sum.
    static float weights(long number, float normaliser, float* scores) {
        Vec sum{};
        for (long j = 0; j < number; j += V) {
            const Vec weight = exp_of_negative(load(scores + j) - normaliser);
            store(scores + j, weight);
            sum += weight;
        }
        return sum_of_lanes(sum);
    }

    template <typename Width>
    void forward(long row, long head, Width n) const {
        const int64_t* of = event + first(row);
        const long number = length(row);
        float *to = out + (row * heads + head) * n, *normaliser = normalisers + row * heads + head;
        std::memset(to, 0, n * sizeof(float));
        *normaliser = 0;
        if (!number) return;
        float* weight = workspace<Kept::ForTheTask>(number + V);
        scores(row, head, n, weight);
        float most = weight[0];
        for (long j = 1; j < number; j++) most = weight[j] > most ? weight[j] : most;
        const float sum = weights(number, most, weight);
        *normaliser = most + std::log(sum);
        for (long j = 0; j < number; j++) add_times(to, weight[j], value + (of[j] * heads + head) * n, n);
        times(to, 1 / sum, to, n);
    }

    // Of the output o = sum_j p_j v_j: dv_j += p_j do, ds_j = p_j (do . v_j - do . o), dq = sum_j ds_j k_j, dk_j += ds_j q.
    template <typename Width>
    void back(long row, long head, Width n) const {
        const int64_t* of = event + first(row);
        const long number = length(row), at = (row * heads + head) * n;
        const float *q = query + at, *d = d_out + at;
        float* dq = d_query + at;
        std::memset(dq, 0, n * sizeof(float));
        if (!number) return;
        float* weight = workspace<Kept::ForTheTask>(number + V);
        scores(row, head, n, weight);
        weights(number, normalisers[row * heads + head], weight);
        const float of_all = dot(d, out + at, n);
        for (long j = 0; j < number; j++) {
            const long place = (of[j] * heads + head) * n;
            const float slope = scale() * weight[j] * (dot(d, value + place, n) - of_all);
            add_times(dq, slope, key + place, n);
            add_times(d_key + place, slope, q, n);
            add_times(d_value + place, weight[j], d, n);
        }
    }
};

}  // namespace

extern "C" {

long mwuf_size_of_attention() { return sizeof(Attention); }

void mwuf_attention(const Attention* attention) {
    const Heads heads{*attention};
    in_parallel((heads.rows + BLOCK - 1) / BLOCK, heads.ns(), [&](long block) {
        with_width(heads.width, [&](auto n) {
            for (long row = block * BLOCK; row < least(block * BLOCK + BLOCK, heads.rows); row++)
                for (long head = 0; head < heads.heads; head++) heads.forward(row, head, n);
        });
    });
}

// Rows share events, so heads are the tasks: of each, a row's gradients are added after those of the row before.
void mwuf_attention_back(const Attention* attention) {
    const Heads heads{*attention};
    const long floats = heads.distinct * heads.heads * heads.width;
    std::memset(heads.d_key, 0, floats * sizeof(float));
    std::memset(heads.d_value, 0, floats * sizeof(float));
    in_parallel(heads.heads, 2.5 * heads.ns(), [&](long head) {
        with_width(heads.width, [&](auto n) {
            for (long row = 0; row < heads.rows; row++) heads.back(row, head, n);
        });
    });
}

}  // extern "C"
